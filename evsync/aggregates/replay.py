"""The compiled fold: stored events → an aggregate.

The library's own `mutate` costs 13-40 µs an event, most of it bookkeeping that is the same for every event of a
class. It is done once per event type here (evsync.domain.event_types): decode, call the decorated function with the
fields, set version and time. Event classes with ways of their own (`apply`, `mutate`, `__post_init__`, envelope fields
as parameters) are constructed and applied by the library. Both give the same state; a property test says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from evsync.codec.events import Coding, EventCodec
from evsync.codec.values import unpack
from evsync.domain import AnyAggregate, is_dated, topic_of
from evsync.errors import DecodingError
from evsync.records import Change, to_datetime


class Fold:
    """Folds the events of one stream, in order, starting from `aggregate` (None: from nothing)."""

    def __init__(self, codec: EventCodec, stream: str, aggregate: AnyAggregate | None = None) -> None:
        self.aggregate = aggregate
        """After the events so far; None before any, and where an event has discarded it."""
        self.version = aggregate.version if aggregate is not None else 0
        """Of the last event."""
        self._codec, self._stream = codec, stream
        self._functions: dict[str, Callable[..., Any]] = {}
        """Of the types that need nothing but their function to be called; empty while there is no aggregate."""

    def add(self, changes: Iterable[Change]) -> None:
        """Apply what follows.

        Raises DecodingError, with stream and version, for an event that cannot be read or does not follow its
        predecessor; the aggregate must then be thrown away.
        """
        aggregate: Any = self.aggregate
        due, function_of = self.version, self._functions.get
        dated = aggregate is not None and is_dated(aggregate)
        change: Change | None = None
        try:
            for change in changes:
                _, version, type, time_us, data, _ = change
                due += 1
                function = function_of(type)
                if function is not None and version == due:
                    function(aggregate, **unpack(data))
                    # The properties' own setters do just this (event_types made sure that they are the library's).
                    aggregate._version = version
                    aggregate._modified_on = time_us if dated else to_datetime(time_us)
                else:
                    aggregate = _apply(self._codec, self._stream, change, due, aggregate, self._functions)
                    if aggregate is None:
                        self._functions.clear()
                    else:
                        dated = is_dated(aggregate)
        except Exception as error:  # decorated functions are users' code
            if change is None:
                raise
            raise _unreadable(self._stream, change, error) from error
        if dated and aggregate is not None:
            aggregate._modified_on = aggregate.modified_on
        self.aggregate, self.version = aggregate, due


def fold(
    codec: EventCodec, stream: str, changes: Iterable[Change], aggregate: AnyAggregate | None = None
) -> AnyAggregate | None:
    """The aggregate after these events of one stream: see Fold. None for no events."""
    folding = Fold(codec, stream, aggregate)
    folding.add(changes)
    return folding.aggregate


def _apply(
    codec: EventCodec,
    stream: str,
    change: Change,
    due: int,
    aggregate: AnyAggregate | None,
    functions: dict[str, Callable[..., Any]],
) -> AnyAggregate | None:
    """The aggregate after one event; adds to `functions` what the next one of its type needs only."""
    position, version, type, time_us, data, meta = change
    if version != due:
        raise _Misplaced(f"stream {stream!r}: version {version} (position {position}) where {due} belongs")
    coding = codec.coding_of(type)
    function = coding.event.function
    if (aggregate is None) != (coding.event.kind == "created"):
        raise DecodingError("a stream begins with the event that creates its aggregate, and has only one")
    fields = codec.fields_of(coding, data, meta)
    if function is None:
        return apply_by_library(coding, stream, change, fields, aggregate)
    if aggregate is None:
        return _create(coding, stream, change, fields)
    if not coding.readers and not coding.upcasters:
        functions[type] = function
    function(aggregate, **fields)
    aggregate._version = version
    aggregate._modified_on = to_datetime(time_us)
    return aggregate


def _create(coding: Coding, stream: str, change: Change, fields: dict[str, Any]) -> AnyAggregate:
    cls, function = coding.event.aggregate, coding.event.function
    assert function is not None
    aggregate: AnyAggregate = cls.__new__(cls)
    id = coding.event.id_of(stream)
    aggregate.__base_init__(id, change[1], to_datetime(change[3]))
    if coding.event.wants_id:
        fields["id"] = id
    function(aggregate, **fields)
    return aggregate


def apply_by_library(
    coding: Coding, stream: str, change: Change, fields: dict[str, Any], aggregate: AnyAggregate | None
) -> AnyAggregate | None:
    """Construct the event as the library would and let it mutate the aggregate."""
    event = coding.event
    if event.kind == "created":
        fields["originator_topic"] = topic_of(event.aggregate)
    library_event = event.cls(
        originator_id=event.id_of(stream),
        originator_version=change[1],
        timestamp=to_datetime(change[3]),
        **fields,
    )
    mutated: AnyAggregate | None = library_event.mutate(aggregate)
    return mutated


class _Misplaced(DecodingError):
    """An event that says by itself where it stands."""


def _unreadable(stream: str, change: Change, error: Exception) -> DecodingError:
    if isinstance(error, _Misplaced):
        return DecodingError(str(error))
    position, version, type, *_ = change
    where = f"version {version} of stream {stream!r} ({type}, position {position})"
    if isinstance(error, DecodingError):
        return DecodingError(f"{where} cannot be read: {error}")
    hint = ""
    if isinstance(error, TypeError) and "argument" in str(error):
        hint = " If the event's fields have changed since, give the service upcasters= for this type."
    return DecodingError(f"{where} cannot be applied: {error.__class__.__name__}: {error}.{hint}")
