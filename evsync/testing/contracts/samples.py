"""Commits to append, and what must be true of every log."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from evsync.control import OWN_STREAMS
from evsync.ports import EventLog, Share, Stretch
from evsync.records import Append, Checkpoint, Commit, NewEvent, StoredEvent, command_of, event_id, new_command
from evsync.sharding.slots import slot_of

HOSTILE = (
    " ",
    ".",
    "..",
    "a.b.*.>",
    "with some spaces ",
    "'; DROP TABLE events; --",
    '"quoted" `and` \\escaped\\',
    "%_?:1$1",
    "{c42}.order7",
    "line\r\nbreak\ttab",
    "\u00e9",
    "e\u0301",  # the same letter in two code points: another stream
    "Ωmega 日本語 🦊",
    "UPPER",
    "upper",
    "12",
    "0x1f",
    "null",
    "x" * 512,
    "🦊" * 128,
)
"""Texts that a store may find hard to keep apart: all of them different, none longer than 512 bytes in UTF-8."""


def event(type: str = "users.User.Renamed", data: bytes = b"\x80", meta: str | None = None) -> NewEvent:
    """An event with some content."""
    return NewEvent(type, 1_700_000_000_000_000, data, meta)


def append(
    stream: str,
    expected_version: int = 0,
    events: int | Sequence[NewEvent] = 1,
    versions: Sequence[int] | None = None,
) -> Append:
    """An append of so many events, or of these."""
    if isinstance(events, int):
        events = [event(data=b"%d" % (expected_version + i + 1)) for i in range(events)]
    return Append(stream, slot_of(stream), expected_version, events, versions)


def given(stream: str, *versions: int) -> Commit:
    """A commit to one stream that gives the versions of its events."""
    return commit(append(stream, versions[0] - 1, len(versions), versions))


def commit(*appends: Append) -> Commit:
    """A commit of a new command."""
    return Commit(new_command(), appends)


def one(stream: str, expected_version: int = 0, events: int | Sequence[NewEvent] = 1) -> Commit:
    """A commit to one stream."""
    return commit(append(stream, expected_version, events))


def reaction(
    follower: str, position: int, *appends: Append, after: int | None = None, group: int = 0, log: str = "orders.main"
) -> Commit:
    """A commit that carries a checkpoint."""
    checkpoint = Checkpoint(log, group, "0123456789ab", position, count=position, digest=2**64 - position)
    return Commit(new_command(), appends, follower, checkpoint, after)


def rows_of(commit: Commit, *, after: int, incarnation: str) -> list[StoredEvent]:
    """The events of the commit as a log holds them whose head was `after`."""
    events = [(a, version, e) for a in commit.appends for version, e in zip(a.places, a.events, strict=True)]
    return [
        StoredEvent(
            position=after + 1 + i,
            stream=a.stream,
            version=version,
            slot=a.slot,
            type=e.type,
            time_us=e.time_us,
            id=event_id(commit.command, i),
            remaining=len(events) - 1 - i,
            incarnation=incarnation,
            data=e.data,
            meta=e.meta,
        )
        for i, (a, version, e) in enumerate(events)
    ]


async def whole_log(log: EventLog, *, limit: int = 500) -> list[StoredEvent]:
    """The log from its beginning to its end, read in steps."""
    rows: list[StoredEvent] = []
    while part := await log.read(rows[-1].position if rows else 0, limit):
        rows += part
    return rows


def check_stretch(log: Sequence[StoredEvent], after: int, share: Share, found: Stretch) -> None:
    """Assert that a stretch read behind a position is all that a share needs of it; `log` is the whole of it.

    An empty one says nothing: there may be more, to be read as a whole.
    """
    if not found.events:
        return
    end = found.events[-1].position
    behind = log[after:end]
    assert found.events[-1] == log[end - 1]
    assert log[end - 1].remaining == 0, f"the stretch behind {after} ends within a commit"
    assert len(found.events) + found.left_out == end - after, "a position is neither given nor counted"
    if found.share is None:
        assert list(found.events) == list(behind)
        return
    assert found.share.serves(share)
    assert list(found.events) == [e for e in behind if e.slot % share.of in share.groups or e.position == end]
    assert not any(e.stream.startswith(OWN_STREAMS) for e in behind), "an event of evsync's own may be left out"


def check_log(rows: Iterable[StoredEvent]) -> dict[bytes, list[StoredEvent]]:
    """Assert what is true of every log read from its beginning; returns its commits by their commands.

    Positions are 1, 2, 3, …; versions of each stream too; the events of a commit are neighbours, complete, and
    numbered by their ids.
    """
    versions: dict[str, int] = defaultdict(int)
    commits: dict[bytes, list[StoredEvent]] = {}
    remaining = 0
    for position, row in enumerate(rows, start=1):
        assert row.position == position, f"position {row.position} stands where {position} belongs"
        versions[row.stream] += 1
        assert row.version == versions[row.stream], f"version {row.version} of {row.stream!r} at {versions[row.stream]}"
        command = command_of(row.id)
        if remaining:
            assert command in commits, f"a commit ends early before position {position}"
            assert row.remaining == remaining - 1, f"a commit has a hole at position {position}"
        else:
            assert command not in commits, f"the commit at position {position} stands in the log twice"
        commits.setdefault(command, []).append(row)
        assert row.id == event_id(command, len(commits[command]) - 1), f"a wrong event id at position {position}"
        remaining = row.remaining
    assert remaining == 0, "the log ends within a commit"
    return commits
