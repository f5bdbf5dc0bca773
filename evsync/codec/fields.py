"""A field's annotation → how its values are written and read.

What msgpack and its extension types hold by themselves needs nothing (see evsync.codec.values). For the rest (enums,
dataclasses, pydantic models, tuples, sets, unions of them) pydantic's TypeAdapter turns values into plain maps and
arrays, which any language reads, and back.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple
from uuid import UUID

from pydantic import TypeAdapter

from evsync.errors import EncodingError

_SCALARS = {str, int, float, bool, bytes, type(None), None, UUID, Decimal, datetime, date, time, timedelta, Any, object}


class Wire(NamedTuple):
    """How the values of one field travel."""

    write: Callable[[Any], Any]
    read: Callable[[Any], Any]


def wire_of(annotation: Any) -> Wire | None:
    """How values of this annotation are written, or None where they are written as they are.

    Raises EncodingError for a type that cannot be written at all.
    """
    if is_plain(annotation):
        return None
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    except Exception as e:  # pydantic has several: no schema, undefined forward references, a bad configuration
        raise EncodingError(
            f"values of {annotation!r} cannot be written: use str, int, float, bool, bytes, UUID, Decimal, aware "
            "datetimes, lists, tuples, sets, dicts, enums, dataclasses or pydantic models"
        ) from e

    def read(plain: Any) -> Any:
        return adapter.validate_python(plain, by_alias=False, by_name=True)

    def write(value: Any) -> Any:
        # `warnings="error"` refuses values of another type than announced; reading the result back at once refuses what
        # would be lost (a subclass, a validator that does not take its own output), while nothing is stored yet.
        written = plain(adapter.dump_python(value, by_alias=False, round_trip=True, warnings="error"))
        back = read(written)
        if back != value and repr(back) != repr(value):  # repr: a value that holds NaN is not equal to itself
            raise EncodingError(f"{value!r} would be read back as {back!r}")
        return written

    return Wire(write, read)


def is_plain(annotation: Any) -> bool:
    """Whether msgpack and its extension types hold such values by themselves."""
    try:
        if annotation in _SCALARS:
            return True
    except TypeError:  # unhashable, such as Annotated[…, []]
        return False
    if annotation in (list, dict):
        return True
    if isinstance(annotation, typing.TypeVar):
        return True
    if isinstance(annotation, typing.NewType):
        return is_plain(annotation.__supertype__)
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return is_plain(args[0])
    if origin is typing.Literal:
        return not any(isinstance(a, Enum) for a in args)
    if origin in (list, dict, typing.Union, types.UnionType):
        return all(is_plain(a) for a in args)
    return False


def plain(value: Any) -> Any:
    """A value as maps and arrays of what msgpack and its extension types hold: enums become their values."""
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    return value
