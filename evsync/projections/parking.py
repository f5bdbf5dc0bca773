"""Parking: an event that cannot be applied is set aside, and every later one of its stream behind it, in order.

Other streams go on. A parked event is not counted among the applied ones: what was applied, what is parked and what a
person has skipped are together exactly the events up to the checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from evsync.records import Checkpoint, StoredEvent, service_of


class ParkedEvent(NamedTuple):
    """An event that was set aside."""

    log: str
    group: int
    event: StoredEvent
    reason: str | None
    """Why it could not be applied; None for one that only stands behind another of its stream."""

    @property
    def service(self) -> str:
        """Whose stream it is."""
        return service_of(self.log)

    @property
    def as_stream(self) -> ParkedStream:
        """The stream that is parked with it."""
        return ParkedStream(self.service, self.event.stream, self.group)


class ParkedStream(NamedTuple):
    """A stream of which nothing is applied at present."""

    service: str
    stream: str
    group: int


def set_aside(
    log: str,
    events: Sequence[StoredEvent],
    checkpoints: Mapping[int, Checkpoint],
    groups: int,
    *,
    parked: Mapping[str, int],
    condemned: Mapping[int, str],
    is_handled: Callable[[str], object],
) -> tuple[Sequence[StoredEvent], list[ParkedEvent]]:
    """Split a batch of one log into what is to be applied and what is to be parked.

    `parked` are the streams that are parked already. `condemned` are the positions of events that have failed for the
    last time, with the reason: with these their streams begin to be parked. Events of groups that are not held or have
    passed them, and such as nobody handles, stay in the batch, where they are passed over.
    """
    if not condemned and (not parked or parked.keys().isdisjoint([e.stream for e in events])):
        return events, []
    streams, kept, aside = set(parked), [], []
    for e in events:
        if e.position in condemned or e.stream in streams:
            group = e.slot % groups
            checkpoint = checkpoints.get(group)
            if checkpoint is not None and e.position > checkpoint.position and is_handled(e.type):
                streams.add(e.stream)
                aside.append(ParkedEvent(log, group, e, condemned.get(e.position)))
                continue
        kept.append(e)
    return kept, aside
