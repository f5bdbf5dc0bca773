"""An event as handlers see it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

from evsync.records import (
    Position,
    StoredEvent,
    decode_meta,
    encode_meta,
    event_uuid,
    to_datetime,
    to_time_us,
)

D_co = TypeVar("D_co", covariant=True)

_SHOWN = ("type", "data", "stream_id", "version", "position", "id", "time", "metadata")
"""What two events that are equal have in common."""


class Event(Generic[D_co]):
    """An immutable fact: what happened (`type`, `data`), to which aggregate, where in its stream and in its log.

    A projection meets hundreds of thousands of these and most handlers look at two attributes, so an event keeps the
    stored record and makes the others when they are asked for.
    """

    __slots__ = ("_data", "_log", "_stored")

    _stored: StoredEvent
    _data: D_co
    _log: str

    def __init__(
        self,
        type: str,
        data: D_co,
        stream_id: str,
        version: int,
        position: Position,
        id: UUID,
        time: datetime,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """For tests of one's own handlers: everything by its public name. Raises ValueError for a time without zone."""
        if time.tzinfo is None:
            raise ValueError(f"the time of an event must have a time zone, and {time!r} has none")
        self._log, self._data = position.log, data
        self._stored = StoredEvent(
            position=position.number,
            stream=stream_id,
            version=version,
            slot=0,
            type=type,
            time_us=to_time_us(time),
            id=id.bytes,
            remaining=0,
            incarnation=position.incarnation,
            data=b"",
            meta=encode_meta(metadata),
        )

    @staticmethod
    def of(stored: StoredEvent, data: D_co, log: str) -> Event[D_co]:  # type: ignore[misc]  # covariant: as in __init__
        """The event of a stored record whose data has been decoded. `log` is the log's name."""
        event: Event[D_co] = object.__new__(Event)
        event._stored, event._data, event._log = stored, data, log
        return event

    @property
    def type(self) -> str:
        """`service.Aggregate.Event`."""
        return self._stored.type

    @property
    def data(self) -> D_co:
        """What happened, as the handler's contract reads it."""
        return self._data

    @property
    def stream_id(self) -> str:
        """The aggregate's id, as text."""
        return self._stored.stream

    @property
    def version(self) -> int:
        """Place in the aggregate's stream: 1, 2, 3, …"""
        return self._stored.version

    @property
    def position(self) -> Position:
        """Place in the log."""
        return Position(self._log, self._stored.incarnation, self._stored.position)

    @property
    def id(self) -> UUID:
        """Unique to this event, for ever."""
        return event_uuid(self._stored.id)

    @property
    def time(self) -> datetime:
        """When it was decided, in UTC, by the clock of the process that decided."""
        return to_datetime(self._stored.time_us)

    @property
    def metadata(self) -> Mapping[str, str]:
        """correlation_id, causation_id, and whatever tags `metadata()` gave."""
        return decode_meta(self._stored.meta)

    def _values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _SHOWN}

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, Event) else NotImplemented

    def __hash__(self) -> int:
        return hash((self._stored.id, self._stored.stream, self._stored.version))

    def __repr__(self) -> str:
        return f"Event({', '.join(f'{name}={value!r}' for name, value in self._values().items())})"
