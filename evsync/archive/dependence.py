"""What a commit was made from in other logs, and where logs have to end so that none is ahead of what it was made from.

A commit may depend on an event of another log: a reaction answered it, or its slot came from there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from evsync.archive.followers import checkpoints_in
from evsync.codec.values import unpack
from evsync.control import RESTORES_STREAM, SLOT_OPENED
from evsync.records import LogIdentity, StoredEvent, before_commit, decode_meta


class Dependent(NamedTuple):
    """A commit, and a position of another log without which it should not be."""

    log: str
    before: int
    """Where its log ends without it."""
    on: str
    needs: int


def lowered(heads: Mapping[str, int], dependents: Sequence[Dependent]) -> dict[str, int]:
    """The heads, each lowered until no commit at or below it depends on a position beyond its source's.

    The greatest such positions: whatever else keeps the rule within these heads is nowhere higher. Logs that have no
    head here ask for nothing. Each commit is looked at once for each thing it depends on.
    """
    marks = dict(heads)
    waiting: dict[str, list[tuple[int, str, int]]] = defaultdict(list)
    for log, before, on, needs in dependents:
        waiting[on].append((needs, log, before))
    for of_one in waiting.values():
        of_one.sort()
    due = list(marks)
    while due:
        source = due.pop()
        while (of_one := waiting[source]) and of_one[-1][0] > marks[source]:
            _, log, before = of_one.pop()
            if before < marks[log]:
                marks[log] = before
                due.append(log)
    return marks


def dependents_of(
    log: str,
    events: Sequence[StoredEvent],
    identities: Mapping[str, LogIdentity],
    positions: Mapping[bytes, tuple[str, int]],
) -> Iterator[Dependent]:
    """What these events of a log say of their commits' dependence on the logs in `identities`.

    A reaction's checkpoint, where a slot came from, and a causation id, if `positions` tells where that event stands.
    What a source has lost in a restore since is passed over: no mark can have it.
    """
    restored: int | None = None  # the place before a commit in which events have kept the ids that they had
    for event in events:
        if event.stream == RESTORES_STREAM:
            restored = event.position - 1
        before = restored if restored is not None else before_commit(event)
        restored = restored if event.remaining else None
        for on, incarnation, needs in _needs(event):
            if on in identities and on != log and identities[on].incarnation_at(needs) == incarnation:
                yield Dependent(log, before, on, needs)
        if (place := positions.get(_causation(event))) is not None and place[0] != log:
            yield Dependent(log, before, *place)


def _needs(event: StoredEvent) -> Iterator[tuple[str, str, int]]:
    """The places that an event says its commit was made from: log, incarnation, position."""
    for kept in checkpoints_in(event):
        yield kept.checkpoint.log, kept.checkpoint.incarnation, kept.checkpoint.position
    if event.type.partition(".")[2] == SLOT_OPENED:
        fields: dict[str, Any] = unpack(event.data)
        yield fields["from"], fields["incarnation"], fields["position"]


def _causation(event: StoredEvent) -> bytes:
    """The id of the event that caused this one, as its tags say; empty where they say none."""
    if event.meta is None or '"causation_id":' not in event.meta:
        return b""
    try:
        return UUID(decode_meta(event.meta).get("causation_id", "")).bytes
    except ValueError:
        return b""  # an id of the user's own kind
