"""The library's stored event ⇄ evsync's: an event of a native service, to everybody but the application.

The library hands a recorder a topic (`shop.domain:User.Registered`) and a state, bytes that its mapper made: by default
JSON, with `{"_type_": …, "_data_": …}` around what JSON lacks. Of that becomes

    type      service.User.Registered: the service, and the last two names of the class
    data      the event's fields as msgpack, as EventCodec writes them: UUIDs, decimals and aware datetimes as such;
              what the application registered transcodings for as the plain values that they made of it
    time      the state's timestamp
    tags      what is needed to give the application the very bytes that it saved

and every state is put back together before it is stored, so that it is known to be possible. A state that is not JSON
of that form (compressed, encrypted, made by a mapper of one's own) is carried whole, as the one field `state`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID

from eventsourcing.persistence import StoredEvent as LibraryEvent

from evsync.codec.values import pack, unpack
from evsync.errors import DecodingError, EncodingError
from evsync.records import NewEvent, StoredEvent, decode_meta, encode_meta, to_datetime, to_time_us
from evsync.tags import current_tags

TOPIC, CARRIED, TRANSCODED, TEXT_ID, SCHEMA = "es.topic", "es.carried", "es.transcoded", "es.text_id", "schema"
"""Tags. CARRIED: what of the state the record carries in a way of its own; TRANSCODED: see `_plain`; SCHEMA: its
class_version, as for every evsync event."""
_TOPIC_KEY = f'"{TOPIC}":'
"""How JSON names the tag, and what no value of another tag can hold: there a quote has a backslash before it."""
_UTC = timedelta(0)
_Path = tuple[str | int, ...]
_Names = dict[_Path, list[str]]


class _Kept(NamedTuple):
    """An event's tags, read."""

    topic: str
    carried: frozenset[str]
    transcoded: _Names
    text_id: bool
    schema: int | None


def type_of(service: str, topic: str) -> str:
    """The event type of a topic: the last two names of the class; `Event` stands before a class outside of any."""
    names = [name for name in topic.rpartition(":")[2].split(".") if name] or ["Unnamed"]
    return ".".join([service, *(["Event", *names])[-2:]])


def encode(service: str, event: LibraryEvent) -> NewEvent:
    """The library's stored event, as a store takes it."""
    return _encoded(service, event) or _opaque(service, event)


def decode(stored: StoredEvent) -> LibraryEvent:
    """The library's stored event again, byte for byte. Raises DecodingError for one that no such application wrote."""
    kept = _kept(stored.meta)
    originator_id = stored.stream if kept.text_id else UUID(stored.stream)
    return LibraryEvent(originator_id, stored.version, kept.topic, state_of(stored, kept))


def is_of_library(stored: StoredEvent) -> bool:
    """Whether an application of the library wrote it, which gives versions itself: they may have gaps."""
    return stored.meta is not None and _TOPIC_KEY in stored.meta


def is_whole(stored: StoredEvent) -> bool:
    """Whether the state is carried whole, and so cannot be read but by the application."""
    return "all" in _kept(stored.meta).carried


def state_of(stored: StoredEvent | NewEvent, kept: _Kept) -> bytes:
    """The bytes that the library's mapper made."""
    data = unpack(stored.data)
    if "all" in kept.carried:
        state: bytes = data["state"]
        return state
    fields: dict[str, Any] = {}
    if "timestamp" in kept.carried:
        fields["timestamp"] = to_datetime(stored.time_us)
    if "originator_topic" in kept.carried:
        fields["originator_topic"] = kept.topic.rpartition(".")[0]
    fields.update(data)
    if kept.schema is not None:
        fields["class_version"] = kept.schema
    if kept.transcoded:
        fields = _wrapped(fields, (), kept.transcoded)
    return (_write_ascii if "ascii" in kept.carried else _write)(fields).encode()


def _encoded(service: str, event: LibraryEvent) -> NewEvent | None:
    """The event with its fields in the open; None if its state could not be put together again."""
    transcoded: _Names = {}
    try:
        text = event.state.decode()
        fields = _plain(json.loads(text), (), transcoded)
        if type(fields) is not dict:
            return None
        carried, schema = [], None
        timestamp = fields.get("timestamp")
        if type(timestamp) is datetime:
            time_us = to_time_us(timestamp)
            if next(iter(fields)) == "timestamp" and timestamp.utcoffset() == _UTC:
                carried.append("timestamp")
                del fields["timestamp"]
        else:
            time_us = _now_us()
        owner = event.topic.rpartition(".")[0]
        if fields.get("originator_topic") == owner and next(iter(fields)) == "originator_topic":
            carried.append("originator_topic")
            del fields["originator_topic"]
        if type(fields.get("class_version")) is int and next(reversed(fields)) == "class_version":
            schema = fields.pop("class_version")
        if "\\u" in text and text.isascii():
            carried.append("ascii")
        names = json.dumps(list(transcoded.items())) if transcoded else ""
        meta = _tags(event, tuple(carried), names, schema)
        new = NewEvent(type_of(service, event.topic), time_us, pack(fields), meta)
        return new if state_of(new, _kept(meta)) == event.state else None
    except (ValueError, TypeError, KeyError, RecursionError, EncodingError, DecodingError, OverflowError):
        return None


def _opaque(service: str, event: LibraryEvent) -> NewEvent:
    meta = _tags(event, ("all",), "", None)
    return NewEvent(type_of(service, event.topic), _now_us(), pack({"state": bytes(event.state)}), meta)


def _now_us() -> int:
    return time.time_ns() // 1000


def _tags(event: LibraryEvent, carried: tuple[str, ...], transcoded: str, schema: int | None) -> str:
    tags = current_tags()
    own = _own_tags(event.topic, carried, transcoded, isinstance(event.originator_id, str), schema)
    return encode_meta({**tags, **decode_meta(own)}) or "" if tags else own


@lru_cache(maxsize=4096)
def _own_tags(topic: str, carried: tuple[str, ...], transcoded: str, text_id: bool, schema: int | None) -> str:
    tags = {TOPIC: topic, CARRIED: ",".join(carried)}
    if transcoded:
        tags[TRANSCODED] = transcoded
    if text_id:
        tags[TEXT_ID] = "yes"
    if schema is not None:
        tags[SCHEMA] = str(schema)
    meta = encode_meta(tags)
    assert meta is not None
    return meta


@lru_cache(maxsize=4096)
def _kept(meta: str | None) -> _Kept:
    tags: Mapping[str, str] = decode_meta(meta)
    if TOPIC not in tags:
        raise DecodingError(
            f"an event with the tags {tags!r} was not written by an application of the eventsourcing library, and has "
            "no topic to construct it by: read this store with an evsync Service"
        )
    transcoded = {tuple(path): names for path, names in json.loads(tags.get(TRANSCODED, "[]"))}
    schema = int(tags[SCHEMA]) if SCHEMA in tags else None
    return _Kept(tags[TOPIC], frozenset(tags[CARRIED].split(",")), transcoded, TEXT_ID in tags, schema)


# ---- values


def _plain(value: Any, path: _Path, transcoded: _Names) -> Any:
    """A value without wrappers. `transcoded` gets the names of those that have no type here, outermost first."""
    if type(value) is dict:
        if len(value) == 2 and "_data_" in value and type(name := value.get("_type_")) is str:
            return _unwrapped(name, value["_data_"], path, transcoded)
        return {k: _plain(v, (*path, k), transcoded) for k, v in value.items()}
    if type(value) is list:
        return [_plain(v, (*path, i), transcoded) for i, v in enumerate(value)]
    return value


def _unwrapped(name: str, data: Any, path: _Path, transcoded: _Names) -> Any:
    read = _KNOWN.get(name)
    if read is not None and type(data) is str:
        try:
            value, written = read(data)
        except (ValueError, InvalidOperation):
            written = None
        if written == data:
            return value
    transcoded.setdefault(path, []).append(name)
    return _plain(data, path, transcoded)


def _wrapped(value: Any, path: _Path, transcoded: _Names) -> Any:
    """The value with the wrappers of `transcoded` again: the way back from `_plain`."""
    if type(value) is dict:
        value = {k: _wrapped(v, (*path, k), transcoded) for k, v in value.items()}
    elif type(value) is list:
        value = [_wrapped(v, (*path, i), transcoded) for i, v in enumerate(value)]
    for name in reversed(transcoded.get(path, ())):
        value = {"_type_": name, "_data_": value}
    return value


def _uuid(data: str) -> tuple[UUID, str]:
    value = UUID(hex=data)
    return value, value.hex


def _decimal(data: str) -> tuple[Decimal, str]:
    value = Decimal(data)
    return value, str(value)


def _datetime(data: str) -> tuple[datetime, str | None]:
    value = datetime.fromisoformat(data)
    return value, value.isoformat() if value.utcoffset() is not None else None  # a naive one stays text


_KNOWN = {"uuid_hex": _uuid, "decimal_str": _decimal, "datetime_iso": _datetime}
"""Transcodings that the library's Application registers, and what evsync has types for."""


def _wrap(value: Any) -> dict[str, str]:
    """What the library writes for a value that JSON lacks; called by the encoder, which leaves the rest to C."""
    kind = type(value)
    if kind is UUID:
        return {"_type_": "uuid_hex", "_data_": value.hex}
    if kind is Decimal:
        return {"_type_": "decimal_str", "_data_": str(value)}
    if kind is datetime:
        return {"_type_": "datetime_iso", "_data_": value.isoformat()}
    raise TypeError(f"{kind.__qualname__} is no type that comes from the library's JSON")


_write = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, default=_wrap).encode
_write_ascii = json.JSONEncoder(separators=(",", ":"), default=_wrap).encode  # as earlier versions of the library did
