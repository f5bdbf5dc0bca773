"""What evsync knows of the library's aggregates."""

from __future__ import annotations

import time
from collections import Counter
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import RFC_4122, UUID, uuid4

import pytest
from eventsourcing.domain import BaseAggregate, CanInitAggregate, CanMutateAggregate
from pydantic import BaseModel, ConfigDict, Field

from evsync.codec.events import EventCodec
from evsync.codec.values import unpack
from evsync.domain import Aggregate, NamedAggregate, event, event_types, invoke, stream_of
from evsync.errors import ConfigurationError
from evsync.sharding.slots import slot_of
from tests.aggregates import Account, Basket, Savings
from tests.stored import as_stored, folded


def test_event_types_are_named_by_service_aggregate_and_event() -> None:
    """The module path is no part of the name: moving a class to another module changes nothing."""
    types = EventCodec("bank", [Account]).types
    assert {"bank.Account.Opened", "bank.Account.Deposited", "bank.Account.Audited"} <= set(types)
    assert not any("tests" in t for t in types)


def test_ids_are_in_the_order_of_time_and_spread_over_all_slots() -> None:
    """UUIDs of version 7: what is made later sorts later, to the millisecond; and no slot gets more than its share."""
    before = time.time_ns() // 1_000_000
    ids = [Aggregate.create_id() for _ in range(4_000)]
    after = time.time_ns() // 1_000_000
    times_ms = [id.int >> 80 for id in ids]
    assert times_ms == sorted(times_ms)
    assert before <= times_ms[0]
    assert times_ms[-1] <= after
    assert {(id.version, id.variant) for id in ids} == {(7, RFC_4122)}
    assert len(set(ids)) == 4_000
    shares = Counter(slot_of(str(id), 16) for id in ids)
    assert len(shares) == 16
    assert max(shares.values()) < 2 * 4_000 / 16


def test_an_inherited_event_belongs_to_the_aggregate_that_inherits_it() -> None:
    """A subclass has event types of its own, triggered by the inherited methods."""
    codec = EventCodec("bank", [Account, Savings])
    account = Savings("ada", 5)
    account.deposit(7)
    new = codec.encode(account, account.pending_events, {})
    assert [e.type for e in new] == ["bank.Savings.Opened", "bank.Savings.Deposited"]


def test_a_method_is_compiled_and_an_event_with_its_own_apply_is_not() -> None:
    """Only where the library does nothing but call the function may the fold call it instead."""
    types = event_types(Account)
    assert types["Deposited"].function is not None
    assert types["Audited"].function is None
    assert types["Stamped"].function is None, "it asks for the timestamp, which the library passes"


def test_two_aggregates_of_one_name_are_refused() -> None:
    """Their events would have the same type."""
    other = type("Basket", (NamedAggregate,), {"__module__": "json"})
    with pytest.raises(ConfigurationError, match=r"two aggregates named Basket, in tests\.aggregates and in json"):
        EventCodec("shop", [Basket, other])


def test_what_is_no_aggregate_class_is_refused() -> None:
    """When the service is made, not at the first save."""
    with pytest.raises(ConfigurationError, match="not an aggregate class"):
        EventCodec("bank", [int])  # type: ignore[list-item]


def test_a_named_aggregate_has_the_id_it_was_given() -> None:
    """Its id is a string, and its commands can be called on the class."""
    basket = Basket("b-1", owner="ada")
    Basket.add(basket, "sku-1")
    invoke(Basket.add, basket, "sku-2")
    basket.note = "gift"
    assert (basket.id, basket.skus, basket.note) == ("b-1", ["sku-1", "sku-2"], "gift")


def test_a_named_aggregate_refuses_an_id_that_is_no_string() -> None:
    """A UUID would come back as text."""
    with pytest.raises(TypeError, match="must be a string"):
        Basket(uuid4(), owner="ada")  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", ["", "a\0b", "x" * 513, "é" * 257, "\ud800", 7, None])
def test_an_id_that_cannot_be_a_stream_id_is_refused_with_what_to_do(bad: object) -> None:
    """Empty, longer than 512 bytes, not text."""
    with pytest.raises(ConfigurationError, match="aggregate's id"):
        stream_of(bad)  # type: ignore[arg-type]


def test_a_uuid_is_its_own_text() -> None:
    """As people write it."""
    id = UUID("12345678-1234-5678-1234-567812345678")
    assert stream_of(id) == "12345678-1234-5678-1234-567812345678"


def test_a_decision_that_is_a_coroutine_is_refused() -> None:
    """It would never run, and its events would be missing without a word."""

    async def decide(account: Account) -> None:
        account.deposit(1)

    with pytest.raises(TypeError, match="coroutine"):
        invoke(decide, Account("ada", 1))


class Clock(Aggregate):
    """Its event has no annotations that can be resolved at run time."""

    @event("Set")
    def __init__(self, at: NotImported) -> None:  # type: ignore[name-defined]  # noqa: F821
        self.at = at


def test_an_annotation_that_cannot_be_resolved_counts_as_any() -> None:
    """Names that exist only for the type checker do not keep a service from being made."""
    assert event_types(Clock)["Set"].fields["at"] is not datetime
    EventCodec("clocks", [Clock])


class Modelled(BaseAggregate[UUID]):
    """An aggregate in the other style that the library knows: its events are pydantic models."""

    class Event(BaseModel, CanMutateAggregate[UUID]):
        """What every event has."""

        model_config = ConfigDict(frozen=True)

        originator_id: UUID
        originator_version: int
        timestamp: datetime

    class Created(Event, CanInitAggregate[UUID]):
        """The first event."""

        originator_topic: str

    @staticmethod
    def create_id(*_: Any, **__: Any) -> UUID:
        """Any id."""
        return uuid4()


class Parcel(Modelled):
    """One of them."""

    class Weighed(Modelled.Event):
        """An event that changes the aggregate in its own way."""

        weight: Decimal = Decimal("1.5")
        marks: list[str] = Field(default_factory=list)

        def apply(self, aggregate: Any) -> None:
            """Take the weight over."""
            aggregate.weight = self.weight

    @event("Packed")
    def __init__(self, to: str) -> None:
        self.to, self.weight = to, Decimal(0)

    @event("Sent")
    def send(self, to: str) -> None:
        """Send it somewhere else."""
        self.to = to


def test_events_that_are_pydantic_models_are_kept_as_any_others() -> None:
    """By their own fields, without those of the envelope, and with the defaults that the model gives."""
    parcel = Parcel(to="Ada")
    parcel.trigger_event(Parcel.Weighed, weight=Decimal("2.50"))
    parcel.send("Bob")
    codec = EventCodec("post", [Parcel])
    stored = as_stored(codec, parcel)
    assert [unpack(e.data) for e in stored] == [
        {"to": "Ada"},
        {"weight": Decimal("2.50"), "marks": []},
        {"to": "Bob"},
    ]
    found = folded(codec, stored)
    assert isinstance(found, Parcel)
    assert (found.to, found.weight, found.version, found.modified_on) == ("Bob", Decimal("2.50"), 3, parcel.modified_on)
    assert event_types(Parcel)["Weighed"].defaults == {"weight": Decimal("1.5"), "marks": []}
