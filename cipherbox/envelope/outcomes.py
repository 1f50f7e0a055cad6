"""Outcomes: what a recipient says of an envelope or a message."""

from __future__ import annotations

import enum


class Outcome(enum.IntEnum):
    """What became of an envelope or a message at its recipient; used in NACK and in receipts."""

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
