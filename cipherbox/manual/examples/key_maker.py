"""key_maker: generate this client's keys, and enrol it at HQ with a token from the admin.

    cipherbox python key_maker.py HOME TOKEN_FILE PUBLIC_FILE

The keys are generated on this machine and never leave HOME.  The public key bundle is written to
PUBLIC_FILE and is not secret.  Two people compare the printed fingerprint by telephone.
"""

from __future__ import annotations

import sys

import trio

from cipherbox.client import join, open_client
from cipherbox.envelope.bundle import fingerprint


async def main(home: str, token_file: str, public_file: str) -> None:
    report = await join(home, await trio.Path(token_file).read_text())
    print(
        f"{report.client_id} is enrolled at {report.address}; its keys are stored in {report.home}"
    )
    async with open_client(home) as client:
        assert client.home.identity is not None  # an admin's home has none
        bundle = client.home.identity.bundle  # distributed by HQ to this client's senders
        assert bundle is not None
        await trio.Path(public_file).write_bytes(bundle.raw)
        print(f"The public keys are in {public_file}; their fingerprint is {fingerprint(bundle)}")


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], sys.argv[3])
