"""Restores of a log, as its events tell of them.

A restored log goes on with an event of evsync's own: which incarnation it is now, of which one it has how much. Whoever
follows it and has not come farther than that goes on by itself; who has come farther has applied events that are no
part of this log any more, and finds out here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evsync.codec.values import pack, unpack
from evsync.control import RESTORED_EVENT, RESTORES_STREAM
from evsync.errors import DecodingError
from evsync.records import Ancestor, LogIdentity, StoredEvent, event_id, new_command
from evsync.sharding.slots import slot_of


@dataclass(frozen=True, slots=True)
class Restored:
    """What the first event of a restored log's new incarnation says."""

    incarnation: str
    parent: str
    """Of the event before it: who has applied that one goes on."""
    position: int
    """Of the event before it: the last that was restored."""
    ancestry: tuple[Ancestor, ...]

    @classmethod
    def of(cls, event: StoredEvent) -> Restored:
        """What the event says. Raises DecodingError for one that says something else."""
        try:
            fields = unpack(event.data)
            ancestry = tuple(Ancestor(incarnation, last) for incarnation, last in fields["ancestry"])
            found = cls(event.incarnation, fields["parent"], fields["position"], ancestry)
        except (KeyError, TypeError, ValueError) as e:
            raise DecodingError(f"the event at position {event.position} does not tell of a restore: {e}") from e
        if found.position != event.position - 1:
            raise DecodingError(f"the event at position {event.position} tells of a restore to {found.position}")
        return found

    def follows(self, incarnation: str) -> bool:
        """Whether what was applied up to the event before, in that incarnation, is part of this log."""
        return incarnation == self.parent


def restored_event(identity: LogIdentity, position: int, version: int, time_us: int) -> StoredEvent:
    """The event with which a log that was restored to a position goes on; `version` is its place in its stream."""
    data = pack(
        {
            "position": position,
            "parent": identity.incarnation_at(position) if position else "",
            "ancestry": [[a.incarnation, a.last] for a in identity.ancestry],
        }
    )
    return StoredEvent(
        position=position + 1,
        stream=RESTORES_STREAM,
        version=version,
        slot=slot_of(RESTORES_STREAM, identity.slots),
        type=f"{identity.service}.{RESTORED_EVENT}",
        time_us=time_us,
        id=event_id(new_command(), 0),
        remaining=0,
        incarnation=identity.incarnation,
        data=data,
        meta=None,
    )


def with_ancestry(identity: LogIdentity, restores: Sequence[StoredEvent]) -> LogIdentity:
    """The log with what the events of its restores say of where it comes from."""
    if not restores:
        return identity
    last = Restored.of(restores[-1])
    return LogIdentity(identity.service, identity.shard, identity.incarnation, identity.slots, last.ancestry)
