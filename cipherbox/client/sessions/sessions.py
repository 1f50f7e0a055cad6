"""This home's sessions.

What a session says is kept in the outbox, what it hears in the inbox, and each of its halves lies
with the messages it belongs to: the sending chain in the outbox's database (`chains`), the rest in
the inbox's, with the private prekeys (`hearing`, `keys`).  So every step of a session is in one
transaction with the envelope it was made for.

Only what the inbox's database holds on stable storage is spoken from: a fresh ratchet key that a
crash could take back must not have left.  `sync` sees to that, before the outbox is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import attrs

from cipherbox.client.inbox import schema as inbox
from cipherbox.client.local_database import open_database, transaction, translated
from cipherbox.client.outbox import outbox
from cipherbox.client.sessions.keys import SessionKeys
from cipherbox.client.sessions.old import DATABASE as BEFORE
from cipherbox.client.sessions.old import take_over
from cipherbox.client.sessions.receiving_chains import Heard, ReceivingChains
from cipherbox.client.sessions.sending_chains import RatchetStep, SendingChains, at
from cipherbox.config.settings import ClientConfig
from cipherbox.envelope.bundle import KeyBundle
from cipherbox.envelope.labels import label
from cipherbox.envelope.layout import stanza as stanza_of
from cipherbox.envelope.stanza_types import StanzaType
from cipherbox.errors import Damaged, DecryptionFailed, InvalidRequest, KeyMissing, StoreError
from cipherbox.portable import sync_directory, sync_file
from cipherbox.sealing.body import Messages
from cipherbox.sealing.identity import Identity
from cipherbox.sealing.local_secret_box import SecretBox
from cipherbox.sealing.open import ParsedEnvelope, parse_envelope
from cipherbox.sealing.primitives import CONTENT_KEY_BYTES
from cipherbox.sealing.ratchet import double_ratchet as ratchet
from cipherbox.sealing.ratchet import handshake, session
from cipherbox.sealing.ratchet.double_ratchet import Chain
from cipherbox.sealing.ratchet.handshake import Prekeys
from cipherbox.sealing.ratchet.prekeys import session_key_id
from cipherbox.sealing.ratchet.session import Session
from cipherbox.sealing.ratchet.settings import SessionSettings

# a message of a session that turns its ratchet, beside receipts
STEP_TYPE = "application/vnd.cipherbox.session-step"
_STEP = label("session-step")


def settings_of(config: ClientConfig) -> SessionSettings:
    """What `[sessions]` of client.toml says."""
    return SessionSettings(**attrs.asdict(config.sessions))


class SendingChain:
    """A session to seal in; see `seal.SendingChain`.  ``reserved``: the outbox counts this message
    already.
    """

    def __init__(
        self, peer: str, found: Session, before: Chain | None, *, reserved: bool = False
    ) -> None:
        self._peer, self._session, self._before, self._reserved = peer, found, before, reserved
        self._chain = ratchet.sending(found.state, before)
        self.key_id = session_key_id(found.peer_identity)
        self.stanza_bytes = found.size(CONTENT_KEY_BYTES)

    def wrap(self, content_key: bytes, binding: bytes) -> bytes:
        self._chain, raw = session.encrypt(self._session, self._chain, content_key, binding)
        return raw

    @property
    def turned(self) -> tuple[RatchetStep, ...]:
        """What the outbox has to write with the envelope."""
        if self._reserved:
            return ()
        return (RatchetStep(self._peer, self._session.session_id, at(self._before), self._chain),)


class Sessions:
    """See the module.  Methods block on the disk; the tables are made when they are first
    needed.
    """

    def __init__(
        self,
        home: Path,
        box: SecretBox,
        identity: Identity,
        settings: SessionSettings,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.settings = settings
        self.chains = SendingChains(box)
        self._home, self._box, self._identity, self._clock_ms = home, box, identity, clock_ms
        self._path = home / inbox.DATABASE
        self._outbox_path = home / outbox.DATABASE
        self._hearing: ReceivingChains | None = None
        self._exists = False
        # a chain begins that stands on what was heard; `sync` has to see to that
        self.unsynced = False
        self._said: dict[bytes, Chain] = {}  # session id -> chain, of what is not in the outbox yet

    @property
    def hearing(self) -> ReceivingChains:
        """The halves that hear."""
        if self._hearing is None:
            with ExitStack() as undo:
                self._db = open_database(self._path, inbox.STEPS, inbox.OLDEST)
                undo.callback(self._db.close)
                self._outbox = open_database(self._outbox_path, outbox.STEPS, outbox.OLDEST)
                undo.callback(self._outbox.close)
                sync_directory(self._home)
                self._db.execute("PRAGMA secure_delete = ON")
                take_over(self._home, self._box, self._db, self._path, self._outbox)
                for db in (self._db, self._outbox):
                    db.execute("PRAGMA synchronous = NORMAL")
                keys = SessionKeys(
                    self._db, self._path, self._box, self._identity, self.settings, self._clock_ms
                )
                self._hearing = ReceivingChains(
                    self._db,
                    self._path,
                    self._box,
                    self._identity,
                    keys,
                    self.settings,
                    self._clock_ms,
                )
                undo.pop_all()
        return self._hearing

    @property
    def exists(self) -> bool:
        """Whether this home ever had a session or prekeys."""
        if not self._exists and (
            self._hearing or self._path.exists() or (self._home / BEFORE).exists()
        ):
            self._exists = self.keys.any()
        return self._exists

    @property
    def keys(self) -> SessionKeys:
        """Private prekeys."""
        return self.hearing.keys

    def close(self) -> None:
        if self._hearing is not None:
            with suppress(StoreError):
                self.sync()
            self._db.close()
            self._outbox.close()
            self._hearing = None

    def sync(self) -> None:
        """Puts everything committed so far on stable storage: the first of a chain leaves after
        this.

        What was heard and is not synced yet may be lost with the power: nothing stands on it, and
        the state before opens what comes next.  One sync for all of it, and from any thread.  What
        a checkpoint has moved on is synced by the checkpoint; the rest is in the WAL.
        """
        if not self.unsynced:
            return
        self.unsynced = False
        try:
            # the last to close it has synced and removed it
            with translated(self._path), suppress(FileNotFoundError):
                sync_file(self._path.with_name(f"{self._path.name}-wal"))
        except BaseException:
            self.unsynced = True
            raise

    # -- speaking ----------------------------------------------------------------------------------

    def due(self, peer: str) -> bool:
        """Whether a fresh session should be begun: there is none to speak in, or it is old."""
        found = self._newest(peer)
        return found is None or self._clock_ms() - found[0].since > self.settings.rotation_s * 1000

    def speaks_with(self, peer: str) -> bool:
        """Whether there is a session to speak in, old or not."""
        return self._newest(peer) is not None

    def begin(self, peer: str, prekeys: Prekeys) -> None:
        """Begins a session as its initiator; the handshake goes with the messages.
        BundleMalformed.
        """
        now = self._clock_ms()
        parties = handshake.parties(self._identity.client_id, peer)
        own = self.keys.identity()

        def made(least: int) -> Session:
            shaken, agreed = handshake.begin(own, prekeys, max(now, least), parties)
            return session.started(shaken, agreed, prekeys, now)

        self.hearing.begin(peer, made)

    def retire(self, peer: str, raw: bytes) -> None:
        """The sender's own envelope did not open at the peer: nothing more is said in the
        session it went through.
        """
        parsed = parse_envelope(raw)
        for index, entry in enumerate(parsed.layout.prefix.recipients):
            if entry.client_id == peer and entry.stanza_type == StanzaType.RATCHET:
                session_id = session.parse(stanza_of(raw, parsed.layout, index)).session_id
                self.hearing.retire((peer, session_id))

    @contextmanager
    def sending_chains(
        self, peers: Sequence[str], *, reserve: bool = False
    ) -> Iterator[list[SendingChain]]:
        """A session with each peer to seal in.  What each has `turned` goes into the outbox with
        the envelope.

        ``reserve``: after SessionMoved.  The outbox counts the message before it is sealed, so that
        no other process comes in between; a crash then costs a number.
        """
        found = []
        for peer in peers:
            found.append(
                self._reserved(peer)
                if reserve
                else SendingChain(peer, *self._session_to_send_in(peer))
            )
        yield found
        for sending_chain in found:
            self._turned(sending_chain.turned)

    def _reserved(self, peer: str) -> SendingChain:
        # all that another process holds is waited for before the transaction
        self._session_to_send_in(peer)
        with transaction(self._outbox, self._outbox_path):
            found, before = self._session_to_send_in(peer, said=False)
            chain = ratchet.sending(found.state, before)
            step = RatchetStep(peer, found.session_id, at(before), ratchet.skip(chain))
            self.chains.write(self._outbox, [step])
        self.lost([step])
        self.unsynced |= step.begins
        self.kept([step])
        return SendingChain(peer, found, chain, reserved=True)

    def turn(self, peer: str) -> tuple[bytes, RatchetStep] | None:
        """An empty message of the session, to go beside receipts: it carries this end's new
        ratchet key, so that the session heals though nobody answers.  It leaves when the outbox
        has what it turned.  None: the peer has spoken in no session.
        """
        newest = self._newest(peer) if self.exists else None
        if newest is None or newest[0].handshake:
            return None
        sending_chain = SendingChain(peer, *newest)
        raw = sending_chain.wrap(b"", _STEP)
        self._turned(sending_chain.turned)
        return raw, sending_chain.turned[0]

    def kept(self, steps: Iterable[RatchetStep]) -> None:
        """The outbox has these."""
        for step in steps:
            if self._said.get(step.session_id) is step.after:
                del self._said[step.session_id]
            if step.begins:
                self.hearing.started((step.peer, step.session_id), step.after.turn)

    def lost(self, steps: Iterable[RatchetStep]) -> None:
        """The outbox could not take these: they were never said."""
        for step in steps:
            self._said.pop(step.session_id, None)

    def _turned(self, steps: Iterable[RatchetStep]) -> None:
        for step in steps:
            self._said[step.session_id] = step.after
            self.unsynced |= step.begins

    def _session_to_send_in(self, peer: str, *, said: bool = True) -> tuple[Session, Chain | None]:
        newest = self._newest(peer, said=said)
        if newest is None:
            raise InvalidRequest(
                f"there is no session with {peer}", remedy="send again, and one is begun"
            )
        return newest

    def _newest(self, peer: str, *, said: bool = True) -> tuple[Session, Chain | None] | None:
        """The session to speak in, and its chain as far as there was one; ``said``: what is not
        in the outbox, too.
        """
        while self.exists and (found := self.hearing.newest(peer)) is not None:
            place = peer, found.session_id
            chain = self._said.get(found.session_id) if said else None
            kept = chain is None
            with suppress(DecryptionFailed, Damaged, InvalidRequest), translated(self._outbox_path):
                if kept:
                    chain = self.chains.read(self._outbox, found.session_id)
                ratchet.sending(found.state, chain)
                if (
                    kept
                    and chain is not None
                    and found.state.start
                    and chain.turn == found.state.turn
                ):
                    self.hearing.started(place, chain.turn)  # a crash came between the two
                return found, chain
            if not kept:
                # another process speaks in a later turn, and this will not be taken
                del self._said[found.session_id]
            elif self.hearing.newest(peer) is found:
                # not another process that went on between the two looks
                # its chain is gone or set back, with an outbox that was moved away
                self.hearing.retire(place)
        return None

    # -- hearing -----------------------------------------------------------------------------------

    def take_turn(self, peer: str, raw: bytes) -> None:
        """Takes in what `turn` made at the other end; EnvelopeError if it is of no session known
        here.
        """
        if not self.exists:
            raise KeyMissing("there are no sessions here")
        self.hearing.take_turn(peer, session.parse(raw), _STEP)

    def open(self, parsed: ParsedEnvelope, sender: KeyBundle) -> Messages:
        """As `open_envelope`, with this home's sessions; what does not open changes nothing."""
        return self.hearing.open(parsed, sender)

    def hear(self, parsed: ParsedEnvelope, sender: KeyBundle) -> Messages:
        """`open` for who records the messages, and writes what `heard` gives in the same
        transaction.
        """
        return self.hearing.hear(parsed, sender)

    def heard(self) -> Heard | None:
        """What `hear` changed since the last time; None: nothing."""
        heard = self._hearing.heard() if self._hearing is not None else None
        return heard if heard is not None and heard.ears else None

    def recorded(self, heard: Heard) -> None:
        """It is on the disk, with what it came with."""
        self.hearing.recorded(heard)

    def unheard(self) -> None:
        """What `hear` gave and nobody recorded was not heard: those envelopes come again."""
        if self._hearing is not None:
            self._hearing.forget()

    def acknowledged(self, envelope_hashes: Sequence[bytes]) -> None:
        """HQ has confirmed the acks: these envelopes do not come again."""
        if envelope_hashes and self.exists:
            self.hearing.acknowledged(envelope_hashes)


def in_sessions(parsed: ParsedEnvelope) -> bool:
    """Whether an envelope has a stanza of a session."""
    return any(entry.stanza_type == StanzaType.RATCHET for entry in parsed.layout.prefix.recipients)


__all__ = ["STEP_TYPE", "Sessions", "in_sessions", "settings_of"]
