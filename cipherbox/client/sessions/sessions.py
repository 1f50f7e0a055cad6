"""This home's sessions.

The sending half of a session is stored in the outbox, the receiving half in the inbox, each with
the messages it belongs to: the sending chain in the outbox's database (`chains`), the rest in the
inbox's, with the private prekeys (`receiving`, `keys`). So every step of a session is in one
transaction with the envelope it was made for.

A message is only sent from state that the inbox's database has on stable storage: a new ratchet key
that a crash could revert must not have been sent. `sync` ensures that before the outbox is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import attrs

from cipherbox import clock
from cipherbox.client.inbox import schema as inbox
from cipherbox.client.local_database import open_database, transaction, translated
from cipherbox.client.outbox import outbox
from cipherbox.client.sessions.keys import SessionKeys
from cipherbox.client.sessions.old import DATABASE as BEFORE
from cipherbox.client.sessions.old import take_over
from cipherbox.client.sessions.receiving_chains import ReceivedSteps, ReceivingChains
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

# a message of a session that only carries a ratchet step, sent with receipts
STEP_TYPE = "application/vnd.cipherbox.session-step"
_STEP = label("session-step")


def settings_of(config: ClientConfig) -> SessionSettings:
    """Return the settings of `[sessions]` in client.toml."""
    return SessionSettings(**attrs.asdict(config.sessions))


class SendingChain:
    """A session to seal in; see `seal.SendingChain`. ``reserved``: the outbox has counted this
    message already.
    """

    def __init__(
        self, peer: str, found: Session, before: Chain | None, *, reserved: bool = False
    ) -> None:
        self._peer, self._session, self._before, self._reserve = peer, found, before, reserved
        self._chain = ratchet.sending(found.state, before)
        self.key_id = session_key_id(found.peer_identity)
        self.stanza_bytes = found.size(CONTENT_KEY_BYTES)

    def wrap(self, content_key: bytes, binding: bytes) -> bytes:
        self._chain, raw = session.encrypt(self._session, self._chain, content_key, binding)
        return raw

    @property
    def steps(self) -> tuple[RatchetStep, ...]:
        """The steps that the outbox has to write with the envelope."""
        if self._reserve:
            return ()
        return (RatchetStep(self._peer, self._session.session_id, at(self._before), self._chain),)


class Sessions:
    """The sessions of a home. Methods block on the disk; the tables are created on first use."""

    def __init__(
        self,
        home: Path,
        box: SecretBox,
        identity: Identity,
        settings: SessionSettings,
        clock_ms: Callable[[], int] = clock.now_ms,
    ) -> None:
        self.settings = settings
        self.chains = SendingChains(box)
        self._home, self._box, self._identity, self._clock_ms = home, box, identity, clock_ms
        self._path = home / inbox.DATABASE
        self._outbox_path = home / outbox.DATABASE
        self._receiving: ReceivingChains | None = None
        self._exists = False
        # a new chain depends on received state that `sync` must make durable first
        self.unsynced = False
        self._unsaved: dict[bytes, Chain] = {}  # session id -> chain not in the outbox yet

    @property
    def receiving(self) -> ReceivingChains:
        """The receiving halves."""
        if self._receiving is None:
            with ExitStack() as undo:
                self._db = inbox.open_inbox(self._home)
                undo.callback(self._db.close)
                self._outbox = open_database(self._outbox_path, outbox.STEPS, outbox.OLDEST)
                undo.callback(self._outbox.close)
                sync_directory(self._home)
                self._db.execute("PRAGMA secure_delete = ON")
                take_over(self._home, self._box, self._db, self._path, self._outbox)
                for db in (self._db, self._outbox):
                    db.execute("PRAGMA synchronous = NORMAL")
                keys = SessionKeys(
                    self._db,
                    self._path,
                    self._box,
                    self._identity,
                    self.settings,
                    self._clock_ms,
                    self._home,
                )
                self._receiving = ReceivingChains(
                    self._db,
                    self._path,
                    self._box,
                    self._identity,
                    keys,
                    self.settings,
                    self._clock_ms,
                    self._home,
                )
                undo.pop_all()
        return self._receiving

    @property
    def exists(self) -> bool:
        """Whether this home ever had a session or prekeys."""
        if not self._exists and (
            self._receiving or self._path.exists() or (self._home / BEFORE).exists()
        ):
            self._exists = self.keys.any()
        return self._exists

    @property
    def keys(self) -> SessionKeys:
        """Private prekeys."""
        return self.receiving.keys

    def close(self) -> None:
        if self._receiving is not None:
            with suppress(StoreError):
                self.sync()
            self._db.close()
            self._outbox.close()
            self._receiving = None

    def sync(self) -> None:
        """Put all committed state on stable storage, before the first message of a chain is sent.

        Unsynced received state may be lost in a power failure: nothing depends on it, and the
        former state decrypts what is redelivered. One sync covers all of it, from any thread. A
        checkpoint syncs what it has moved; the rest is in the WAL.
        """
        if not self.unsynced:
            return
        self.unsynced = False
        try:
            # the last process to close it has synced and removed it
            with translated(self._path), suppress(FileNotFoundError):
                sync_file(self._path.with_name(f"{self._path.name}-wal"))
        except BaseException:
            self.unsynced = True
            raise

    # -- sending -----------------------------------------------------------------------------------

    def due(self, peer: str) -> bool:
        """Return whether a new session should be begun: there is none to send in, or it is old."""
        found = self._newest(peer)
        return found is None or self._clock_ms() - found[0].since > self.settings.rotation_s * 1000

    def can_send(self, peer: str) -> bool:
        """Return whether there is a session to send in, old or not."""
        return self._newest(peer) is not None

    def begin(self, peer: str, prekeys: Prekeys) -> None:
        """Begin a session as its initiator; the handshake is sent with the messages. Raise
        BundleMalformed.
        """
        now = self._clock_ms()
        parties = handshake.parties(self._identity.client_id, peer)
        own = self.keys.identity()

        def made(least: int) -> Session:
            hello, agreed = handshake.begin(own, prekeys, max(now, least), parties)
            return session.started(hello, agreed, prekeys, now)

        self.receiving.begin(peer, made)

    def retire(self, peer: str, raw: bytes) -> None:
        """Stop sending in the session of an envelope that its recipient could not open."""
        parsed = parse_envelope(raw)
        for index, entry in enumerate(parsed.layout.prefix.recipients):
            if entry.client_id == peer and entry.stanza_type == StanzaType.RATCHET:
                session_id = session.parse(stanza_of(raw, parsed.layout, index)).session_id
                self.receiving.retire((peer, session_id))

    @contextmanager
    def sending_chains(
        self, peers: Sequence[str], *, reserve: bool = False
    ) -> Iterator[list[SendingChain]]:
        """Yield a session with each peer to seal in. The `steps` of each go into the outbox with
        the envelope.

        ``reserve``, after SessionMoved: the outbox counts the message before it is sealed, so that
        no other process can interfere; a crash then wastes a number.
        """
        found = []
        for peer in peers:
            found.append(
                self._reserve(peer)
                if reserve
                else SendingChain(peer, *self._session_to_send_in(peer))
            )
        yield found
        for sending_chain in found:
            self._keep_steps(sending_chain.steps)

    def _reserve(self, peer: str) -> SendingChain:
        # wait for other processes before the transaction
        self._session_to_send_in(peer)
        with transaction(self._outbox, self._outbox_path):
            found, before = self._session_to_send_in(peer, unsaved=False)
            chain = ratchet.sending(found.state, before)
            step = RatchetStep(peer, found.session_id, at(before), ratchet.skip(chain))
            self.chains.write(self._outbox, [step])
        self.rolled_back([step])
        self.unsynced |= step.begins
        self.committed([step])
        return SendingChain(peer, found, chain, reserved=True)

    def make_step(self, peer: str) -> tuple[bytes, RatchetStep] | None:
        """Return an empty message of the session, to be sent with receipts: it carries this end's
        new ratchet key, so that the session heals even without replies. It is sent once the outbox
        has its step. Return None if the peer has sent nothing in a session.
        """
        newest = self._newest(peer) if self.exists else None
        if newest is None or newest[0].handshake:
            return None
        sending_chain = SendingChain(peer, *newest)
        raw = sending_chain.wrap(b"", _STEP)
        self._keep_steps(sending_chain.steps)
        return raw, sending_chain.steps[0]

    def committed(self, steps: Iterable[RatchetStep]) -> None:
        """Record that the outbox has these steps."""
        for step in steps:
            if self._unsaved.get(step.session_id) is step.after:
                del self._unsaved[step.session_id]
            if step.begins:
                self.receiving.clear_start((step.peer, step.session_id), step.after.turn)

    def rolled_back(self, steps: Iterable[RatchetStep]) -> None:
        """Drop steps that the outbox could not write: their messages were never sent."""
        for step in steps:
            self._unsaved.pop(step.session_id, None)

    def _keep_steps(self, steps: Iterable[RatchetStep]) -> None:
        for step in steps:
            self._unsaved[step.session_id] = step.after
            self.unsynced |= step.begins

    def _session_to_send_in(
        self, peer: str, *, unsaved: bool = True
    ) -> tuple[Session, Chain | None]:
        newest = self._newest(peer, unsaved=unsaved)
        if newest is None:
            raise InvalidRequest(f"no session with {peer}", remedy="send again to begin one")
        return newest

    def _newest(self, peer: str, *, unsaved: bool = True) -> tuple[Session, Chain | None] | None:
        """Return the session to send in, and its chain if any. ``unsaved`` includes chains that are
        not in the outbox yet.
        """
        while self.exists and (found := self.receiving.newest(peer)) is not None:
            place = peer, found.session_id
            chain = self._unsaved.get(found.session_id) if unsaved else None
            stored = chain is None
            with suppress(DecryptionFailed, Damaged, InvalidRequest), translated(self._outbox_path):
                if stored:
                    chain = self.chains.read(self._outbox, found.session_id)
                ratchet.sending(found.state, chain)
                if (
                    stored
                    and chain is not None
                    and found.state.start
                    and chain.turn == found.state.turn
                ):
                    self.receiving.clear_start(
                        place, chain.turn
                    )  # a crash came between the two writes
                return found, chain
            if not stored:
                # another process sends in a later root step, and this one will not be written
                del self._unsaved[found.session_id]
            elif self.receiving.newest(peer) is found:
                # no other process has advanced it between the two reads: its chain is missing
                # or set back, since the outbox was moved away
                self.receiving.retire(place)
        return None

    # -- receiving ---------------------------------------------------------------------------------

    def receive_step(self, peer: str, raw: bytes) -> None:
        """Receive what `make_step` made at the other end. Raise EnvelopeError for an unknown
        session.
        """
        if not self.exists:
            raise KeyMissing("this home has no sessions")
        self.receiving.receive_step(peer, session.parse(raw), _STEP)

    def open(self, parsed: ParsedEnvelope, sender: KeyBundle) -> Messages:
        """Decrypt as `open_envelope`, with this home's sessions; a failure changes nothing."""
        return self.receiving.open(parsed, sender)

    def decrypt(self, parsed: ParsedEnvelope, sender: KeyBundle) -> Messages:
        """Decrypt for a caller that records the messages, and writes `take_received` in the same
        transaction.
        """
        return self.receiving.decrypt(parsed, sender)

    def take_received(self) -> ReceivedSteps | None:
        """Return what `decrypt` changed since the last call, or None."""
        received = self._receiving.take_received() if self._receiving is not None else None
        return received if received is not None and received.pending else None

    def recorded(self, received: ReceivedSteps) -> None:
        """Report that these states are stored, with their messages."""
        self.receiving.recorded(received)

    def discard_received(self) -> None:
        """Discard states that were not recorded: HQ redelivers those envelopes."""
        if self._receiving is not None:
            self._receiving.discard()

    def acknowledged(self, envelope_hashes: Sequence[bytes]) -> None:
        """Report envelopes whose acknowledgement HQ has confirmed: they are not redelivered."""
        if envelope_hashes and self.exists:
            self.receiving.acknowledged(envelope_hashes)


def in_sessions(parsed: ParsedEnvelope) -> bool:
    """Whether an envelope has a stanza of a session."""
    return any(entry.stanza_type == StanzaType.RATCHET for entry in parsed.layout.prefix.recipients)


__all__ = ["STEP_TYPE", "Sessions", "in_sessions", "settings_of"]
