"""Check how easily a new password is guessed with zxcvbn, which knows leaked passwords, words,
names, dates and keyboard patterns.

A password below score 3 of 4, which stands for 10^8 guesses, is refused. Each guess costs an
attacker who has the file 64 MiB and about 0.1 s of Argon2id, so 10^8 guesses take most of a CPU
year. The check cannot be overridden: a home without a password is an explicit choice, while a
password that is guessed within an hour only looks like protection.
"""

from __future__ import annotations

from collections.abc import Sequence

from cipherbox.client.keys.local_key import Password, password_bytes
from cipherbox.errors import WeakPassword

MIN_SCORE = 3  # of 0 to 4
_CHECKED = 72  # characters; zxcvbn's limit, and beyond guessing
_ADVICE = "four unrelated uncommon words are enough"


def check_strength(
    password: Password, about: Sequence[str] = (), where: str = "the password"
) -> bytes:
    """Return a new password as bytes. Raise WeakPassword with the reason and advice.

    ``about`` has words that an attacker knows, such as the client id.
    """
    raw = password_bytes(password, where)
    reason = weakness(raw, about)
    if reason:
        raise WeakPassword(f"{where} is too easy to guess: {reason}")
    return raw


def weakness(raw: bytes, about: Sequence[str] = ()) -> str:
    """Return why a password is too easy to guess, with advice, or nothing for a strong one. The
    text never quotes the password.
    """
    from zxcvbn import zxcvbn

    try:
        text = raw.decode()
    except UnicodeDecodeError:  # a file of random bytes is a password too
        text = raw.decode("latin-1")
    found = zxcvbn(text[:_CHECKED], user_inputs=["cipherbox", *about])
    if found["score"] >= MIN_SCORE:
        return ""
    guesses, feedback = float(found["guesses"]), found["feedback"]
    reasons = [feedback["warning"] or _guesses(guesses), *feedback["suggestions"]]
    return " ".join(one.rstrip(".") + "." for one in reasons) + f" For example, {_ADVICE}"


def _guesses(guesses: float) -> str:
    return f"an attacker needs about {guesses:,.0f} guesses"
