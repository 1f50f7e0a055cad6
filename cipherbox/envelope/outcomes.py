"""The table of outcomes that a recipient reports for an envelope or a message."""

from __future__ import annotations

import enum


class Outcome(enum.IntEnum):
    """The outcome numbers in NACK and in receipts; 0 is success."""

    OPENED = 0
    MALFORMED = 1
    UNKNOWN_VERSION = 2
    NOT_RECIPIENT = 3
    KEY_MISSING = 4
    SIGNATURE_INVALID = 5
    DECRYPTION_FAILED = 6
    COMMITMENT_MISMATCH = 7
    SENDER_NOT_VALID = 8
    HANDLER_FAILED = 9
    TOO_OLD = 10
    PLAINTEXT_MISMATCH = 11
    COMMITMENT_CHANGED = 12
    NOT_ACCEPTED = 13
    OTHER = 255


OUTCOME_CODES = {int(outcome): outcome.name.lower().replace("_", "-") for outcome in Outcome}


def outcome_code(number: int) -> str:
    """Return an outcome as programs read it, such as "key-missing".

    A number that is unknown here, from a newer version, is returned as digits.
    """
    return OUTCOME_CODES.get(number, str(number))


def outcome_words(number: int) -> str:
    """Return an outcome as it reads in a sentence, such as "key missing"."""
    code = OUTCOME_CODES.get(number)
    return f"outcome {number}" if code is None else code.replace("-", " ")
