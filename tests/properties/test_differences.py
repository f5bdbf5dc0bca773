"""Sums tell which events are missing, doubled, exchanged or passed over, whichever they are."""

from __future__ import annotations

from hashlib import blake2b

from hypothesis import assume, given
from hypothesis import strategies as st

from evsync.projections.checking.difference import Difference, difference

MODULUS = 1 << 64
shares = st.lists(st.integers(0, MODULUS - 1), min_size=1, max_size=40, unique=True)


def compare(found: list[int], due: int, applied: list[int]) -> Difference | None:
    """What is told of a checkpoint that counts `applied`."""
    return difference(found, due, len(applied), sum(applied) % MODULUS)


def hashes(seed: int, size: int) -> list[int]:
    """Shares as events have them. Numbers that hypothesis likes (0, 1, 2, …) have sums that coincide."""
    return [int.from_bytes(blake2b(b"%d %d" % (seed, i), digest_size=8).digest(), "big") for i in range(size)]


@given(shares, st.data())
def test_exactly_these_events_once_is_no_difference(found: list[int], data: st.DataObject) -> None:
    """However many lie behind the checkpoint."""
    due = data.draw(st.integers(0, len(found)))
    assert compare(found, due, found[:due]) is None


@given(st.integers(0, 10**6), st.integers(1, 40), st.data())
def test_a_run_that_is_missing_or_doubled_is_named(seed: int, size: int, data: st.DataObject) -> None:
    """One event or neighbours, such as a batch."""
    found = hashes(seed, size)
    start = data.draw(st.integers(0, size - 1))
    end = data.draw(st.integers(start + 1, size))
    assert compare(found, size, found + found[start:end]) == Difference("doubled", range(start, end))
    missing = compare(found, size, found[:start] + found[end:])
    if end == size:
        assert missing == Difference("moved", count=start)
    else:
        assert missing == Difference("missing", range(start, end))


@given(st.integers(0, 10**6), st.integers(4, 40), st.data())
def test_two_events_anywhere_are_named(seed: int, size: int, data: st.DataObject) -> None:
    """Both missing, both doubled, or one instead of the other."""
    found = hashes(seed, size)
    a = data.draw(st.integers(0, size - 4))
    b = data.draw(st.integers(a + 2, size - 2))
    without = [s for i, s in enumerate(found) if i not in (a, b)]
    assert compare(found, size, without) == Difference("missing", (a, b))
    assert compare(found, size, [*found, found[a], found[b]]) == Difference("doubled", (a, b))
    without_b = [s for i, s in enumerate(found) if i != b]
    assert compare(found, size, [*without_b, found[a]]) == Difference("exchanged", (a, b))


@given(st.integers(0, 10**6), st.integers(2, 40), st.data())
def test_a_checkpoint_that_was_moved_is_known_by_what_it_counts(seed: int, size: int, data: st.DataObject) -> None:
    """Ahead of what was applied or behind it."""
    found = hashes(seed, size)
    applied, due = data.draw(st.integers(0, size)), data.draw(st.integers(0, size))
    assume(applied != due)
    assert compare(found, due, found[:applied]) == Difference("moved", count=applied)


@given(st.integers(0, 10**6), st.integers(2, 40), st.data())
def test_what_sums_cannot_tell_is_said_to_be_so(seed: int, size: int, data: st.DataObject) -> None:
    """An event that is another by now, one that nobody has, a count alone, and several things at once."""
    *found, stranger = hashes(seed, size + 1)
    i = data.draw(st.integers(0, size - 1))
    assert compare(found, size, [*found[:i], stranger, *found[i + 1 :]]) == Difference("altered")
    assert compare(found, size, [*found, stranger]) == Difference("unknown")
    assert difference(found, size, size + 1, sum(found) % MODULUS) == Difference("count", count=size + 1)
    assert compare(found, size, [*found, stranger, stranger ^ 5, found[i]]) == Difference("unexplained")
