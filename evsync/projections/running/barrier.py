"""Where the logs of several shards depend on one another: a slot's events go on in another log, never before.

A log that a slot was moved to says so with SLOT_OPENED, and names the log that the slot was closed in and the position
of its SLOT_CLOSED. A follower must not read beyond a SLOT_OPENED before it has applied the other log up to there. A
barrier points to a commit that is earlier in time than its own, so barriers cannot wait for one another in a circle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from evsync.codec.values import unpack
from evsync.control import SLOT_CLOSED, SLOT_OPENED, SLOTS_STREAM
from evsync.ports import LogReader
from evsync.records import Ancestor, Checkpoint, StoredEvent, incarnation_at

LOOK_S = 0.01
"""How often a follower looks whether a barrier is met."""


class Closed(NamedTuple):
    """Where a slot was closed in the log that it came from."""

    log: str
    incarnation: str
    number: int
    ancestry: Sequence[str] = ()
    """The incarnations that the log had been restored from when the slot was opened again."""


IsApplied = Callable[[str, int, Closed], bool]
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
                closed = Closed(said["from"], said["incarnation"], said["position"], said.get("ancestry", ()))
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

    def applied(log: str, slot: int, closed: Closed) -> bool:
        if (found := logs.get(log)) is None:
            return False
        checkpoint = found.checkpoints.get(slot % groups)
        return checkpoint is None or includes(checkpoint, closed, found.reader.incarnation, found.reader.ancestry)

    return applied


def includes(checkpoint: Checkpoint, closed: Closed, incarnation: str | None, ancestry: Sequence[Ancestor]) -> bool:
    """Whether what was applied of a log includes that a slot was closed there, in the log or in what it was.

    A log that was restored alone, beside the slot's new shard, and has lost that position, says so again in the commit
    that begins its next incarnation; a commit is applied whole. `incarnation` and `ancestry` are what is known of the
    log: it may have been restored since, without that this was heard of.
    """
    position = checkpoint.position
    if incarnation is None:
        return position >= closed.number
    if checkpoint.incarnation and incarnation_at(incarnation, ancestry, position) != checkpoint.incarnation:
        return False  # ahead of a log that was restored, a position says nothing of what stands there now
    if incarnation_at(incarnation, ancestry, closed.number) == closed.incarnation:
        return position >= closed.number
    if incarnation in closed.ancestry:
        return False
    default = ancestry[-1].last if ancestry else None
    last = next((a.last for a in ancestry if a.incarnation == closed.incarnation), default)
    return position >= (closed.number if last is None else last + 1)
