"""What an append will do, decided before anything is written: pure, and the same for every kind of store.

A store locks its position counter, looks up what the plan needs to know, asks for the plan, and writes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from evsync.errors import ConfigurationError, Conflict, EncodingError
from evsync.records import Checkpoint, Commit, LogIdentity, StoredEvent, event_id

MAX_COMMIT_EVENTS = 65_536
"""An event's index in its commit is 16 bits of its id."""

CheckpointKey = tuple[str, str, int]
"""Follower, log, group."""


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


def plan(
    identity: LogIdentity,
    head: int,
    versions: Mapping[str, int],
    positions: Mapping[CheckpointKey, int],
    commits: Sequence[Commit],
) -> Plan:
    """Decide on each commit in turn; a commit sees those before it, and a conflict keeps out its own commit only.

    `versions` holds the version of every stream of `streams_of(commits)` (0 or absent: no such stream), `positions`
    the stored checkpoint of every key of `keys_of(commits)` (0 or absent: none). Raises ConfigurationError or
    EncodingError for a commit that no store could keep.
    """
    versions, positions = dict(versions), dict(positions)
    result = Plan([], [], {}, head)
    for commit in commits:
        key = key_of(commit)
        moved: dict[str, int] = {}
        if (conflict := _conflict(commit, key, versions, positions, moved)) is not None:
            result.outcomes.append(conflict)
            continue
        versions.update(moved)
        head = _add_rows(result.rows, commit, head, identity.incarnation)
        if key is not None and commit.checkpoint is not None:
            result.checkpoints[key] = commit.checkpoint
            positions[key] = commit.checkpoint.position
        result.outcomes.append(head)
    return result._replace(head=head)


def _conflict(
    commit: Commit,
    key: CheckpointKey | None,
    versions: Mapping[str, int],
    positions: Mapping[CheckpointKey, int],
    moved: dict[str, int],
) -> Conflict | None:
    """What keeps the commit out, if anything; `moved` gets the versions of its streams after it."""
    if commit.after is not None and key is not None and (actual := positions.get(key, 0)) != commit.after:
        return Conflict(f"checkpoint of {commit.follower}", commit.after, actual)
    for append in commit.appends:
        stream = append.stream
        actual = moved[stream] if stream in moved else versions.get(stream, 0)
        if actual != append.expected_version:
            return Conflict(stream, append.expected_version, actual)
        moved[stream] = actual + len(append.events)
    return None


def _add_rows(rows: list[StoredEvent], commit: Commit, head: int, incarnation: str) -> int:
    """Add the commit's events at the positions after `head`; returns the new head."""
    size = commit.size
    if size > MAX_COMMIT_EVENTS:
        raise EncodingError(
            f"a commit of {size:,} events was refused and nothing of it stored: {MAX_COMMIT_EVENTS:,} is the most "
            "that one save can hold. Save in several steps."
        )
    index = 0
    for append in commit.appends:
        for version, event in enumerate(append.events, append.expected_version + 1):
            rows.append(
                StoredEvent(
                    head + index + 1,
                    append.stream,
                    version,
                    append.slot,
                    event.type,
                    event.time_us,
                    event_id(commit.command, index),
                    size - index - 1,
                    incarnation,
                    event.data,
                    event.meta,
                )
            )
            index += 1
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
