"""When HQ misses its standby: it saw one, or was one, and has had none for a while."""

from __future__ import annotations

from cipherbox.server.app import STANDBY_S, STOOD_BY_S
from cipherbox.server.operations.standbys import MISSED_S, Standbys, Waiting
from cipherbox.store.port import Standby
from cipherbox.store.postgres import lease
from cipherbox.store.waiting import WaitingSession

ONE, OTHER = Standby("hq2/7", "10.0.0.2"), Standby("hq3/9", "")


def test_a_single_hq_misses_nobody() -> None:
    now = [0.0]
    standbys = Standbys(lambda: now[0])
    for _ in range(3):
        now[0] += MISSED_S
        standbys.look([])
        assert (standbys.rows(), standbys.missed_s()) == ([], 0.0)


def test_one_that_was_seen_is_missed_after_a_while_and_until_another_waits() -> None:
    now = [100.0]
    standbys = Standbys(lambda: now[0])
    standbys.look([OTHER, ONE])
    now[0] += 5
    standbys.look([ONE])
    assert standbys.rows() == [Waiting(*ONE, 5.0)]
    standbys.look([])
    now[0] += MISSED_S - 1
    standbys.look([])
    assert standbys.missed_s() == 0.0
    now[0] += 1
    assert standbys.missed_s() == MISSED_S
    standbys.look([OTHER])
    assert (standbys.rows(), standbys.missed_s()) == ([Waiting(*OTHER, 0.0)], 0.0)


def test_an_hq_that_took_over_expects_the_other_back() -> None:
    now = [0.0]
    standbys = Standbys(lambda: now[0])
    standbys.expect()
    standbys.look([])
    now[0] += MISSED_S
    standbys.look([])
    assert standbys.missed_s() == MISSED_S
    standbys.look([ONE])
    assert standbys.missed_s() == 0.0


def test_how_long_an_hq_waited_is_from_its_first_session_to_its_last() -> None:
    """A single HQ that was killed waits for its own lease to end, and was no standby."""
    now, closed = [0.0], list[str]()

    class Session:
        def __init__(self, name: str) -> None:
            self.name = name

        def close(self) -> None:
            closed.append(self.name)

    waiting = WaitingSession(lambda: now[0])
    waiting.close()
    assert waiting.waited_s == 0
    for name in "abc":
        waiting.keep(Session(name))
        now[0] += 10
    assert (waiting.waited_s, closed) == (20.0, ["a", "b"])
    waiting.close()
    assert closed == ["a", "b", "c"]
    assert STOOD_BY_S > lease.LEASE_S + 2 * STANDBY_S
