"""Values as msgpack: what plain msgpack has, and extension types for what it lacks. Readable without Python.

    code  type        payload
    1     UUID        16 bytes
    2     Decimal     its text
    3     datetime    ISO 8601 text with the UTC offset (aware datetimes only)
    4     date        ISO 8601 text
    5     time        ISO 8601 text
    6     timedelta   microseconds, as decimal text
    7     tuple       a msgpack array
    8     set         a msgpack array, sorted by encoded bytes
    9     frozenset   a msgpack array, sorted by encoded bytes
    10    integer     decimal text, for integers outside 64 bits

Types are never guessed on the way in: a subclass of str, int, dict or list would come back as its parent, so it is
refused here, and written only where an annotation says what it is (see evsync.codec.fields).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgpack

from evsync.errors import DecodingError, EncodingError

_MICROSECOND = timedelta(microseconds=1)


def pack(value: Any) -> bytes:
    """The msgpack bytes of a value. Raises EncodingError for a type that would not come back as it is."""
    try:
        return _packb(value, default=_extend, strict_types=True)
    except EncodingError:
        raise
    except (TypeError, ValueError, OverflowError, RecursionError) as e:
        raise EncodingError(f"cannot write {_short(value)}: {e}") from e


Unpack = Callable[[bytes], Any]
Readers = dict[int, Callable[[bytes], Any]]
"""What is made of the payload of an extension type, by its code."""


def unpacker(further: Callable[[Unpack], Readers] | None = None) -> Unpack:
    """A function that reads what `pack` wrote, and raises DecodingError for anything else.

    `further` adds extension types of one's own; it is given the function itself, for what is packed inside of them.
    """

    def unpack(data: bytes) -> Any:
        try:
            return _unpackb(data, ext_hook=revive, strict_map_key=False)
        except Exception as e:  # msgpack raises half a dozen kinds for damaged input; all mean the same here
            raise DecodingError(f"{len(data)} bytes are not a value written by evsync: {type(e).__name__}: {e}") from e

    def revive(code: int, payload: bytes) -> Any:
        reader = readers.get(code)
        if reader is None:
            raise DecodingError(f"unknown extension type {code}: written by a newer evsync?")
        return reader(payload)

    readers = _readers(unpack) | (further(unpack) if further else {})
    return unpack


_packb: Callable[..., bytes] = msgpack.packb
_unpackb: Callable[..., Any] = msgpack.unpackb
_Ext = msgpack.ExtType


def _text(value: Any) -> bytes:
    return str(value).encode("ascii")


def _iso(value: datetime | date | time) -> bytes:
    return value.isoformat().encode("ascii")


def _aware(value: datetime) -> bytes:
    if value.utcoffset() is None:
        raise EncodingError(f"{value!r} has no time zone: use an aware datetime, such as datetime.now(UTC)")
    return _iso(value)


def _sorted(values: set[Any] | frozenset[Any]) -> bytes:
    parts = sorted(pack(v) for v in values)
    header: bytes = msgpack.Packer().pack_array_header(len(parts))
    return header + b"".join(parts)


_WRITERS: dict[type, tuple[int, Callable[[Any], bytes]]] = {
    UUID: (1, lambda v: v.bytes),
    Decimal: (2, _text),
    datetime: (3, _aware),
    date: (4, _iso),
    time: (5, _iso),
    timedelta: (6, lambda v: _text(v // _MICROSECOND)),
    tuple: (7, lambda v: pack(list(v))),
    set: (8, _sorted),
    frozenset: (9, _sorted),
    int: (10, _text),  # msgpack asks for help with integers only when they pass 64 bits
}


def _extend(value: Any) -> Any:
    writer = _WRITERS.get(type(value))
    if writer is None:
        raise EncodingError(
            f"{_short(value)} of type {type(value).__module__}.{type(value).__qualname__} cannot be written as it is"
        )
    return _Ext(writer[0], writer[1](value))


def _readers(unpack: Unpack) -> Readers:
    return {
        1: lambda b: UUID(bytes=b),
        2: lambda b: Decimal(b.decode("ascii")),
        3: lambda b: datetime.fromisoformat(b.decode("ascii")),
        4: lambda b: date.fromisoformat(b.decode("ascii")),
        5: lambda b: time.fromisoformat(b.decode("ascii")),
        6: lambda b: timedelta(microseconds=int(b)),
        7: lambda b: tuple(unpack(b)),
        8: lambda b: set(unpack(b)),
        9: lambda b: frozenset(unpack(b)),
        10: int,
    }


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


unpack = unpacker()
"""Reads what `pack` wrote: no objects, only values. Raises DecodingError for anything else."""
