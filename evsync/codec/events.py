"""The events of one service's aggregates: library event ⇄ stored event."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from evsync.codec.fields import wire_of
from evsync.codec.values import pack, unpack
from evsync.domain import AnyAggregate, BaseAggregate, EventType, event_types
from evsync.errors import ConfigurationError, DecodingError, EncodingError
from evsync.records import NewEvent, StoredEvent, check_name, decode_meta, encode_meta, to_time_us

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]


class Coding(NamedTuple):
    """How the events of one type are written and read."""

    type: str
    """`service.Aggregate.Event`."""
    event: EventType
    names: tuple[str, ...]
    writers: tuple[tuple[str, Callable[[Any], Any]], ...]
    readers: tuple[tuple[str, Callable[[Any], Any]], ...]
    upcasters: tuple[Upcaster, ...]


class EventCodec:
    """Encodes and decodes the events of a service's aggregates.

    Event types are named `service.Aggregate.Event`, never by module path. `renamed` maps old type names to today's:
    `users.Person.Registered` → `users.User.Registered`, or a whole aggregate, `users.Person` → `users.User`.
    `upcasters[type]` are functions from the fields of one schema version to the next: with n of them, today's events
    are of schema n + 1. Raises ConfigurationError for names that do not fit, EncodingError for a field whose
    annotation cannot be written.
    """

    def __init__(
        self,
        service: str,
        aggregates: Sequence[type[AnyAggregate]],
        *,
        renamed: Mapping[str, str] | None = None,
        upcasters: Mapping[str, Sequence[Upcaster]] | None = None,
    ) -> None:
        self.service = check_name("service", service)
        self.aggregates = tuple(aggregates)
        self._of_type: dict[str, Coding] = {}
        self._of_class: dict[tuple[type[Any], type[Any]], Coding] = {}
        self._renamed = dict(renamed or {})
        upcasters = upcasters or {}
        self._check_chains(upcasters)
        self._check_aggregates()
        for cls in self.aggregates:
            for name, event in event_types(cls).items():
                type_ = f"{service}.{cls.__name__}.{name}"
                self._add(type_, event, tuple(upcasters.get(type_, ())))
        self._check_names(upcasters)

    def _check_aggregates(self) -> None:
        names: dict[str, type[AnyAggregate]] = {}
        for cls in self.aggregates:
            if not (isinstance(cls, type) and issubclass(cls, BaseAggregate)):
                raise ConfigurationError(f"aggregates of service {self.service!r}: {cls!r} is not an aggregate class")
            if (other := names.setdefault(cls.__name__, cls)) is not cls:
                raise ConfigurationError(
                    f"service {self.service!r} has two aggregates named {cls.__name__}, in {other.__module__} and in "
                    f"{cls.__module__}. Event types are named by them: rename one class "
                    "(renamed= keeps the stored events readable)"
                )

    def _add(self, type: str, event: EventType, upcasters: tuple[Upcaster, ...]) -> None:
        writers, readers = [], []
        for field, annotation in event.fields.items():
            try:
                wire = wire_of(annotation)
            except EncodingError as e:
                raise EncodingError(f"field {field!r} of {type}: {e}") from e
            if wire:
                writers.append((field, wire.write))
                readers.append((field, wire.read))
        coding = Coding(type, event, tuple(event.fields), tuple(writers), tuple(readers), upcasters)
        self._of_type[type] = coding
        for cls in {event.cls, getattr(event.aggregate, event.name)}:
            self._of_class[event.aggregate, cls] = coding

    def _check_names(self, upcasters: Mapping[str, Any]) -> None:
        known = set(self._of_type) | {t.rsplit(".", 1)[0] for t in self._of_type}
        for old, new in self._renamed.items():
            if new not in known or old in known or old.count(".") != new.count("."):
                raise ConfigurationError(
                    f"renamed={{{old!r}: {new!r}}} does not fit: the old name must be gone and the new one be one of "
                    f"{', '.join(sorted(known)) or '(no aggregates)'}"
                )
        for type in upcasters:
            if type not in self._of_type:
                raise ConfigurationError(
                    f"upcasters for {type!r}: there is no such event type, only {', '.join(sorted(self._of_type))}"
                )

    def _check_chains(self, upcasters: Mapping[str, Any]) -> None:
        for type, chain in upcasters.items():
            if not isinstance(chain, Sequence) or not all(callable(step) for step in chain):
                raise ConfigurationError(
                    f"service {self.service!r}: upcasters for {type!r}: {chain!r}, where a list of functions is "
                    "needed, one for each step from one schema version to the next"
                )

    @property
    def renamed(self) -> Mapping[str, str]:
        """Old names of event types, or of whole aggregates, to today's."""
        return self._renamed

    @property
    def types(self) -> tuple[str, ...]:
        """All event types of the service, sorted."""
        return tuple(sorted(self._of_type))

    def encode(self, aggregate: AnyAggregate, events: Sequence[Any], tags: Mapping[str, str]) -> list[NewEvent]:
        """Library events of an aggregate as new events. Raises EncodingError with the event type and the field."""
        new, meta, of_class, cls = [], encode_meta(tags), self._of_class, type(aggregate)
        for event in events:
            coding = of_class.get((cls, type(event)))
            if coding is None:
                raise ConfigurationError(
                    f"{type(aggregate).__qualname__} is not an aggregate of service {self.service!r}, or "
                    f"{type(event).__qualname__} not an event of it: give it to Service(aggregates=[…])"
                )
            values = event.__dict__
            fields = {name: values[name] for name in coding.names}
            try:
                for name, write in coding.writers:
                    fields[name] = write(fields[name])
                data = pack(fields)
            except Exception as e:  # pydantic's serializers raise whatever a user's own code raises
                raise _blame(coding, values, e) from e
            time = values["timestamp"]
            if time.tzinfo is None:
                raise EncodingError(f"{coding.type}: its timestamp {time!r} has no time zone")
            own = encode_meta({**tags, "schema": str(len(coding.upcasters) + 1)}) if coding.upcasters else meta
            new.append(NewEvent(coding.type, to_time_us(time), data, own))
        return new

    def coding_of(self, type: str) -> Coding:
        """The coding of a stored type name, old names included. Raises DecodingError for an unknown one."""
        coding = self._of_type.get(type)
        if coding is None:
            coding = self._of_type.get(renamed_to(type, self._renamed) or "")
            if coding is None:
                raise DecodingError(
                    f"event type {type!r} is unknown to service {self.service!r}. If a class was renamed, say so with "
                    f"renamed={{{type!r}: …}}; known types: {', '.join(self.types)}"
                )
            self._of_type[type] = coding
        return coding

    def fields_of(self, coding: Coding, data: bytes, meta: str | None) -> dict[str, Any]:
        """The fields of a stored event, upcast to today's schema. Raises DecodingError."""
        fields: dict[str, Any] = unpack(data)
        if type(fields) is not dict:
            raise DecodingError(f"a map of fields was expected, not {type(fields).__name__}")
        if coding.upcasters:
            fields = _upcast(coding, fields, int(decode_meta(meta).get("schema", "1")))
        for name, read in coding.readers:
            if name in fields:
                fields[name] = read(fields[name])
        return fields


def renamed_to(type: str, renamed: Mapping[str, str]) -> str | None:
    """Today's name of an event type, by old names of types and of whole aggregates; None if neither is among them."""
    aggregate, _, event = type.rpartition(".")
    return renamed.get(type) or (f"{renamed[aggregate]}.{event}" if aggregate in renamed else None)


def _upcast(coding: Coding, fields: dict[str, Any], written: int) -> dict[str, Any]:
    """The fields in today's schema, of an event that was written in an earlier one. Raises DecodingError."""
    today = len(coding.upcasters) + 1
    if written > today:
        raise DecodingError(
            f"it was written in schema version {written} of {coding.type}, and this code knows {today}: newer code has "
            "written it. Use that, or give the upcasters= that it has"
        )
    for version, upcast in enumerate(coding.upcasters[written - 1 :], written):
        who = f"the upcaster of {coding.type} from schema version {version} to {version + 1}"
        try:
            fields = upcast(fields)
        except Exception as e:
            raise DecodingError(f"{who} raised {type(e).__name__}: {e}. Mend it; nothing was changed") from e
        if not isinstance(fields, dict):
            raise DecodingError(f"{who} returned {type(fields).__name__}, not the map of fields. Mend it")
    return fields


def unreadable(stored: StoredEvent, error: Exception) -> DecodingError:
    """The error again, saying where."""
    return DecodingError(
        f"version {stored.version} of stream {stored.stream!r} ({stored.type}, position {stored.position}) "
        f"cannot be read: {error}"
    )


def _blame(coding: Coding, values: Mapping[str, Any], error: Exception) -> EncodingError:
    """The error again, naming the field: each is written alone."""
    writers = dict(coding.writers)
    for name in coding.names:
        try:
            pack(writers[name](values[name]) if name in writers else values[name])
        except Exception as e:
            return EncodingError(f"field {name!r} of {coding.type}: {e}. Nothing was stored.")
    return EncodingError(f"{coding.type}: {error}. Nothing was stored.")
