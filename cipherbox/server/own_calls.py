"""What HQ itself asks of the broker, as connection 0: commands that await their answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import trio

from cipherbox.broker.model import Answer, AnyCommand, Failed


class Call:
    """One command, its answer, and the proof of its entry in the signed log."""

    __slots__ = ("answer", "done", "proof")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.answer: Answer | None = None
        self.proof = b""


class OwnCalls:
    """See the module.  ``post`` queues a command."""

    def __init__(self, post: Callable[[AnyCommand], None]) -> None:
        self._post = post
        self._open: dict[int, Call] = {}
        self._next = 1

    async def call(self, make: Callable[[int], AnyCommand]) -> Call:
        """Post what ``make`` returns for a correlation id, and wait for its answer; a refusal is
        raised.
        """
        number = self._next
        self._next += 1
        call = self._open[number] = Call()
        try:
            self._post(make(number))
            await call.done.wait()
        finally:
            del self._open[number]
        if isinstance(call.answer, Failed):
            raise call.answer.error
        return call

    def answer(self, answers: Sequence[Answer]) -> None:
        """Pass answers on to those who wait for them."""
        for answer in answers:
            call = self._open.get(answer.correlation)
            if call is not None:
                call.answer = answer
                call.done.set()

    def prove(self, proofs: Mapping[int, bytes]) -> None:
        """Keep proofs, by correlation id, for the answers that follow."""
        for correlation, proof in proofs.items():
            if correlation in self._open:
                self._open[correlation].proof = proof
