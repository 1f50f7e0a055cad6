"""How easily a new password is guessed, by zxcvbn: it knows leaked passwords, words, names, dates
and keyboards.

A password is refused below score 3 of 4, which stands for 10^8 guesses.  Each guess costs an
attacker who has the file 64 MiB and about 0.1 s of Argon2id, so that is most of a CPU year.  There
is no way around it: whoever wants no password takes none, which is said wherever it matters, and a
password that is guessed in an hour only looks like one.
"""

from __future__ import annotations

from collections.abc import Sequence

from cipherbox.client.keys.local_key import Password, password_bytes
from cipherbox.errors import WeakPassword

LEAST = 3  # of 0 to 4
_LOOKED_AT = 72  # characters; zxcvbn takes no more, and no attacker guesses so many
_ADVICE = "four uncommon words that have nothing to do with each other are enough"


def check_strength(
    password: Password, about: Sequence[str] = (), where: str = "the password"
) -> bytes:
    """A password somebody chose, as bytes; WeakPassword says why it is refused and what would be
    better.

    ``about``: words that an attacker knows, such as the client id.
    """
    raw = password_bytes(password, where)
    reason = weakness(raw, about)
    if reason:
        raise WeakPassword(f"{where} is too easy to guess: {reason}")
    return raw


def weakness(raw: bytes, about: Sequence[str] = ()) -> str:
    """Why a password is too easy to guess, and what to do; empty for a good one.  It never
    quotes the password.
    """
    from zxcvbn import zxcvbn

    try:
        text = raw.decode()
    except UnicodeDecodeError:  # a file of random bytes is a password too
        text = raw.decode("latin-1")
    found = zxcvbn(text[:_LOOKED_AT], user_inputs=["cipherbox", *about])
    if found["score"] >= LEAST:
        return ""
    guesses, feedback = float(found["guesses"]), found["feedback"]
    said = [feedback["warning"] or _guesses(guesses), *feedback["suggestions"]]
    return " ".join(one.rstrip(".") + "." for one in said) + f" For example, {_ADVICE}"


def _guesses(guesses: float) -> str:
    return f"an attacker needs about {guesses:,.0f} guesses"
