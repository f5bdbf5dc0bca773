"""Where the logs of several shards depend on one another: a slot's events go on in another log, never before.

A log that a slot was moved to says so with SLOT_OPENED, and names the log that the slot was closed in and the position
of its SLOT_CLOSED. A follower must not read beyond a SLOT_OPENED before it has applied the other log up to there. A
barrier points to a commit that is earlier in time than its own, so barriers cannot wait for one another in a circle.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from evsync.codec.values import unpack
from evsync.records import SLOT_CLOSED, SLOT_OPENED, SLOTS_STREAM, Checkpoint, StoredEvent

LOOK_S = 0.01
"""How often a follower looks whether a barrier is met."""

Applied = Callable[[str, int], int | None]
"""How far a log has been applied for a slot; None where the log is not followed (yet)."""


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


def up_to_barrier(events: Sequence[StoredEvent], applied: Applied) -> Reach:
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
                done = applied(said["from"], event.slot)
                if done is None or done < said["position"]:
                    return Reach(events[:begin], Barrier(said["from"], said["position"]), (*further, said["from"]))
        if event.remaining == 0:
            begin = place + 1
    return Reach(events, None, tuple(further))


class Followed(Protocol):
    """What is needed here of a followed log."""

    checkpoints: dict[int, Checkpoint]

    def incarnation_of(self, number: int) -> str | None:
        """That a position of the log as it is now has; None where that is not known."""
        ...


def applied_in(logs: Mapping[str, Followed], groups: int) -> Applied:
    """How far one worker has applied these logs. It has a group in all logs or in none: others' groups are passed."""

    def applied(log: str, slot: int) -> int | None:
        if (found := logs.get(log)) is None:
            return None
        checkpoint = found.checkpoints.get(slot % groups)
        if checkpoint is None:
            return sys.maxsize
        # Ahead of a log that was restored, a position says nothing of what stands there now.
        now = found.incarnation_of(checkpoint.position) if checkpoint.incarnation else None
        return checkpoint.position if now in (None, checkpoint.incarnation) else -1

    return applied
