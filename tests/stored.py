"""Pending events as a log would hold them, without a store."""

from __future__ import annotations

from collections.abc import Sequence

from evsync.aggregates.replay import fold
from evsync.codec.events import EventCodec
from evsync.domain import AnyAggregate, stream_of
from evsync.records import StoredEvent, change_of, event_id, new_command
from evsync.sharding.slots import slot_of


def as_stored(codec: EventCodec, aggregate: AnyAggregate) -> list[StoredEvent]:
    """The pending events of one aggregate at positions 1, 2, 3, …"""
    stream, command = stream_of(aggregate.id), new_command()
    new = codec.encode(aggregate, aggregate.pending_events, {})
    return [
        StoredEvent(
            position=i + 1,
            stream=stream,
            version=i + 1,
            slot=slot_of(stream),
            type=e.type,
            time_us=e.time_us,
            id=event_id(command, i),
            remaining=len(new) - i - 1,
            incarnation="0123456789ab",
            data=e.data,
            meta=e.meta,
        )
        for i, e in enumerate(new)
    ]


def folded(codec: EventCodec, events: Sequence[StoredEvent]) -> AnyAggregate | None:
    """The aggregate after these events of one stream."""
    return fold(codec, events[0].stream, map(change_of, events))
