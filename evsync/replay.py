"""The compiled fold: stored events → an aggregate.

The library's own `mutate` costs 13-40 µs an event, most of it bookkeeping that is the same for every event of a
class. It is done once per event type here (evsync.domain.event_types): decode, call the decorated function with the
fields, set version and time. Event classes with ways of their own (`apply`, `mutate`, `__post_init__`, envelope fields
as parameters) are constructed and applied by the library. Both give the same state; a property test says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

from evsync.codec.events import Coding, EventCodec
from evsync.codec.values import unpack
from evsync.domain import AnyAggregate, topic_of
from evsync.errors import DecodingError
from evsync.records import EPOCH, StoredEvent, to_datetime

MICROSECOND = timedelta(microseconds=1)


def fold(
    codec: EventCodec, events: Iterable[StoredEvent], aggregate: AnyAggregate | None = None
) -> AnyAggregate | None:
    """The aggregate after these events of one stream, in order, starting from `aggregate` (None: from nothing).

    Returns None for no events. Raises DecodingError, with stream and version, for an event that cannot be read or does
    not follow its predecessor; `aggregate` must then be thrown away.
    """
    version = aggregate.version if aggregate is not None else 0
    functions: dict[str, Callable[..., Any]] = {}  # of the types that need nothing but their function to be called
    for e in events:
        version += 1
        if e.version != version:
            raise DecodingError(
                f"stream {e.stream!r}: version {e.version} (position {e.position}) where {version} belongs"
            )
        try:
            if aggregate is not None and (function := functions.get(e.type)) is not None:
                function(aggregate, **unpack(e.data))
                # The properties' own setters do just this (event_types made sure that they are the library's).
                aggregate._version = version
                aggregate._modified_on = EPOCH + e.time_us * MICROSECOND
            else:
                aggregate = _apply(codec, e, aggregate, functions)
        except Exception as error:  # decorated functions are users' code
            raise _unreadable(e, error) from error
    return aggregate


def _apply(
    codec: EventCodec, e: StoredEvent, aggregate: AnyAggregate | None, functions: dict[str, Callable[..., Any]]
) -> AnyAggregate | None:
    """The aggregate after one event; adds to `functions` what the next one of its type needs only."""
    coding = codec.coding_for(e)
    function = coding.event.function
    if (aggregate is None) != (coding.event.kind == "created"):
        raise DecodingError("a stream begins with the event that creates its aggregate, and has only one")
    fields = codec.fields_of(coding, e)
    if function is None:
        return apply_by_library(coding, e, fields, aggregate)
    if aggregate is None:
        return _create(coding, e, fields)
    if not coding.readers and not coding.upcasters:
        functions[e.type] = function
    function(aggregate, **fields)
    aggregate._version = e.version
    aggregate._modified_on = to_datetime(e.time_us)
    return aggregate


def _create(coding: Coding, e: StoredEvent, fields: dict[str, Any]) -> AnyAggregate:
    cls, function = coding.event.aggregate, coding.event.function
    assert function is not None
    aggregate: AnyAggregate = cls.__new__(cls)
    id = coding.event.id_of(e.stream)
    aggregate.__base_init__(id, e.version, to_datetime(e.time_us))
    if coding.event.wants_id:
        fields["id"] = id
    function(aggregate, **fields)
    return aggregate


def apply_by_library(
    coding: Coding, e: StoredEvent, fields: dict[str, Any], aggregate: AnyAggregate | None
) -> AnyAggregate | None:
    """Construct the event as the library would and let it mutate the aggregate."""
    event = coding.event
    if event.kind == "created":
        fields["originator_topic"] = topic_of(event.aggregate)
    library_event = event.cls(
        originator_id=event.id_of(e.stream),
        originator_version=e.version,
        timestamp=to_datetime(e.time_us),
        **fields,
    )
    mutated: AnyAggregate | None = library_event.mutate(aggregate)
    return mutated


def _unreadable(e: StoredEvent, error: Exception) -> DecodingError:
    if isinstance(error, DecodingError) and repr(e.stream) in str(error):
        return error
    hint = ""
    if isinstance(error, TypeError) and "argument" in str(error):
        hint = " If the event's fields have changed since, give the service upcasters= for this type."
    return DecodingError(
        f"version {e.version} of stream {e.stream!r} ({e.type}, position {e.position}) cannot be applied: "
        f"{type(error).__name__}: {error}.{hint}"
    )
