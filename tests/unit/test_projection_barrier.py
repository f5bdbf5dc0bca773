"""Where a slot came from another log, nothing of it is read before that log is applied up to where the slot left it."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from evsync.control import SLOT_CLOSED, SLOT_OPENED, SLOTS_STREAM
from evsync.projections.running.answered_log import AnsweredLog
from evsync.projections.running.barrier import Barrier, Closed, applied_in, includes, up_to_barrier
from evsync.records import Ancestor, Checkpoint, StoredEvent, incarnation_at
from tests.projection_logs import ListReader, ListSource, stored

GROUPS = 4


def opened(position: int, slot: int, source: str, there: int, remaining: int = 0) -> StoredEvent:
    """A slot was opened that came from position `there` of another log."""
    said = {"epoch": 2, "from": source, "incarnation": "x", "position": there}
    event = stored(position, f"bank.{SLOT_OPENED}", SLOTS_STREAM, 1, remaining=remaining, **said)
    return event._replace(slot=slot)


def paid(position: int, remaining: int = 0) -> StoredEvent:
    """Any other event."""
    return stored(position, "bank.Account.Paid", "a", position, remaining=remaining, amount=1)


class Log:
    """A log that is followed, as far as the barrier looks at it."""

    def __init__(self, incarnation: str | None = "x", **positions: int) -> None:
        self.reader, self.incarnation, self.ancestry = self, incarnation, ()
        self.checkpoints = {int(g[1:]): Checkpoint("bank.a", int(g[1:]), "x", p) for g, p in positions.items()}


@given(st.integers(0, 20), st.integers(1, 20))
def test_nothing_is_given_from_where_a_slot_came_until_it_is_applied_there(applied: int, there: int) -> None:
    """What stands before is; with the place reached, all is."""
    events = [paid(1), paid(2), opened(3, 7, "bank.a", there), paid(4)]
    reach = up_to_barrier(events, lambda log, slot, closed: applied >= closed.number)
    if applied >= there:
        assert (reach.events, reach.barrier) == (events, None)
    else:
        assert (reach.events, reach.barrier) == (events[:2], Barrier("bank.a", there))
        assert "bank.a" in reach.further


def test_a_log_that_is_not_followed_yet_is_waited_for() -> None:
    """It is a shard that was added since: it has to be found first."""
    reach = up_to_barrier([opened(1, 7, "bank.b", 1)], applied_in({}, GROUPS))
    assert (list(reach.events), reach.barrier, list(reach.further)) == ([], Barrier("bank.b", 1), ["bank.b"])


def test_a_commit_that_holds_a_barrier_waits_whole() -> None:
    """Several slots are opened in one commit: the first ones wait for the last."""
    events = [paid(1), opened(2, 7, "bank.a", 3, remaining=1), opened(3, 8, "bank.c", 9), paid(4)]
    assert up_to_barrier(events, lambda log, slot, closed: closed.number <= 5).events == events[:1]
    assert up_to_barrier(events, lambda log, slot, closed: closed.number <= 9).events == events


def test_each_slot_waits_for_its_own_group() -> None:
    """Where other workers have the group, they wait for it."""
    applied = applied_in({"bank.a": Log(g3=10, g0=2)}, GROUPS)  # type: ignore[dict-item]
    for slot, waits in ((7, False), (8, True), (9, False)):  # of groups 3 and 0, and 1, which is not held
        assert (up_to_barrier([opened(1, slot, "bank.a", 5)], applied).barrier is not None) is waits


def test_what_was_applied_of_a_log_before_it_was_put_back_does_not_count() -> None:
    """The follower is ahead of the restored log: what it still lacks may stand at positions that it knows."""
    for incarnation, waits in (("x", False), (None, False), ("y", True)):
        applied = applied_in({"bank.a": Log(incarnation, g3=10)}, GROUPS)  # type: ignore[dict-item]
        assert (up_to_barrier([opened(1, 7, "bank.a", 5)], applied).barrier is not None) is waits


def test_what_was_answered_of_a_log_before_it_was_put_back_does_not_count_either() -> None:
    """A reaction waits as a projection does: events that the log has lost say nothing of those that it has now."""
    source = ListSource("bank")
    for incarnation, waits in (("x", False), (None, False), ("y", True)):
        source.incarnation = incarnation
        log = AnsweredLog(ListReader(source), "greeter", 10)
        log.seen = Checkpoint("bank.main", 0, "x", 10)
        applied = applied_in({"bank.main": log}, 1)
        assert (up_to_barrier([opened(1, 7, "bank.main", 5)], applied).barrier is not None) is waits


def test_where_a_slot_was_closed_in_what_a_log_has_lost_the_commit_of_the_restore_is_waited_for() -> None:
    """It says so again; what the log still has of the incarnation stands where it stood."""
    ancestry = (Ancestor("x", 10), Ancestor("y", 20))
    cases = (("x", 9, 9), ("x", 15, 11), ("y", 15, 15), ("y", 25, 21), ("lost", 3, 21))
    for (incarnation, number, place), position in product(cases, range(30)):
        closed = Closed("bank.a", incarnation, number, ("x",))
        checkpoint = Checkpoint("bank.a", 0, incarnation_at("z", ancestry, position), position)
        assert includes(checkpoint, closed, "z", ancestry) is (position >= place)
    assert includes(Checkpoint("bank.a", 0, "x", 9), Closed("bank.a", "x", 9), None, ancestry), "nothing is known yet"


def test_a_log_that_was_restored_since_is_waited_for_until_that_is_heard_of() -> None:
    """Its positions are taken for those of what it was; also by who has heard of an earlier restore."""
    closed = Closed("bank.a", "z", 12, ("x", "y"))
    assert not includes(Checkpoint("bank.a", 0, "x", 25), closed, "x", ())
    assert not includes(Checkpoint("bank.a", 0, "y", 25), closed, "y", (Ancestor("x", 5),))
    assert includes(Checkpoint("bank.a", 0, "z", 25), closed, "z", (Ancestor("x", 5), Ancestor("y", 10)))
    kept = Closed("bank.a", "x", 4, ("x", "y"))
    assert includes(Checkpoint("bank.a", 0, "x", 25), kept, "x", ()), "what both have stands where it stood"


def test_where_a_slot_goes_is_told() -> None:
    """So that a shard that was added is found."""
    closed = stored(1, f"bank.{SLOT_CLOSED}", SLOTS_STREAM, 1, epoch=2, to="b")
    reach = up_to_barrier([closed, paid(2)], lambda log, slot, closed: False)
    assert (list(reach.events), list(reach.further)) == ([closed, paid(2)], ["bank.b"])
