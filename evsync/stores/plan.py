"""What an append will do, decided before anything is written: pure, and the same for every kind of store.

A store locks its position counter, looks up what the plan needs to know, asks for the plan, and writes it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from evsync.errors import ConfigurationError, Conflict, EncodingError, SlotMoved
from evsync.records import (
    Checkpoint,
    Commit,
    LogIdentity,
    SlotState,
    StoredEvent,
    as_stored_event,
    event_id,
)

MAX_COMMIT_EVENTS = 65_536
"""An event's index in its commit is 16 bits of its id."""

CheckpointKey = tuple[str, str, int]
"""Follower, log, group."""
Place = tuple[str, int]
"""Stream, version."""


class Plan(NamedTuple):
    """What one append writes, and what it answers."""

    outcomes: list[int | Conflict]
    """Per commit: the position of its last event (the head, if it has none), or the Conflict that keeps it out."""
    rows: list[StoredEvent]
    """The events to write, in the order of their positions."""
    checkpoints: dict[CheckpointKey, Checkpoint]
    """The checkpoints to write, the last one per key."""
    head: int
    """The head of the log once this is written."""


def streams_of(commits: Iterable[Commit]) -> list[str]:
    """The streams whose versions `plan` needs, each once."""
    return list({a.stream: None for c in commits for a in c.appends})


def keys_of(commits: Iterable[Commit]) -> list[CheckpointKey]:
    """The checkpoints whose positions `plan` needs, each once."""
    return list({k: None for c in commits if c.after is not None and (k := key_of(c)) is not None})


def doubtful(commits: Iterable[Commit], versions: Mapping[str, int]) -> list[Place]:
    """The places that `plan` needs to be told of if they are taken: given ones that are not beyond their stream's end.

    There are none in most appends: who gives versions usually goes on where the stream ends.
    """
    return [
        (a.stream, version)
        for c in commits
        for a in c.appends
        if a.versions is not None
        for version in a.versions
        if version <= versions.get(a.stream, 0)
    ]


def plan(
    identity: LogIdentity,
    head: int,
    versions: Mapping[str, int],
    positions: Mapping[CheckpointKey, int],
    commits: Sequence[Commit],
    taken: Collection[Place] = (),
    slots: Mapping[int, SlotState] | None = None,
) -> Plan:
    """Decide on each commit in turn; a commit sees those before it, and a conflict keeps out its own commit only.

    `versions` holds the version of every stream of `streams_of(commits)` (0 or absent: no such stream), `positions`
    the stored checkpoint of every key of `keys_of(commits)` (0 or absent: none), `taken` the places of
    `doubtful(commits, versions)` that hold an event; `slots` what the store says of slots, None where no slot has ever
    moved. Raises ConfigurationError or EncodingError for a commit that no
    store could keep.
    """
    versions, positions, taken = dict(versions), dict(positions), set(taken)
    given = {a.stream for c in commits for a in c.appends if a.versions is not None}
    outcomes: list[int | Conflict] = []
    rows: list[StoredEvent] = []
    checkpoints: dict[CheckpointKey, Checkpoint] = {}
    for commit in commits:
        key = key_of(commit)
        moved: dict[str, int] = {}
        if given:
            _check_given(commit)
        if slots is not None and (elsewhere := _elsewhere(commit, slots)) is not None:
            outcomes.append(elsewhere)
            continue
        if (conflict := _conflict(commit, key, versions, positions, taken, moved)) is not None:
            outcomes.append(conflict)
            continue
        versions.update(moved)
        if given:
            taken.update((a.stream, version) for a in commit.appends if a.stream in given for version in a.places)
        head = _add_rows(rows, commit, head, identity.incarnation)
        if key is not None and commit.checkpoint is not None:
            checkpoints[key] = commit.checkpoint
            positions[key] = commit.checkpoint.position
        outcomes.append(head)
    return Plan(outcomes, rows, checkpoints, head)


def _elsewhere(commit: Commit, slots: Mapping[int, SlotState]) -> SlotMoved | None:
    """What keeps the commit out if it names a slot that is not open here."""
    for append in commit.appends:
        state = slots.get(append.slot)
        if state is None or state.to is not None:
            return SlotMoved(append.stream, append.slot, state.to if state else None)
    return None


def _conflict(
    commit: Commit,
    key: CheckpointKey | None,
    versions: Mapping[str, int],
    positions: Mapping[CheckpointKey, int],
    taken: Collection[Place],
    moved: dict[str, int],
) -> Conflict | None:
    """What keeps the commit out, if anything; `moved` gets the versions of its streams after it."""
    if commit.after is not None and key is not None and (actual := positions.get(key, 0)) != commit.after:
        return Conflict(f"checkpoint of {commit.follower}", commit.after, actual)
    placed: set[Place] | None = None
    for append in commit.appends:
        stream = append.stream
        actual = moved[stream] if stream in moved else versions.get(stream, 0)
        if append.versions is not None:
            placed = set() if placed is None else placed
            for version in append.versions:
                if (stream, version) in taken or (stream, version) in placed:
                    return Conflict(stream, append.expected_version, versions.get(stream, 0))
                placed.add((stream, version))
            moved[stream] = max([actual, *append.versions])
            continue
        if actual != append.expected_version:
            return Conflict(stream, append.expected_version, actual)
        moved[stream] = actual + len(append.events)
    return None


def _check_given(commit: Commit) -> None:
    """Raise ConfigurationError for versions that make no sense."""
    given = {a.stream for a in commit.appends if a.versions is not None}
    for append in commit.appends:
        if append.versions is None and append.stream in given:
            raise ConfigurationError(f"a commit to {append.stream!r} both gives versions and states an expected one")
        if append.versions is not None and (
            len(append.versions) != len(append.events) or min(append.versions, default=0) < 0
        ):
            raise ConfigurationError(
                f"{len(append.events)} events for {append.stream!r} cannot have the versions {append.versions!r}: one "
                "for each event is needed, none below 0"
            )


def _add_rows(rows: list[StoredEvent], commit: Commit, head: int, incarnation: str) -> int:
    """Add the commit's events at the positions after `head`; returns the new head."""
    size = commit.size
    if size > MAX_COMMIT_EVENTS:
        raise EncodingError(
            f"a commit of {size:,} events was refused and nothing of it stored: {MAX_COMMIT_EVENTS:,} is the most "
            "that one save can hold. Save in several steps."
        )
    command, index = commit.command, 0
    for append in commit.appends:
        stream, slot = append.stream, append.slot
        for version, (type, time_us, data, meta) in zip(append.places, append.events, strict=True):
            id = event_id(command, index)
            index += 1
            remaining = size - index
            row = (head + index, stream, version, slot, type, time_us, id, remaining, incarnation, data, meta)
            rows.append(as_stored_event(row))
    return head + size


def key_of(commit: Commit) -> CheckpointKey | None:
    """The checkpoint that the commit stores, if it stores one. Raises ConfigurationError for half of one."""
    if commit.checkpoint is not None and commit.follower is not None:
        return commit.follower, commit.checkpoint.log, commit.checkpoint.group
    if commit.checkpoint is not None or commit.follower is not None or commit.after is not None:
        raise ConfigurationError(
            f"a commit with follower={commit.follower!r}, checkpoint={commit.checkpoint!r}, after={commit.after!r}: "
            "`follower` and `checkpoint` belong together, and `after` to both of them"
        )
    return None


def check_follows(head: int, events: Sequence[StoredEvent]) -> None:
    """Raise ConfigurationError unless events that are stored as they are go on where the log ends."""
    for due, event in enumerate(events, head + 1):
        if event.position != due:
            raise ConfigurationError(
                f"position {due} was to be restored next, and an event of position {event.position} was given; nothing "
                "of this was stored"
            )
