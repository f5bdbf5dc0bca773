"""What must be true of a log is found out by reading it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from eventsourcing.persistence import StoredEvent as LibraryEvent
from hypothesis import given
from hypothesis import strategies as st

from evsync.inspection import Unreadable
from evsync.interop.states import encode
from evsync.operations.store_check import LogCheck, Problem, reader
from evsync.records import Commit, LogIdentity, StoredEvent, new_command
from evsync.sharding.slots import slot_of
from evsync.testing.contracts.samples import append, event, rows_of

IDENTITY = LogIdentity("users", "main", "0123456789ab")
Edit = Callable[[StoredEvent], StoredEvent]
EDITS: dict[str, Edit] = {
    "versions": lambda e: e._replace(version=e.version + 1),
    "commits": lambda e: e._replace(remaining=e.remaining + 1),
    "ids": lambda e: e._replace(id=e.id[:15] + bytes([e.id[15] ^ 1])),
    "slots": lambda e: e._replace(slot=(e.slot + 1) % 256),
    "incarnation": lambda e: e._replace(incarnation="ba9876543210"),
    "readability": lambda e: e._replace(data=e.data + b"\xc1"),
}
sketches = st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), min_size=1, max_size=6)
"""Commits: the streams of their events."""


def log_of(commits: Sequence[Sequence[str]]) -> list[StoredEvent]:
    """A log as it must be."""
    rows: list[StoredEvent] = []
    versions: dict[str, int] = {}
    for streams in commits:
        appends = []
        for stream in streams:
            appends.append(append(stream, versions.get(stream, 0), [event()]))
            versions[stream] = versions.get(stream, 0) + 1
        rows += rows_of(Commit(new_command(), appends), after=len(rows), incarnation=IDENTITY.incarnation)
    return rows


def by_library(version: int, position: int) -> StoredEvent:
    """An event of an eventsourcing application, a commit of its own."""
    new = encode("users", LibraryEvent("ada", version, "users.domain:User.Renamed", b'{"name":"Ada"}'))
    a = append("ada", version - 1, [new], [version])
    return rows_of(Commit(new_command(), [a]), after=position - 1, incarnation=IDENTITY.incarnation)[0]


def problems_of(rows: Sequence[StoredEvent | Unreadable], head: int) -> list[Problem]:
    """All that is wrong."""
    check = LogCheck(IDENTITY, reader(None))
    found = [problem for row in rows for problem in check.see(row)]
    return found + list(check.end(head))


@given(sketches)
def test_a_log_that_keeps_the_laws_has_no_problems(commits: list[list[str]]) -> None:
    """Whatever streams its commits hold."""
    rows = log_of(commits)
    assert problems_of(rows, len(rows)) == []


@pytest.mark.parametrize("law", EDITS)
@given(commits=sketches, choice=st.integers(min_value=0))
def test_every_change_of_an_event_is_found_where_it_is(law: str, commits: list[list[str]], choice: int) -> None:
    """The first problem is at the event, or at the next one, and names the law."""
    rows = log_of(commits)
    at = choice % len(rows)
    rows[at] = EDITS[law](rows[at])
    found = problems_of(rows, len(rows))
    assert found
    assert found[0].position in (at + 1, at + 2)
    assert law in {p.law for p in found}


@given(commits=sketches, choice=st.integers(min_value=0))
def test_every_missing_event_is_found_where_it_was(commits: list[list[str]], choice: int) -> None:
    """In the middle by its neighbour, at the end by the head."""
    rows = log_of(commits)
    at = choice % len(rows)
    found = problems_of(rows[:at] + rows[at + 1 :], len(rows))
    assert (found[0].position, found[0].law) == (at + 1, "positions")


@given(st.permutations([0, 1, 2, 5, 9]), st.integers(0, 4))
def test_versions_that_another_library_gave_need_only_differ(versions: list[int], choice: int) -> None:
    """Gaps and any order are its own affair; the same version twice is not."""
    rows = [by_library(version, position) for position, version in enumerate(versions, 1)]
    assert problems_of(rows, 5) == []
    [problem] = problems_of([*rows, by_library(versions[choice], 6)], 6)
    assert (problem.position, problem.law) == (6, "versions")


def test_a_native_event_behind_given_versions_goes_on_at_the_greatest() -> None:
    """An append that states the version it expects does so wherever the stream stands."""
    first = by_library(7, 1)
    native = rows_of(Commit(new_command(), [append("ada", 7)]), after=1, incarnation=IDENTITY.incarnation)[0]
    native = native._replace(data=b"\x80")
    assert problems_of([first, native], 2) == []
    [problem] = problems_of([first, native._replace(version=9)], 2)
    assert (problem.position, problem.law) == (2, "versions")


def test_what_is_no_event_is_told_and_passed_over() -> None:
    """Behind it, what does not depend on it is judged as ever."""
    rows: list[StoredEvent | Unreadable] = [*log_of([["a"], ["b"], ["a", "b"]])]
    rows[1] = Unreadable(2, "a message that nobody wrote")
    rows[3] = log_of([["b"]])[0]._replace(position=4, time_us="now")  # type: ignore[arg-type]  # SQLite takes it
    found = problems_of(rows, 4)
    assert [(p.position, p.law) for p in found] == [(2, "readability"), (4, "readability")]
    assert "a message that nobody wrote" in found[0].text
    assert "time_us is 'now'" in found[1].text
    assert all(slot_of(e.stream) == e.slot for e in rows if isinstance(e, StoredEvent))
