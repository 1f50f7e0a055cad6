"""`bench --compare`: the same messages through another broker's server, if it is installed.

Server, sender and receiver are processes, over mutual TLS 1.3 with certificates made for the run,
and each message is deleted once it is acknowledged.  The clients (`peer_clients`) pipeline as far
as ours, check every confirm, and then drop what they receive: what is compared is the way from a
sender to a receiver, without end-to-end encryption and without the receiver's disk, which favours
the peer.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import orjson
import trio

from cipherbox import clock
from cipherbox.classes import frozen
from cipherbox.cli.bench.play import Result, result
from cipherbox.harness.failure import StageFailed
from cipherbox.harness.stage import Stage, free_port, kill
from cipherbox.harness.worker import WorkerProcess
from cipherbox.harness.workplace import PROCESSES
from cipherbox.portable import WINDOWS, passed_lock, process_usage

if TYPE_CHECKING:
    from cipherbox.cli.bench.work import Work

START_S = 20.0
_RETRY_S = 0.05


@frozen
class Credentials:
    """Files in PEM: a CA, and one certificate that both ends present."""

    ca: Path
    certificate: Path
    key: Path


@frozen
class Peer:
    """Another broker.  ``arguments`` are those of its server for a directory and a port."""

    name: str
    program: str
    title: str
    sync: str  # when what it confirms is on stable storage
    most: int  # messages of one run; ours has up to two million, in batches
    client: str  # which client of `peer_clients` speaks to it
    arguments: Callable[[Path, int, Credentials], list[str]]

    def path(self) -> str | None:
        """Return the server's path: on PATH, or beside this Python, where a wheel puts it."""
        beside = str(Path(sys.executable).parent)
        return shutil.which(self.program) or shutil.which(self.program, path=beside)

    def conditions(self, path: str) -> str:
        """Return the version and what the figures were measured with."""
        done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        version = " ".join((done.stdout or done.stderr).split()[:3])
        return f"{self.title} ({version}), mutual TLS 1.3, {self.sync}"


def _nats(sync: str) -> Callable[[Path, int, Credentials], list[str]]:
    def arguments(directory: Path, port: int, files: Credentials) -> list[str]:
        interval = f', sync_interval: "{sync}"' if sync else ""
        (directory / "nats.conf").write_text(
            f"listen: 127.0.0.1:{port}\nmax_payload: 16MB\nmax_pending: 512MB\n"
            f'jetstream {{ store_dir: "{directory}/jetstream"{interval} }}\n'
            f'tls {{ cert_file: "{files.certificate}", key_file: "{files.key}", '
            f'ca_file: "{files.ca}", verify: true, min_version: "1.3" }}\n',
            "utf-8",
        )
        return ["-c", str(directory / "nats.conf")]

    return arguments


def _redis(directory: Path, port: int, files: Credentials) -> list[str]:
    options = {
        "bind": "127.0.0.1",
        "port": "0",
        "tls-port": str(port),
        "tls-cert-file": str(files.certificate),
        "tls-key-file": str(files.key),
        "tls-ca-cert-file": str(files.ca),
        "tls-auth-clients": "yes",
        "tls-protocols": "TLSv1.3",
        "dir": str(directory),
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
    }
    return [word for name, value in options.items() for word in (f"--{name}", value)]


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            name="nats",
            program="nats-server",
            title="NATS JetStream",
            sync="synced every two minutes (its default)",
            most=200_000,
            client="nats",
            arguments=_nats(""),
        ),
        Peer(
            name="nats-sync",
            program="nats-server",
            title="NATS JetStream",
            sync="synced before each confirm",
            most=2_000,  # it syncs for each message alone
            client="nats",
            arguments=_nats("always"),
        ),
        Peer(
            name="redis",
            program="redis-server",
            title="Redis Streams",
            sync="synced before each confirm",
            most=100_000,
            client="redis",
            arguments=_redis,
        ),
    )
}


def comparable(work: Work) -> bool:
    """Return whether a peer can do this work: plain messages from one sender to one receiver."""
    special = work.presealed or work.files or work.wrap
    return not special and work.senders == work.receivers == work.recipients == 1


async def play_peer(directory: Path, work: Work, peer: Peer, path: str) -> Result:
    """Measure ``work`` with a peer's server in an empty directory."""
    stage = Stage(directory)
    files = make_credentials(directory)
    port = free_port()
    count = min(work.count, peer.most)
    workers: list[WorkerProcess] = []
    with (
        stage.output(peer.name).open("ab") as log,
        passed_lock(directory / PROCESSES / peer.name) as lock,
    ):
        server = await trio.lowlevel.open_process(
            [path, *peer.arguments(directory, port, files)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=() if WINDOWS else (lock,),
        )
        os.write(lock, str(server.pid).encode())
    try:
        await _until_it_listens(stage, peer, server, port)
        for name, do in (("R", "peer-receive"), ("S", "peer-send")):
            task: dict[str, Any] = {
                "do": do,
                "client": peer.client,
                "port": port,
                "size": work.size,
                "messages": count,
                "rate": work.rate,
                "ca": str(files.ca),
                "certificate": str(files.certificate),
                "key": str(files.key),
            }
            worker = await WorkerProcess.start(stage, name, "bench", "--worker")
            workers.append(worker)
            await worker.send(orjson.dumps(task))
            while "ready" not in await worker.receive():  # the receiver makes the stream
                pass
        before = process_usage(server.pid)
        for worker in workers:
            await worker.send(b"go")
        async with trio.open_nursery() as nursery:
            for worker in workers:
                nursery.start_soon(_until_done, worker)
        after = process_usage(server.pid)
    finally:
        for worker in workers:
            await worker.end()
        await kill(server)
    figures = result(work, workers, before, after)
    return attrs.evolve(figures, peer=peer.name, conditions=peer.conditions(path))


async def _until_done(worker: WorkerProcess) -> None:
    while "ended" not in await worker.receive():
        pass


async def _until_it_listens(stage: Stage, peer: Peer, server: trio.Process, port: int) -> None:
    with trio.move_on_after(START_S):
        while server.poll() is None:
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                await trio.sleep(_RETRY_S)
            else:
                await stream.aclose()
                return
    text = stage.output(peer.name).read_text("utf-8", "replace").strip().splitlines()
    raise StageFailed("\n".join([f"{peer.program} did not start:", *text[-12:]]))


def make_credentials(directory: Path) -> Credentials:
    """Make a CA and a certificate for 127.0.0.1, for one run."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    from cipherbox import pki

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def made(key: Any, subject: str) -> x509.CertificateBuilder:
        now = clock.now()
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("bench CA"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca = (
        made(ca_key, "bench CA")
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    leaf = (
        made(key, "bench")
        .add_extension(address, critical=False)
        .add_extension(x509.ExtendedKeyUsage(both), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    files = Credentials(*(directory / f"{part}.pem" for part in ("ca", "certificate", "key")))
    files.ca.write_bytes(pki.pem(ca))
    files.certificate.write_bytes(pki.pem(leaf))
    files.key.touch(0o600)
    files.key.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())  # for the peer
    )
    return files
