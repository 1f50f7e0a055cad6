"""Each table of kinds is walked once, row by row, through golden bytes, manual and command line."""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

import click
import pytest

from cipherbox.cli import main
from cipherbox.client.options import body_cipher, stanza_type
from cipherbox.config.settings import SIGNATURES
from cipherbox.envelope import receipt as receipts
from cipherbox.envelope.bundle import BundleKey, KeyBundle, best_key, decode_bundle
from cipherbox.envelope.layout import split
from cipherbox.envelope.outcomes import Outcome, outcome_code, outcome_words
from cipherbox.envelope.stanza_types import STANZAS, StanzaFormat, StanzaType
from cipherbox.envelope.suites import (
    BODY_CIPHERS,
    SIGN_KEYS,
    SIGNATURE_SIZES,
    SUITE_NAMES,
    BodyCipher,
    HashSuite,
    KeyUsage,
    SignAlgorithm,
    SignatureSuite,
)
from cipherbox.errors import BundleError, BundleMalformed
from cipherbox.sealing.identity import DecryptKey, Identity
from cipherbox.sealing.stanzas import SCHEMES, size
from tests.golden import files


def page(name: str) -> str:
    return (resources.files("cipherbox") / "manual" / f"{name}.md").read_text("utf-8")


def table(name: str, head: str) -> list[list[str]]:
    """The rows of the table with this head in a page of the manual."""
    _, found, rest = page(name).partition(f"| {head} |\n")
    assert found, (name, head)
    lines = rest.partition("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def choices(command: str, option: str) -> list[str]:
    """What an option of a command takes."""
    found = main.cli
    for word in command.split():
        assert isinstance(found, click.Group)
        inner = found.get_command(click.Context(found), word)
        assert inner is not None
        found = inner
    kind = next(p.type for p in found.params if option in p.opts)
    assert isinstance(kind, click.Choice)
    return list(kind.choices)


def golden() -> list[bytes]:
    """Every golden envelope that opens."""
    rows = [row for name in ("envelopes", "rsa") for row in files.read(name)["opens"]]
    return [bytes.fromhex(row["envelope"]) for row in (*rows, files.read("sessions")["envelope"])]


def bundled_keys() -> list[BundleKey]:
    """Every public key in a golden bundle that is good."""
    found = [row["bundle"] for row in files.read("bundles")["bundles"]]
    found += files.read("rsa")["recipient_bundles"].values()
    return [key for raw in found for key in decode_bundle(bytes.fromhex(raw)).keys]


def numbers(text: str) -> set[int]:
    return {int(one.replace(",", "")) for one in re.findall(r"\d[\d,]*", text)}


def bundle_of(*keys: BundleKey) -> KeyBundle:
    rest: Any = ("A", 1, 1, 2, bytes(32), keys, (b"",), b"", 1, b"", 0, b"", bytes(32), b"")
    return KeyBundle(*rest)


@pytest.mark.parametrize("row", STANZAS.values(), ids=lambda row: row.name)
def test_a_stanza_type_is_the_same_everywhere(row: StanzaFormat) -> None:
    entries = [e for raw in golden() for e in split(raw).prefix.recipients]
    lengths = {e.stanza_length for e in entries if e.stanza_type == row.type}
    assert lengths
    assert row.least <= min(lengths) <= max(lengths) <= row.most

    manual = {
        int(line[0]): line[1:] for line in table("envelope", "type | name | public key | stanza")
    }
    name, public, stanza = manual[row.type]
    assert name == row.name
    told = numbers(stanza)
    assert lengths <= told or {row.least, row.most} <= told
    if row.public_bytes:
        assert sum(map(int, re.findall(r"\((\d+)\)", public.replace(",", "")))) == row.public_bytes

    assert choices("send", "--wrap")[row.type - 1] == row.option
    assert choices("bench", "--wrap")[row.type - 1] == row.option
    assert stanza_type(row.name) == stanza_type(int(row.type)) == row.type
    assert f'"{row.name}"' in page("python-api")


@pytest.mark.parametrize("row", STANZAS.values(), ids=lambda row: row.name)
def test_a_stanza_type_has_keys_in_bundles_or_none(row: StanzaFormat) -> None:
    found = [k.public for k in bundled_keys() if (k.usage, k.algorithm) == (1, row.type)]
    assert bool(found) == row.in_bundles == (row.type in SCHEMES)
    made = Identity.generate("A").current
    assert row.default == (row.type in [key.algorithm for key in made])
    if row.check_public is None:
        with pytest.raises(BundleError):
            best_key(bundle_of(BundleKey(KeyUsage.ENCRYPT, row.type, bytes(32))))
        return
    fresh = DecryptKey.from_seed(row.type, SCHEMES[row.type].generate())
    for public in (*found, fresh.public):
        row.check_public(public)
        assert row.public_bytes in (None, len(public))
        assert row.least <= size(row.type, public) <= row.most
        key = BundleKey(KeyUsage.ENCRYPT, row.type, public)
        assert best_key(bundle_of(key)) == key
    with pytest.raises((ValueError, BundleMalformed)):
        row.check_public(bytes(len(fresh.public)))


def test_the_table_of_stanza_types_has_every_number_once() -> None:
    assert list(STANZAS) == list(StanzaType)
    assert {int(line[0]) for line in table("envelope", "type | name | public key | stanza")} == set(
        STANZAS
    )
    assert len({row.name for row in STANZAS.values()}) == len(STANZAS)
    assert len({row.option for row in STANZAS.values()}) == len(STANZAS)
    quantum = {row.name for row in STANZAS.values() if not row.post_quantum}
    (line,) = [one for one in page("security").splitlines() if "future quantum computer" in one]
    assert set(re.findall(r"`(hpke[\w-]*|rsa-oaep|ratchet)`", line)) == quantum


@pytest.mark.parametrize("cipher", BodyCipher, ids=lambda cipher: cipher.name)
def test_a_body_cipher_is_the_same_everywhere(cipher: BodyCipher) -> None:
    assert cipher in {split(raw).prefix.body_cipher for raw in golden()}
    (name,) = [name for name, number in BODY_CIPHERS.items() if number == cipher]
    assert body_cipher(name) == body_cipher(int(cipher)) == cipher
    (line,) = [one for one in page("envelope").splitlines() if "| body cipher:" in one]
    assert f"{int(cipher)} {name}" in line.lower()
    assert f'"{name}"' in page("python-api")


@pytest.mark.parametrize("suite", SignatureSuite, ids=lambda suite: suite.name)
def test_a_signature_suite_is_the_same_everywhere(suite: SignatureSuite) -> None:
    raw = next(one for one in golden() if split(one).prefix.signature_suite == suite)
    at = split(raw)
    assert at.total - at.signatures_at == SIGNATURE_SIZES[suite]
    made = Identity.generate("A", suite)
    assert made.suite == suite
    assert len(made.sign("receipt", bytes(32))) == SIGNATURE_SIZES[suite]
    name = SUITE_NAMES[suite]
    assert SIGNATURES[suite - 1] == name
    assert choices("join", "--signatures")[suite - 1] == name
    assert choices("keys rotate", "--signatures")[suite - 1] == name
    assert name in page("configuration")
    (line,) = [one for one in page("envelope").splitlines() if "| signature suite:" in one]
    told = line.lower().replace("-", "").replace(" + ", "+")
    assert re.search(rf"\b{int(suite)} {re.escape(name)}( \||,)", told)
    (line,) = [
        one for one in page("envelope").splitlines() if one.startswith(f"| {suite} | Ed25519 (")
    ]
    assert (
        sum(map(int, re.findall(r"\(([\d,]+) bytes", line.replace(",", ""))))
        == SIGNATURE_SIZES[suite]
    )


@pytest.mark.parametrize("algorithm", SignAlgorithm, ids=lambda one: one.name)
def test_a_signing_key_is_the_same_everywhere(algorithm: SignAlgorithm) -> None:
    row = SIGN_KEYS[algorithm]
    found = [k.public for k in bundled_keys() if (k.usage, k.algorithm) == (2, algorithm)]
    made = Identity.generate("A", SignatureSuite.ED25519_MLDSA65).sign_keys[algorithm]
    assert {len(public) for public in (*found, made)} == {row.public_bytes}
    (said,) = [
        " ".join(one.split())
        for one in page("bundle").split("\n\n")
        if one.startswith("Usage 1 is encryption")
    ]
    assert re.search(rf"\b{int(algorithm)} [\w-]+ \({row.public_bytes:,} bytes\)", said)


def test_there_is_one_hash() -> None:
    assert list(HashSuite) == [1]
    (line,) = [
        one for one in page("envelope").splitlines() if "hash suite" in one and "| 56 |" in one
    ]
    assert "1 SHA-256" in line


@pytest.mark.parametrize("outcome", Outcome, ids=lambda outcome: outcome.name)
def test_an_outcome_is_the_same_everywhere(outcome: Outcome) -> None:
    manual = {int(number): meaning for number, meaning in table("receipt", "number | meaning")}
    assert set(manual) == set(Outcome)
    said = re.sub(r"\ba ", "", manual[outcome].partition(":")[0])
    assert said == outcome_words(outcome) == outcome_code(outcome).replace("-", " ")
    leaf = receipts.Leaf("A", bytes(16), 0, bytes(32), 5, outcome, (outcome, outcome))
    raw = leaf.encode()
    assert receipts.decode_leaf(raw, 0) == (leaf, len(raw))


def test_an_unknown_outcome_keeps_its_number() -> None:
    assert outcome_code(14) == "14"
    assert outcome_words(14) == "outcome 14"
