"""What was carried to a CA and back by an earlier version is read as before."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest

from cipherbox import pki
from cipherbox.errors import InvalidRequest, WrongPassword
from cipherbox.pki.revocation_lists import check_crl
from cipherbox.portable import write_private
from cipherbox.sealing import key_file as keyfile
from cipherbox.server.ca.offline import (
    CA_KEY,
    ISSUING_KEY,
    ROOT_KEY,
    OfflineCa,
    read_requests,
    sign_offline,
)
from cipherbox.server.ca.signed_responses import for_hq, issuing_chain, read_signed
from tests.golden import files

GOLDEN = files.read("carried")
AT = datetime.fromtimestamp(GOLDEN["made_at"] / 1000, UTC)


@pytest.fixture
def vault(tmp_path: Path) -> OfflineCa:
    for name, data in GOLDEN["directory"].items():
        write_private(tmp_path / name, bytes.fromhex(data))
    return OfflineCa(tmp_path, bytes.fromhex(GOLDEN["ca_key"]))


def test_the_directory_opens_with_its_password(vault: OfflineCa) -> None:
    sealed = (vault.directory / CA_KEY).read_bytes()
    assert len(sealed) == 102
    assert keyfile.decrypt(sealed, password=GOLDEN["password"].encode()) == vault.key
    with pytest.raises(WrongPassword):
        keyfile.decrypt(sealed, password=b"another")
    for name, certificate in ((ROOT_KEY, vault.root()), (ISSUING_KEY, vault.chain()[0])):
        assert pki.spki_of(certificate) == pki.spki(
            vault.authority(name, certificate).key.public_key()
        )
    assert vault.key.hex() not in repr(vault)


def test_requests_are_read_and_signed(vault: OfflineCa) -> None:
    document = GOLDEN["requests.json"].encode()
    found = read_requests(document)
    assert {r.client_id: r.number for r in found} == GOLDEN["numbers"]
    assert [(r.client_id, r.hq) for r in found] == [("FL-LAB", ""), ("HQ", "DC-HQ")]
    signed = read_signed(sign_offline(vault, document))
    assert [pki.spki_of(c) for c in signed.leaves] == [
        pki.spki(pki.key_of_csr(r.csr)) for r in found
    ]
    assert [for_hq(c) for c in signed.leaves] == [False, True]
    plain = orjson.loads(document)
    for wrong in (
        {**plain, "root": "00" * 32},
        {**plain, "format": "x"},
        {**plain, "requests": [{}]},
    ):
        with pytest.raises(InvalidRequest):
            sign_offline(vault, orjson.dumps(wrong))


def test_the_answer_is_read(vault: OfflineCa) -> None:
    signed = read_signed(GOLDEN["signed.json"].encode())
    chain = issuing_chain(signed, pki.spki_of(vault.chain()[0]), vault.root())
    client, server = signed.leaves
    assert pki.common_name(pki.verify_chain([client, *chain], vault.root(), AT)) == "FL-LAB"
    assert (
        pki.common_name(pki.verify_chain([server, *chain], vault.root(), AT, pki.SERVER)) == "DC-HQ"
    )
    (crl,) = signed.lists
    says = check_crl(crl, chain[0], AT, GOLDEN["crl_number"])
    assert (says.number, says.revoked) == (7, dict([GOLDEN["revoked"]]))
    assert issuing_chain(signed, b"another", vault.root()) == []
    older = {k: v for k, v in orjson.loads(GOLDEN["signed.json"]).items() if k != "issuing"}
    assert read_signed(orjson.dumps(older)) == signed  # as version 0.4 wrote it
