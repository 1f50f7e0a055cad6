"""`demo --hostile-hq`: a dishonest HQ, and the commands that detect it.

Three scenes with real processes over mutual TLS.  Between a stop and a start of HQ its operator
does what only an operator can: deletes a confirmed message from the database, certifies keys of its
own in a client's name, restores an earlier copy of the disk.  Then the clients' ordinary commands
run, and their output is shown verbatim.

Rules.
1. Clients are never told that HQ is hostile: they run the commands of every day.
2. A scene counts as caught only by what a command's exit code and output say, never by what this
   module knows.
3. The operator has all of HQ's secrets, its CA's key included, and none of a client's.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from cipherbox import clock
from cipherbox.classes import define
from cipherbox.cli.demo.report import HQ, Scene, Shown
from cipherbox.cli.exits import Exit

if TYPE_CHECKING:
    import trio

    from cipherbox.config.settings import ServerConfig
    from cipherbox.envelope.bundle import KeyBundle
    from cipherbox.harness.stage import Stage

LAB, NEWCOMER, CENTER = "FL-LAB", "MA-LAB", "CA-RC"
CLIENTS = (LAB, NEWCOMER, CENTER)
PATIENCE_S, PAUSE_S = 20.0, 0.2  # for a receipt that is still under way
QUIET_S = "3"  # how long a center waits for a message that will not arrive


@define
class Hostile:
    """The stage with its HQ, and its operator's hands."""

    stage: Stage
    directory: Path
    server: trio.Process
    tell: Callable[[str], None]

    @property
    def hq(self) -> Path:
        """HQ's directory: everything in it is its operator's."""
        return self.directory / HQ

    def home(self, client_id: str) -> Path:
        """A client's home, which HQ's operator never sees."""
        return self.directory / client_id

    async def stop(self) -> None:
        """Stop HQ, as its operator may at any time."""
        await self.stage.stop(self.server)

    async def start(self) -> None:
        """Start the unchanged program over whatever lies in HQ's directory now."""
        self.server, _ = await self.stage.start(HQ, "serve", str(self.hq))

    async def run(self, scene: Scene, client_id: str, *arguments: str) -> Shown:
        """Run a client's command and keep what it printed for the user."""
        code, output = await self.stage.ran(
            client_id, "--home", str(self.home(client_id)), *arguments
        )
        shown = Shown(
            f"{client_id}$ cipherbox {' '.join(map(_quoted, arguments))}", code, output.strip()
        )
        scene.shown.append(shown)
        return shown

    async def run_until(self, text: str, scene: Scene, client_id: str, *arguments: str) -> Shown:
        """Run a command until it prints ``text``, within bounds; keep what it printed last."""
        import trio

        shown = await self.run(scene, client_id, *arguments)
        with trio.move_on_after(PATIENCE_S):
            while text not in shown.output:
                await trio.sleep(PAUSE_S)
                again = await self.run(scene, client_id, *arguments)
                scene.shown.remove(shown)
                shown = again
        return shown

    async def send(self, client_id: str, text: str) -> str:
        """Send a message to the center and return its id; not part of what is shown."""
        import orjson

        home = str(self.home(client_id))
        sent = orjson.loads(
            await self.stage.run(client_id, "--home", home, "send", "--to", CENTER, "--json", text)
        )
        return str(sent["message_ids"][0])


async def play_hostile(acts: Hostile) -> list[Scene]:
    """Play the three scenes; the last one leaves the lab's home stopped, as it must."""
    scenes = []
    for scene in (_dropped_message, _swapped_key, _rolled_back_log):
        scenes.append(await scene(acts))
        acts.tell(f"{scenes[-1].title}: {'MISSED' if scenes[-1].missed else 'caught'}")
    return scenes


# -- a message is dropped --------------------------------------------------------------------------


async def _dropped_message(acts: Hostile) -> Scene:
    scene = Scene(
        "A dropped message",
        f"{HQ} confirms a message of {LAB}, then deletes it from its database and keeps silent.",
        f"HQ's confirm is a signature over an entry of its log, which {LAB} keeps; only {CENTER} "
        "can sign that it opened the message, and it has not. So the loss shows at the sender, "
        f"HQ cannot deny that it took the message, and {LAB} still has it: sealed again, it "
        "arrives.",
    )
    message = await acts.send(LAB, "Sample 17 is ready")
    await acts.stop()
    _drop_everything_that_waits(acts.hq)
    await acts.start()
    received = await acts.run(scene, CENTER, "receive", "--count", "1", "--idle", QUIET_S)
    scene.expect(
        message not in received.output, f"{CENTER} received the message: nothing was dropped"
    )
    status = await acts.run(scene, LAB, "status", message)
    scene.expect(
        "of its signed log" in status.output, "the status does not name HQ's signed confirm"
    )
    scene.expect(
        f"no receipt yet from {CENTER}" in status.output,
        "the status does not say that no receipt came",
    )
    again = await acts.run(scene, LAB, "outbox", "retry", "--seal-again", message)
    scene.expect(again.code == Exit.OK, "the message could not be sent again")
    await acts.run(scene, CENTER, "receive", "--count", "1", "--idle", "20")
    opened = await acts.run_until(f"opened by {CENTER}", scene, LAB, "status", message)
    scene.expect(
        f"opened by {CENTER}" in opened.output, "the message did not arrive when it was sent again"
    )
    return scene


def _drop_everything_that_waits(hq: Path) -> None:
    """Delete the rows and adjust the counters, as an operator can with SQL alone."""
    with closing(sqlite3.connect(hq / "cipherbox.sqlite3")) as database, database:
        database.execute(
            "DELETE FROM bodies WHERE number IN (SELECT number FROM entries WHERE state < 2)"
        )
        database.execute(
            "DELETE FROM envelopes WHERE number IN (SELECT number FROM entries WHERE state < 2)"
        )
        database.execute("DELETE FROM entries WHERE state < 2")
        database.execute("UPDATE queues SET depth = 0, bytes = 0")


# -- a key is swapped ------------------------------------------------------------------------------


async def _swapped_key(acts: Hostile) -> Scene:
    scene = Scene(
        "A swapped key",
        f"{HQ} makes keys of its own in the name of {CENTER}, has its own CA certify them, "
        "enters them into its signed log and hands them out, to read what is sealed to them.",
        f"{LAB} knows {CENTER}: new keys count only when the keys before signed for them, so "
        f"nothing is sent. {NEWCOMER} meets {CENTER} for the first time, where HQ can lie; two "
        f"people who compare the number by phone see it, and so does {CENTER}'s own client, "
        "which knows what it made.",
    )
    await acts.stop()
    await _publish_forged_keys(acts.hq)
    await acts.start()
    refused = await acts.run(scene, LAB, "send", "--to", CENTER, "Sample 18 is ready")
    scene.expect(
        refused.code == Exit.KEYS, f"{LAB} ended with {refused.code}, not {int(Exit.KEYS)}"
    )
    true = await acts.run(scene, CENTER, "keys", "fingerprint")
    number = _number(true.output)
    scene.expect(bool(number), f"{CENTER} was not shown the number of its keys")
    compared = await acts.run(scene, NEWCOMER, "keys", "verify", CENTER, "--fingerprint", number)
    scene.expect(
        "They differ" in compared.output and compared.code == Exit.REFUSED,
        "the numbers did not differ",
    )
    owner = await acts.run(scene, CENTER, "doctor")
    scene.expect(
        "this home did not make" in owner.output, f"{CENTER} was not warned of keys in its name"
    )
    return scene


async def _publish_forged_keys(hq: Path) -> None:
    """Put a bundle made by HQ into the database, past the checks that an honest HQ makes when it
    takes one.
    """
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    from cipherbox import pki
    from cipherbox.config.settings import load_server_config, secret_key
    from cipherbox.server.operations.offline import closed
    from cipherbox.store.port import BundleRow

    config = load_server_config(hq)
    async with closed(config) as operator:
        known = await operator.directory.newest(CENTER)
        assert known is not None, f"{CENTER} has registered keys"
        false = _forged(config, known)
        nonce = os.urandom(12)
        aead = ChaCha20Poly1305(secret_key(config.encryption.database_key_file))
        sealed = aead.encrypt(nonce, false.raw, CENTER.encode())
        now = pki.ms(clock.now())
        operator.store.put_bundle(
            BundleRow(
                CENTER,
                false.sequence,
                false.hash,
                sealed[:-16],
                nonce,
                sealed[-16:],
                now,
                false.ends_at,
            )
        )


def _forged(config: ServerConfig, known: KeyBundle) -> KeyBundle:
    """Return a bundle made with all of HQ's secrets: certified and complete, but signed by none of
    its owner's keys.
    """
    from cipherbox import pki
    from cipherbox.config.settings import secret_key
    from cipherbox.sealing.identity import Identity

    service_key = secret_key(config.encryption.service_key_file)
    issuing = pki.load_pem(config.tls.issuing.read_bytes(), "issuing CA")[0]
    authority = pki.Authority(
        issuing, pki.load_key(config.ca.issuing_key.read_bytes(), service_key, "issuing CA")
    )
    key = pki.new_key()
    chain = [pki.issue_client(authority, key.public_key(), known.client_id), issuing]
    return Identity.generate(known.client_id).make_bundle(key, chain, pki.ms(clock.now()), known)


def _number(output: str) -> str:
    """Return the first run of six groups of five digits."""
    words = output.split()
    for at in range(len(words) - 5):
        run = words[at : at + 6]
        if all(len(word) == 5 and word.isdecimal() for word in run):
            return " ".join(run)
    return ""


# -- the log is rolled back ------------------------------------------------------------------------


async def _rolled_back_log(acts: Hostile) -> Scene:
    scene = Scene(
        "A rolled-back log",
        f"{HQ} takes a message, then puts back its disk of an hour before: the message, its "
        "confirm and the entry of the log were never there.",
        f"{LAB} remembers the newest head of the log that it verified. The old disk's log is "
        "shorter and signed later: two signed heads that contradict each other. Every program "
        "of the home stops, and one file holds the evidence, which anybody verifies without HQ "
        "and without a network.",
    )
    await acts.stop()
    copy = acts.directory / "disk-of-an-hour-before"
    shutil.copytree(acts.hq, copy, symlinks=True)
    await acts.start()
    text = "Sample 19 is ready"
    await acts.stage.run(NEWCOMER, "--home", str(acts.home(NEWCOMER)), "send", "--to", LAB, text)
    await acts.stage.run(
        LAB, "--home", str(acts.home(LAB)), "receive", "--count", "1", "--idle", "20"
    )
    await acts.stop()
    shutil.rmtree(acts.hq)
    copy.rename(acts.hq)
    await acts.start()
    stopped = await acts.run(scene, LAB, "status")
    scene.expect(
        stopped.code == Exit.KEYS, f"{LAB} ended with {stopped.code}, not {int(Exit.KEYS)}"
    )
    files = sorted(acts.home(LAB).glob("log-evidence-*.json"))
    scene.expect(bool(files), f"{LAB} has no file of evidence")
    if files:
        await acts.stop()
        verified = await acts.run(scene, LAB, "audit", "evidence", str(files[0]))
        scene.expect(
            verified.code == Exit.OK, f"the evidence does not hold: exit code {verified.code}"
        )
        await acts.start()
    return scene


def _quoted(word: str) -> str:
    return f"'{word}'" if " " in word else word


async def hostile(
    stage: Stage, directory: Path, server: trio.Process, tell: Callable[[str], None]
) -> list[Scene]:
    """Play all scenes against a running HQ with enrolled clients, stop it, return the scenes."""
    acts = Hostile(stage, directory, server, tell)
    try:
        await acts.send(LAB, "We have met")  # from here on the lab holds the center's keys
        await stage.run(
            CENTER, "--home", str(acts.home(CENTER)), "receive", "--count", "1", "--idle", "20"
        )
        return await play_hostile(acts)
    finally:
        await acts.stop()
