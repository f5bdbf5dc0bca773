"""Which appends are made on the event loop: a pure decision from how long the last ones took."""

from __future__ import annotations

from evsync.records import Append, Commit, NewEvent, new_command
from evsync.stores.sqlite.pace import (
    APPENDS_BETWEEN_CHECKPOINTS,
    BYTES_AT_ONCE,
    COMMITS_AT_ONCE,
    HICCUP_S,
    SLOW_FOR_S,
    STALL_S,
    STALLED_AT_MOST_S,
    Pace,
)


def _commits(count: int, size_bytes: int = 10) -> list[Commit]:
    event = NewEvent("shop.Order.Placed", 0, bytes(size_bytes), None)
    return [Commit(new_command(), [Append(f"order-{i}", 0, 0, [event])]) for i in range(count)]


def _append(pace: Pace, at: float, seconds: float) -> None:
    assert pace.allows(_commits(1), at)
    pace.took(at, at + seconds)


def test_many_commits_and_large_ones_are_not_made_on_the_event_loop() -> None:
    """They would hold it up, however quick the disk is."""
    pace = Pace(on_loop=True)
    assert pace.allows(_commits(COMMITS_AT_ONCE), 100)
    assert not pace.allows(_commits(COMMITS_AT_ONCE + 1), 100)
    assert not pace.allows(_commits(1, BYTES_AT_ONCE + 1), 100)
    assert not Pace(on_loop=False).allows(_commits(1), 100)


def test_a_hiccup_changes_nothing() -> None:
    """A process that had to wait for a processor has learned nothing of its disk."""
    pace = Pace(on_loop=True)
    for second in range(10):
        _append(pace, 100 + second, 0.0001)
        _append(pace, 100.1 + second, 0.05)
        for tenth in range(5):
            _append(pace, 100.2 + second + tenth / 100, 0.0001)


def test_a_slow_disk_is_left_to_the_thread() -> None:
    """After four slow appends in a row, for a second."""
    pace = Pace(on_loop=True)
    for i in range(4):
        _append(pace, 100 + i / 10, HICCUP_S)
    ended = 100.3 + HICCUP_S
    assert not pace.allows(_commits(1), ended + SLOW_FOR_S - 0.01)
    assert pace.allows(_commits(1), ended + SLOW_FOR_S + 0.01)


def test_one_stall_is_enough_and_the_next_tries_come_more_and_more_rarely() -> None:
    """Each try stalls the whole event loop."""
    pace, at, pauses = Pace(on_loop=True), 100.0, []
    for _ in range(12):
        _append(pace, at, 2 * STALL_S)
        at += 2 * STALL_S
        pauses.append(next(s for s in (2**n for n in range(12)) if pace.allows(_commits(1), at + min(s, 60) + 0.01)))
        at += min(pauses[-1], STALLED_AT_MOST_S) + 0.02
    assert pauses == [1, 2, 4, 8, 16, 32, *[64] * 6]


def test_a_disk_that_was_quick_for_as_long_again_is_taken_for_a_quick_one() -> None:
    """The next stall then costs a second in the thread, no more."""
    pace = Pace(on_loop=True)
    _append(pace, 100, 1)
    _append(pace, 102.1, 1)
    assert not pace.allows(_commits(1), 105)
    _append(pace, 120, 1)
    assert pace.allows(_commits(1), 121 + SLOW_FOR_S + 0.01)


def test_a_checkpoint_is_due_once_after_so_many_appends() -> None:
    """Counted over all appends that were made on the event loop."""
    pace, due = Pace(on_loop=True), []
    for i in range(2 * APPENDS_BETWEEN_CHECKPOINTS):
        _append(pace, 100 + i, 0.0001)
        if pace.checkpoint_due():
            due.append(i + 1)
    assert due == [APPENDS_BETWEEN_CHECKPOINTS, 2 * APPENDS_BETWEEN_CHECKPOINTS]
