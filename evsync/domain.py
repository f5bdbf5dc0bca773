"""The domain: eventsourcing's aggregates and events, and what evsync has to know about them.

This module (with evsync.interop) is the only one that imports the eventsourcing library.
"""

from __future__ import annotations

import dataclasses
import inspect
import time
import types
import typing
from collections.abc import Callable
from datetime import datetime
from os import urandom
from typing import Any, Literal
from uuid import UUID

from eventsourcing.domain import Aggregate as LibraryAggregate
from eventsourcing.domain import (
    BaseAggregate,
    BoundCommandMethodDecorator,
    CanInitAggregate,
    CanMutateAggregate,
    DecoratedFuncCaller,
    DomainEvent,
    MetaDomainEvent,
    UnboundCommandMethodDecorator,
    decorated_funcs,
    event,
)
from eventsourcing.utils import get_topic

from evsync.control import OWN_STREAMS
from evsync.errors import ConfigurationError
from evsync.records import MAX_STREAM_ID_BYTES, to_datetime

__all__ = ["Aggregate", "AnyAggregate", "BaseAggregate", "EventType", "NamedAggregate", "event", "event_types"]

AnyAggregate = BaseAggregate[Any]
ENVELOPE = ("originator_id", "originator_version", "timestamp", "originator_topic")
"""Attributes of every library event that the record carries in columns of its own."""


class _Dated:  # noqa: PLW1641  (no hash, as the library's aggregates)
    """The library's property `modified_on`, over a time that is made a datetime when it is asked for.

    That takes longer than calling the function of an event, and a fold sets the time of every event. An int there is
    microseconds since 1970 (StoredEvent.time_us); when a fold ends, it has made it a datetime.
    """

    _modified_on: Any

    @property
    def modified_on(self) -> datetime:
        """When the last event was decided, in UTC."""
        time: Any = self._modified_on
        return to_datetime(time) if type(time) is int else time

    @modified_on.setter
    def modified_on(self, time: datetime) -> None:
        self._modified_on = time

    def __getstate__(self) -> object:
        """What a copy or a pickle gets, also of an aggregate that an event copies in the middle of a fold."""
        state = super().__getstate__()
        if isinstance(state, dict) and type(state.get("_modified_on")) is int:
            return {**state, "_modified_on": self.modified_on}
        return state

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__getstate__() == other.__getstate__()


class Aggregate(_Dated, LibraryAggregate):
    """eventsourcing's Aggregate, whose ids are in the order of time: UUIDs of version 7 (RFC 9562).

    Stores look up streams by an index. Random ids make every new stream touch a page of its own there, which a commit
    then writes to the disk; ids in the order of time fill the same few pages. An id tells when it was made, to the
    millisecond. The library's own Aggregate, whose ids are random, works as well.
    """

    @staticmethod
    def create_id(*_: Any, **__: Any) -> UUID:
        """A new id: 48 bits of milliseconds since 1970, then 74 random bits."""
        random = int.from_bytes(urandom(10), "big")
        bits = (time.time_ns() // 1_000_000 & (1 << 48) - 1) << 80 | random & ~(0xF << 76) & ~(3 << 62)
        return UUID(int=bits | 7 << 76 | 2 << 62)


class NamedAggregate(_Dated, BaseAggregate[str]):
    """An aggregate whose id is a string of your own (the library's Aggregate has UUID ids only).

    Give the id by a parameter `id` of `__init__`, or compute it in a static `create_id` from parameters of the same
    names.
    """

    class Event(CanMutateAggregate[str], metaclass=MetaDomainEvent):
        """What every event of a named aggregate has."""

        originator_id: str
        originator_version: int
        timestamp: datetime

        def __post_init__(self) -> None:
            if not isinstance(self.originator_id, str):
                raise TypeError(f"the id of a named aggregate must be a string, not {self.originator_id!r}")

    class Created(Event, CanInitAggregate[str]):
        """The first event, where `__init__` is not decorated with a name of its own."""

        originator_topic: str


_MODIFIED_ON: tuple[object, ...] = (vars(BaseAggregate)["modified_on"], vars(_Dated)["modified_on"])

# The library asks `isinstance(x, Aggregate)` before it lets a command be called on the class (User.rename(user, …)) or
# a decorated property be set. Its Aggregate is bound to UUIDs, so NamedAggregate is registered beside it.
LibraryAggregate.register(NamedAggregate)


@dataclasses.dataclass(frozen=True, slots=True)
class EventType:
    """One event class of one aggregate class, as the codec and the fold need it."""

    aggregate: type[AnyAggregate]
    name: str
    """Such as `Registered`."""
    cls: type[Any]
    """The class to construct: the one that the library registers the decorated function under."""
    kind: Literal["created", "method", "own"]
    """Starts a stream; calls the function under `@event`; has a way of its own to change the aggregate."""
    function: Callable[..., Any] | None
    """What the compiled fold calls with the fields: None where only the library's own path is right."""
    fields: dict[str, Any]
    """Field name → annotation (Any where there is none, or where it cannot be resolved)."""
    defaults: dict[str, Any]
    """Field name → what is filled in where an old event does not have it."""
    wants_id: bool
    """Whether `function` is an `__init__` with a parameter `id`."""

    def id_of(self, stream: str) -> UUID | str:
        """The aggregate's own id again: text for a NamedAggregate, a UUID for all others."""
        return stream if self.cls.originator_id_type is str else UUID(stream)


def event_types(cls: type[AnyAggregate]) -> dict[str, EventType]:
    """The event types of an aggregate class, inherited ones included, by name."""
    return {name: _describe(cls, name, value) for name, value in _event_classes(cls)}


def _event_classes(cls: type[AnyAggregate]) -> list[tuple[str, type[Any]]]:
    # The library defines a class of its own for each inherited event, so the class's own attributes are all of them.
    return [
        (name, value)
        for name, value in vars(cls).items()
        if isinstance(value, type) and issubclass(value, CanMutateAggregate) and name != "Event"
    ]


def _describe(aggregate: type[AnyAggregate], name: str, cls: type[Any]) -> EventType:
    kind: Literal["created", "method", "own"]
    function: Callable[..., Any] | None
    if issubclass(cls, CanInitAggregate):
        kind, function = "created", aggregate.__init__
        plain = cls.mutate is CanInitAggregate.mutate and cls.apply is CanMutateAggregate.apply
        plain = plain and aggregate.__base_init__ is BaseAggregate.__base_init__
    elif issubclass(cls, DecoratedFuncCaller):
        # An inherited method triggers the event class of the aggregate that declared it: that one is registered.
        cls = next(c for c in cls.__mro__ if c in decorated_funcs)
        kind, function = "method", decorated_funcs[cls]
        applies = [c for c in cls.__mro__ if "apply" in vars(c)]
        plain = cls.mutate is CanMutateAggregate.mutate and applies == [DecoratedFuncCaller, CanMutateAggregate]
    else:
        kind, function, plain = "own", None, False
    fields, defaults = _fields(cls, function), _defaults(cls, function)
    parameters = set(inspect.signature(function).parameters) if function else set()
    plain = (
        plain
        and cls._as_dict is CanMutateAggregate._as_dict
        and _post_init_is_the_librarys(cls)
        and aggregate.version is BaseAggregate.version
        and getattr(aggregate, "modified_on", None) in _MODIFIED_ON
        and parameters.isdisjoint(ENVELOPE)
        and fields.keys() <= parameters
    )
    wants_id = kind == "created" and "id" in parameters
    return EventType(aggregate, name, cls, kind, function if plain else None, fields, defaults, wants_id)


def _post_init_is_the_librarys(cls: type[Any]) -> bool:
    found = getattr(cls, "__post_init__", None)
    return found in (None, DomainEvent.__post_init__, NamedAggregate.Event.__post_init__)


def _fields(cls: type[Any], function: Callable[..., Any] | None) -> dict[str, Any]:
    if dataclasses.is_dataclass(cls):
        names = [f.name for f in dataclasses.fields(cls)]
    else:  # the library allows pydantic models as event classes
        names = list(getattr(cls, "model_fields", {}))
    hints = {**_hints(function), **_hints(cls)} if function else _hints(cls)
    return {name: hints.get(name, Any) for name in names if name not in ENVELOPE}


def _defaults(cls: type[Any], function: Callable[..., Any] | None) -> dict[str, Any]:
    if function is not None:
        parameters = inspect.signature(function).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    found: dict[str, Any] = {}
    if dataclasses.is_dataclass(cls):
        for field in dataclasses.fields(cls):
            if field.default is not dataclasses.MISSING:
                found[field.name] = field.default
            elif field.default_factory is not dataclasses.MISSING:
                found[field.name] = field.default_factory()
        return found
    for name, model_field in getattr(cls, "model_fields", {}).items():
        if not model_field.is_required():
            found[name] = model_field.get_default(call_default_factory=True)
    return found


def _hints(of: Any) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(of, include_extras=True)
    except Exception:  # a name that exists only for the type checker; its values must then be plain ones
        hints = {}
    return {name: Any if hint is inspect.Parameter.empty else hint for name, hint in hints.items()}


def stream_of(id: UUID | str) -> str:
    """The stream id of an aggregate id. Raises ConfigurationError for one that cannot be a stream id."""
    if type(id) is UUID:
        return str(id)
    if not isinstance(id, (str, UUID)):
        raise ConfigurationError(f"an aggregate's id is a UUID or a string, not {id!r}")
    text = str(id)
    try:
        size = len(text.encode())
    except UnicodeEncodeError as e:
        raise ConfigurationError(f"{text!r} cannot be an aggregate's id: it is not valid Unicode text ({e})") from e
    if text.startswith(OWN_STREAMS):
        raise ConfigurationError(
            f"{text!r} cannot be an aggregate's id: those that begin with {OWN_STREAMS!r} are evsync's"
        )
    if "\0" in text:
        raise ConfigurationError(f"an aggregate's id holds no NUL character, which PostgreSQL cannot keep: {text!r}")
    if not 0 < size <= MAX_STREAM_ID_BYTES:
        raise ConfigurationError(
            f"an aggregate's id takes 1 to {MAX_STREAM_ID_BYTES} bytes in UTF-8, and {text[:40]!r}… takes {size}: "
            "use a short key as the id and keep the text in a field"
        )
    return text


def is_dated(aggregate: AnyAggregate) -> bool:
    """Whether `_modified_on` may be an int while it is folded."""
    return getattr(type(aggregate), "modified_on", None) is _MODIFIED_ON[1]


def topic_of(cls: type[AnyAggregate]) -> str:
    """The library's name of an aggregate class, which its first events carry in memory."""
    return get_topic(cls)


def invoke(decide: Callable[..., Any], aggregate: AnyAggregate, *args: Any, **kwargs: Any) -> None:
    """Call a command on an aggregate: a function of the aggregate, or a method taken from the class.

    Raises TypeError for a method of an object, which would change that one, and for a coroutine function: a decision
    takes no time and calls nobody.
    """
    if isinstance(decide, UnboundCommandMethodDecorator):
        # The library's own call insists on its UUID-bound base class; binding does what its call would do.
        BoundCommandMethodDecorator(decide.event_decorator, aggregate)(*args, **kwargs)
        return
    bound = decide.obj if isinstance(decide, BoundCommandMethodDecorator) else getattr(decide, "__self__", None)
    if isinstance(bound, BaseAggregate):
        method = f"{type(aggregate).__name__}.{getattr(decide, '__name__', '…')}"
        raise TypeError(
            f"{method} of the object {bound.id} was given, and another object is loaded, to be changed and saved: give "
            f"the method of the class, {method}"
        )
    result = decide(aggregate, *args, **kwargs)
    if isinstance(result, types.CoroutineType):
        result.close()
        raise TypeError(
            f"{getattr(decide, '__qualname__', decide)!r} is a coroutine function; a decision is a plain function of "
            "the aggregate. Look up what it needs before, and pass it as an argument."
        )
