"""An event in JSON, the same wherever the command line prints one."""

from __future__ import annotations

from typing import Any

from evsync.cli.terminal import as_utc
from evsync.codec.values import unpack
from evsync.errors import DecodingError
from evsync.projections import Event
from evsync.records import StoredEvent


def as_object(e: Event[Any]) -> dict[str, Any]:
    """An event as a JSON object has it: `position` is the token that `--after` takes, `number` its place in the log."""
    return {
        "position": str(e.position),
        "number": e.position.number,
        "time": as_utc(e.time),
        "type": e.type,
        "stream": e.stream_id,
        "version": e.version,
        "id": e.id,
        "data": e.data,
        "metadata": e.metadata,
    }


def of_log(stored: StoredEvent, log: str) -> Event[Any]:
    """A stored event of a log. Data that cannot be read is there as the bytes that it is."""
    try:
        return Event.of(stored, unpack(stored.data), log)
    except DecodingError:
        return Event.of(stored, stored.data, log)
