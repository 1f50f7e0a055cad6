"""HQ's own commands to the broker, as connection 0, and their answers."""

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
    """HQ's pending commands; ``post`` queues one."""

    def __init__(self, post: Callable[[AnyCommand], None]) -> None:
        self._post = post
        self._open: dict[int, Call] = {}
        self._next = 1

    async def call(self, make: Callable[[int], AnyCommand]) -> Call:
        """Post what ``make`` returns for a correlation id and wait for the answer; raise
        its error.
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
        """Pass answers to the tasks that wait for them."""
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
