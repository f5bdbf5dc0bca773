"""Where the logs of several shards depend on one another: a slot's events go on in another log, never before.

A log that a slot was moved to says so with SLOT_OPENED, and names the log that the slot was closed in and the position
of its SLOT_CLOSED. A follower must not read beyond a SLOT_OPENED before it has applied the other log up to there. A
barrier points to a commit that is earlier in time than its own, so barriers cannot wait for one another in a circle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from evsync.codec.values import unpack
from evsync.ports import LogReader
from evsync.projections.running.continuity import incarnation_of
from evsync.records import (
    SLOT_CLOSED,
    SLOT_OPENED,
    SLOTS_STREAM,
    Ancestor,
    Checkpoint,
    Position,
    StoredEvent,
    incarnation_at,
)

LOOK_S = 0.01
"""How often a follower looks whether a barrier is met."""

IsApplied = Callable[[str, int, Position], bool]
"""Whether a log has been applied, for a slot, up to where it was closed there. Not if it is not followed (yet)."""


class Barrier(NamedTuple):
    """What must be applied first."""

    log: str
    position: int

    def __str__(self) -> str:
        return f"waits until log {self.log!r} is applied up to position {self.position}, where slots left it"


class Reach(NamedTuple):
    """What of a batch may be applied now."""

    events: Sequence[StoredEvent]
    """Whole commits, before the first barrier that is not met."""
    barrier: Barrier | None = None
    """That barrier."""
    further: Sequence[str] = ()
    """The logs that these events, or the barrier, speak of: where slots go on, or come from."""


def up_to_barrier(events: Sequence[StoredEvent], applied: IsApplied) -> Reach:
    """What of a batch may be applied now, by how far other logs have been applied."""
    if not any(e.stream == SLOTS_STREAM for e in events):
        return Reach(events)
    further: dict[str, None] = {}
    begin = 0  # of the commit
    for place, event in enumerate(events):
        if event.stream == SLOTS_STREAM:
            said = unpack(event.data)
            if event.type.endswith(SLOT_CLOSED):
                further[f"{event.type.partition('.')[0]}.{said['to']}"] = None
            elif event.type.endswith(SLOT_OPENED):
                closed = Position(said["from"], said["incarnation"], said["position"])
                if not applied(closed.log, event.slot, closed):
                    return Reach(events[:begin], Barrier(closed.log, closed.number), (*further, closed.log))
        if event.remaining == 0:
            begin = place + 1
    return Reach(events, None, tuple(further))


class Followed(Protocol):
    """What is needed here of a followed log."""

    reader: LogReader

    @property
    def checkpoints(self) -> Mapping[int, Checkpoint]:
        """How far it is applied, by group."""
        ...


def applied_in(logs: Mapping[str, Followed], groups: int) -> IsApplied:
    """How far one worker has applied these logs. It has a group in all logs or in none: others' groups are passed."""

    def applied(log: str, slot: int, closed: Position) -> bool:
        if (found := logs.get(log)) is None:
            return False
        checkpoint, reader = found.checkpoints.get(slot % groups), found.reader
        if checkpoint is None:
            return True
        # Ahead of a log that was restored, a position says nothing of what stands there now.
        now = incarnation_of(reader, checkpoint.position) if checkpoint.incarnation else None
        place = place_of(closed, reader.incarnation, reader.ancestry)
        return now in (None, checkpoint.incarnation) and checkpoint.position >= place

    return applied


def place_of(closed: Position, incarnation: str | None, ancestry: Sequence[Ancestor]) -> int:
    """Up to where a log has to be applied for a slot that was closed at a position of it, or of what it was.

    A log that was restored alone, beside the slot's new shard, and has lost that position, says so again in the commit
    that begins its next incarnation; a commit is applied whole.
    """
    if incarnation is None or not ancestry:
        return closed.number
    if incarnation_at(incarnation, ancestry, closed.number) == closed.incarnation:
        return closed.number
    return next((a.last for a in ancestry if a.incarnation == closed.incarnation), ancestry[-1].last) + 1
