"""The state of an aggregate as bytes, for snapshots and for the cache of aggregates.

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
from typing import Any, TypeVar

import msgpack
from pydantic import BaseModel

from evsync.codec.values import Readers, Unpack, pack, unpacker
from evsync.domain import AnyAggregate
from evsync.errors import DecodingError, EncodingError

_OBJECT = 20
A = TypeVar("A", bound=AnyAggregate)


def freeze_aggregate(aggregate: AnyAggregate) -> bytes:
    """The state of an aggregate, without events that are pending.

    It is read back and compared first. Raises CodecError if it would not come back as it is.
    """
    attributes = {k: v for k, v in vars(aggregate).items() if k != "_pending_events"}
    state = freeze(attributes)
    if thaw(state) != attributes:
        raise EncodingError(f"it would not come back as it is: {aggregate!r}"[:500])
    return state


def thaw_aggregate(cls: type[A], state: bytes) -> A:
    """A new aggregate with the state that `freeze_aggregate` wrote. Raises DecodingError."""
    aggregate = object.__new__(cls)
    aggregate.__dict__.update(thaw(state), _pending_events=[])
    return aggregate


def freeze(state: Mapping[str, Any]) -> bytes:
    """The attributes of an aggregate as bytes. Raises EncodingError for what would not come back as it is."""
    return pack(_plain(dict(state), set()))


def thaw(data: bytes) -> dict[str, Any]:
    """The attributes that `freeze` wrote. Raises DecodingError."""
    state = _unpack(data)
    if type(state) is not dict:
        raise DecodingError(f"a map of attributes was expected, not {type(state).__name__}")
    return state


def _plain(value: Any, seen: set[int]) -> Any:
    """The value, its objects as extension types. `seen`: the ids of what was met so far and can be changed in place."""
    kind = type(value)
    if kind is list:
        _once(value, seen)
        return [_plain(v, seen) for v in value]
    if kind is dict:
        _once(value, seen)
        return _content(value, seen)
    if kind is tuple:
        return tuple(_plain(v, seen) for v in value)
    if kind is set:
        _once(value, seen)
    if kind is set or kind is frozenset:
        return kind(_plain(v, seen) for v in value)
    if isinstance(value, Enum):
        return _object(kind, value.name)
    if isinstance(value, BaseModel):
        if not value.model_config.get("frozen"):
            _once(value, seen)
        maps = (vars(value), value.model_extra, value.__pydantic_private__)
        attributes, extra, private = (_content(m, seen) if m is not None else None for m in maps)
        return _object(kind, [attributes, sorted(value.model_fields_set), extra, private])
    if dataclasses.is_dataclass(value):
        if not getattr(value, "__dataclass_params__").frozen:  # noqa: B009 (not in the type stubs)
            _once(value, seen)
        if not hasattr(value, "__dict__"):
            return _object(kind, {f.name: _plain(getattr(value, f.name), seen) for f in dataclasses.fields(value)})
        return _object(kind, _content(vars(value), seen))
    return value  # plain by itself, or refused by pack()


def _content(value: Mapping[Any, Any], seen: set[int]) -> dict[Any, Any]:
    return {_plain(k, seen): _plain(v, seen) for k, v in value.items()}


def _once(value: Any, seen: set[int]) -> None:
    """What stands in two places would come back as two: equal, until one of them is changed."""
    if id(value) in seen:
        raise EncodingError(f"{value!r:.80} stands in the state twice: a change of the one would change the other")
    seen.add(id(value))


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
