"""Testing aggregates: given these facts, when this command, then these facts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar
from uuid import UUID

from evsync.domain import AnyAggregate, BaseAggregate, NamedAggregate, event_types
from evsync.errors import ConfigurationError

A = TypeVar("A", bound=BaseAggregate[Any])
Fact = tuple[str, dict[str, Any]]


def facts(aggregate: AnyAggregate) -> list[Fact]:
    """What has happened to an aggregate and is not saved yet: event names with their fields, oldest first.

    assert facts(user)[1:] == [("Renamed", {"name": "Ada L."})]
    """
    types = {event.cls: event for event in event_types(type(aggregate)).values()}
    types |= {getattr(type(aggregate), event.name): event for event in types.values()}
    return [
        (types[type(e)].name, {field: vars(e)[field] for field in types[type(e)].fields})
        for e in aggregate.pending_events
    ]


def given(cls: type[A], *past: tuple[str, Mapping[str, Any]], id: UUID | str | None = None) -> A:
    """An aggregate to which these facts have happened, with nothing pending, as if it had been loaded.

        order = given(Order, ("Placed", {"customer_id": "c", "cds": 1, …}))
        order.cancel()
        assert facts(order) == [("Cancelled", …)]

    A named aggregate without `id` gets the id "given". Raises ConfigurationError for a fact that the class does not
    have, or for no facts at all: an aggregate begins with one.
    """
    if not past:
        raise ConfigurationError(f"given({cls.__name__}) needs the fact that the aggregate began with")
    types = event_types(cls)
    aggregate: A | None = None
    for name, fields in past:
        event = types.get(name)
        if event is None:
            raise ConfigurationError(f"{cls.__name__} has no event {name!r}; it has {', '.join(sorted(types))}")
        if aggregate is None:
            if event.kind != "created":
                raise ConfigurationError(f"{cls.__name__} cannot begin with {name!r}")
            if id is None and issubclass(cls, NamedAggregate):
                id = "given"
            aggregate = cls._create(event_class=event.cls, **{"id": id, **fields})
        else:
            aggregate.trigger_event(event.cls, **fields)
    assert aggregate is not None
    aggregate.pending_events.clear()
    return aggregate
