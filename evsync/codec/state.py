"""The state of an aggregate as bytes, for snapshots.

Beyond the values of events, state may hold enums, dataclasses and pydantic models, wherever they stand: extension type
20, a msgpack array of module, qualified name and content (an enum member's name, or a map of attributes). They are made
again without running their constructors, and only from classes of these kinds that the program has imported by itself:
a snapshot can never make a program import or call something. Anything else is refused: then there is no snapshot.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from enum import Enum
from typing import Any

import msgpack
from pydantic import BaseModel

from evsync.codec.values import Readers, Unpack, pack, unpacker
from evsync.errors import DecodingError, EncodingError

_OBJECT = 20


def freeze(state: Mapping[str, Any]) -> bytes:
    """The attributes of an aggregate as bytes. Raises EncodingError for what would not come back as it is."""
    return pack(_plain(dict(state)))


def thaw(data: bytes) -> dict[str, Any]:
    """The attributes that `freeze` wrote. Raises DecodingError."""
    state = _unpack(data)
    if type(state) is not dict:
        raise DecodingError(f"a map of attributes was expected, not {type(state).__name__}")
    return state


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind is list:
        return [_plain(v) for v in value]
    if kind is dict:
        return {_plain(k): _plain(v) for k, v in value.items()}
    if kind is tuple:
        return tuple(_plain(v) for v in value)
    if kind is set or kind is frozenset:
        return kind(_plain(v) for v in value)
    if isinstance(value, Enum):
        return _object(kind, value.name)
    if isinstance(value, BaseModel):
        parts = (vars(value), sorted(value.model_fields_set), value.model_extra, value.__pydantic_private__)
        return _object(kind, [_plain(part) for part in parts])
    if dataclasses.is_dataclass(value):
        if not hasattr(value, "__dict__"):
            return _object(kind, {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)})
        return _object(kind, _plain(vars(value)))
    return value  # plain by itself, or refused by pack()


def _object(kind: type[Any], content: Any) -> msgpack.ExtType:
    if _class_of(kind.__module__, kind.__qualname__) is not kind:
        raise EncodingError(f"{kind.__module__}.{kind.__qualname__} is a local class: it could not be found again")
    return msgpack.ExtType(_OBJECT, pack([kind.__module__, kind.__qualname__, content]))


def _class_of(module: str, qualname: str) -> Any:
    found: Any = sys.modules.get(module)
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found


def _further(unpack: Unpack) -> Readers:
    def make(payload: bytes) -> Any:
        module, qualname, content = unpack(payload)
        cls = _class_of(module, qualname)
        if not isinstance(cls, type):
            raise DecodingError(f"class {module}.{qualname} is gone")
        if issubclass(cls, Enum):
            return cls[content]
        if issubclass(cls, BaseModel):
            attributes, fields_set, extra, private = content
            model = cls.__new__(cls)
            for name, value in (
                ("__dict__", attributes),
                ("__pydantic_fields_set__", set(fields_set)),
                ("__pydantic_extra__", extra),
                ("__pydantic_private__", private),
            ):
                object.__setattr__(model, name, value)
            return model
        if dataclasses.is_dataclass(cls):
            made = object.__new__(cls)
            for name, value in content.items():
                object.__setattr__(made, name, value)
            return made
        raise DecodingError(f"{module}.{qualname} is neither an enum, a dataclass nor a pydantic model")

    return {_OBJECT: make}


_unpack = unpacker(_further)
