"""The public API refuses wrong types in words, before anything else happens; and the
predecessors' samples run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cipherbox.client as api
from cipherbox.checks import WrongType, annotations_of, check_of, parameters
from cipherbox.client.publishing.files import send_file
from cipherbox.errors import InvalidRequest

SECRET = "a-secret-that-no-error-repeats"
# parameter's kind -> what a user gives by mistake
WRONG: dict[str, list[object]] = {
    "str": [None, SECRET.encode(), 7, [SECRET]],
    "bytes": [None, SECRET, 7, [SECRET.encode()]],
    "int": [None, -1, "7", 1.5, True],
    "float": [None, -0.1, "7", float("nan"), True],
    "bool": [None, 1, "yes"],
    "many": [None, 7, [SECRET.encode(), None]],
}


# What the client itself makes, and messages, which are looked at when they are published.
MADE_INSIDE = (
    "Client",
    "Consumer",
    "Publisher",
    "Confirmation",
    "Delivery",
    "JoinReport",
    "Message",
)

# what the client calls itself
INSIDE = (
    "Delivery.fill",
    *("Consumer.in_order", "Consumer.requeue", "Consumer.settled", "Consumer.take_batch"),
)


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every function and method that programs call."""
    for name in api.__all__:
        found = getattr(api, name)
        if not inspect.isclass(found):
            yield name, found
            continue
        for base in (
            found,
            *(found.__mro__[1:-1] if name == "Client" else ()),
        ):
            for method, function in vars(base).items():
                if isinstance(function, classmethod):
                    function = function.__func__
                made_inside = method == "__init__" and name in MADE_INSIDE
                made_inside |= f"{name}.{method}" in INSIDE
                if (
                    inspect.isfunction(function)
                    and not made_inside
                    and (method[0] != "_" or method == "__init__")
                ):
                    yield f"{base.__name__}.{method}", function
    yield "send_file", send_file


def cases() -> Iterator[Any]:
    for name, function in public():
        for parameter, check in parameters(function).items():
            annotation = str(annotations_of(function)[parameter])
            for kind, values in WRONG.items():
                mine = (
                    "[" in annotation
                    if kind == "many"
                    else kind in annotation.replace("[", "|[").split(" | ")
                )
                for value in values:
                    if mine and check(value):
                        yield pytest.param(
                            function,
                            parameter,
                            value,
                            id=f"{name}-{parameter}-{type(value).__name__}",
                        )


@pytest.mark.parametrize(("function", "parameter", "value"), list(cases()))
async def test_a_wrong_type_is_named(
    function: Callable[..., Any], parameter: str, value: object
) -> None:
    """``self`` is nothing at all: the check comes before everything else."""

    async def call() -> None:
        done = function(**{parameter: value})
        if inspect.iscoroutine(done):
            await done

    with pytest.raises(WrongType) as caught:
        await call()
    assert parameter in str(caught.value)
    assert "must be" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert isinstance(caught.value, InvalidRequest)
    assert isinstance(caught.value, TypeError)


def test_the_walk_goes_through_everything() -> None:
    walked = {name for name, function in public() if parameters(function)}
    assert len(walked) > 60
    for name in (
        "PublishingCalls.publish",
        "ConsumingCalls.ack",
        "open_client",
        "join",
        "SecureContext.encrypt_message",
        "TopologyCalls.bind",
        "AdminCalls.enrol",
        "AllowList.allow",
        "SecureSocket.connect",
        "SqliteSessions.__init__",
        "send_file",
        "Receiver.run",
        "Tracking.sent",
    ):
        assert name in walked, name


@pytest.mark.parametrize(
    ("annotation", "value", "says"),
    [
        ("bytes", "text", "bytes, not str: use text.encode()"),
        ("str", b"data", "str, not bytes: use data.decode()"),
        ("str | None", ["A"], "str or None, not a list: name one"),
        ("Sequence[str]", "A", "a list of str, not one str: put it in a list"),
        ("Sequence[str]", ["A", 7], "a list of str, not a list with int in it"),
        ("int", -1, "a whole number from 0 on, not -1"),
        ("int", True, "a whole number from 0 on, not bool"),
        ("Path | str", b"/x", "a path or str, not bytes: use data.decode()"),
        ("str | Sequence[str] | None", "A", ""),
        ("str | Sequence[str] | None", ("A", "B"), ""),
        (
            "Content | Sequence[Content]",
            None,
            "str or bytes or Message or a list of str or bytes or Message, not None",
        ),
    ],
)
def test_what_is_said(annotation: str, value: object, says: str) -> None:
    check = check_of(annotation)
    assert check is not None
    assert check(value) == says


def test_an_annotation_of_another_kind_is_left_alone() -> None:
    assert check_of("Callable[[int], str]") is None
    assert check_of("trio.abc.Stream") is None
    assert check_of(int) is None


# -- the predecessors' samples ---------------------------------------------------------------------


def test_the_readme_of_sibnav_runs_as_it_stands() -> None:
    from cipherbox.client import SecureContext, generate_keypair

    pub, priv = generate_keypair()
    ctx = SecureContext()
    session = ctx.create_session(b"peer-id-123")
    assert (len(pub), len(priv)) == (64, 64)
    with pytest.raises(InvalidRequest, match="handshake is not finished"):
        session.encrypt(b"too early")
    other = SecureContext()
    theirs = other.create_session(b"me")
    theirs.finish(session.begin(theirs.offer())[0])
    assert theirs.decrypt(session.encrypt(b"hello", b"ad"), b"ad") == b"hello"
    assert ctx.key_of(b"peer-id-123") == other.public_key


def test_another_under_a_known_name_is_refused(tmp_path: Path) -> None:
    from cipherbox.client import SecureContext, SqliteSessions
    from cipherbox.errors import SignatureInvalid

    store = SqliteSessions(str(tmp_path / "sessions.sqlite3"), bytes(32))
    ctx, other, mallory = SecureContext(storage=store), SecureContext(), SecureContext()
    ctx.create_session(b"peer").begin(other.create_session().offer())
    again = SecureContext(ctx.keypair, storage=store)
    with pytest.raises(SignatureInvalid, match="not the expected peer"):
        again.create_session(b"peer").begin(mallory.create_session().offer())
    again.create_session(b"peer").begin(other.create_session().offer())
    store.close()


def test_the_buffer_of_messages_is_a_setting() -> None:
    from cipherbox.client import SecureContext, SessionSettings

    ctx = SecureContext(settings=SessionSettings(max_skipped=1024))
    assert ctx.settings.max_skipped == 1024
