"""How events are written and read: what is kept exactly, and what is refused before anything is stored."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import pytest
from pydantic import BaseModel

from evsync.codec.events import EventCodec
from evsync.codec.fields import is_plain
from evsync.codec.values import pack, unpack
from evsync.domain import Aggregate, event
from evsync.errors import ConfigurationError, DecodingError, EncodingError
from evsync.records import StoredEvent
from tests.aggregates import Account, Address, Basket, Colour, Level
from tests.stored import as_stored, folded


class Strange:
    """A class that nothing can write."""


class Unwritable(Aggregate):
    """Announces a field that cannot be written."""

    @event("Begun")
    def __init__(self, thing: Strange) -> None:
        self.thing = thing


class Base(BaseModel):
    """A model that has a subclass."""

    a: int


class Sub(Base):
    """With more than the annotation knows."""

    b: int


@dataclass
class Picky:
    """Does not take its own output."""

    n: int

    def __post_init__(self) -> None:
        self.n += 1


class Mixed(Aggregate):
    """Fields that can be written, with values that cannot."""

    @event("Made")
    def __init__(self, base: Base | None = None, picky: Picky | None = None, plain: Any = None) -> None:
        self.base, self.picky, self.plain = base, picky, plain


def test_a_field_that_cannot_be_written_fails_when_the_service_is_made() -> None:
    """With the event type and the field's name."""
    with pytest.raises(EncodingError, match=r"field 'thing' of shop\.Unwritable\.Begun"):
        EventCodec("shop", [Unwritable])


@pytest.mark.parametrize(
    "made",
    [
        lambda: Mixed(base=Sub(a=1, b=2)),
        lambda: Mixed(picky=Picky(1)),
        lambda: Mixed(plain=Strange()),
        lambda: Mixed(plain=Colour.RED),
        lambda: Mixed(plain=Level.LOW),
        lambda: Mixed(plain=OrderedDict(a=1)),
        lambda: Mixed(plain=[Address("x")]),
        lambda: Mixed(plain=datetime(2026, 1, 1)),
        lambda: Mixed(plain="\ud800"),
        lambda: Mixed(plain={1: {2: Strange()}}),
    ],
    ids=[
        "subclass",
        "validator",
        "object",
        "enum",
        "IntEnum",
        "OrderedDict",
        "dataclass",
        "naive",
        "surrogate",
        "nested",
    ],
)
def test_a_value_that_would_not_come_back_fails_at_save_with_the_fields_name(made: Any) -> None:
    """A type that would be lost on the way is refused, never written as something else."""
    mixed = made()
    with pytest.raises(EncodingError, match=r"field '(base|picky|plain)' of shop\.Mixed\.Made.*Nothing was stored"):
        EventCodec("shop", [Mixed]).encode(mixed, mixed.pending_events, {})


def test_an_aggregate_of_another_service_is_refused() -> None:
    """With what to do."""
    basket = Basket("b", owner="ada")
    with pytest.raises(ConfigurationError, match="Basket is not an aggregate of service 'bank'"):
        EventCodec("bank", [Account]).encode(basket, basket.pending_events, {})


def test_an_unknown_event_type_names_the_type_and_renamed() -> None:
    """Nothing is skipped in silence."""
    codec = EventCodec("shop", [Basket])
    basket = Basket("b", owner="ada")
    [stored] = as_stored(codec, basket)
    with pytest.raises(DecodingError, match=r"'shop\.Basket\.Gone' is unknown.*renamed="):
        folded(codec, [stored._replace(type="shop.Basket.Gone")])


def test_renamed_maps_a_single_event_and_a_whole_aggregate() -> None:
    """Old events stay readable under the new names."""
    basket = Basket("b", owner="ada")
    basket.add("sku")
    stored = as_stored(EventCodec("shop", [Basket]), basket)
    old = [e._replace(type=e.type.replace("Basket", "Cart").replace("Added", "ItemAdded")) for e in stored]
    codec = EventCodec(
        "shop", [Basket], renamed={"shop.Cart": "shop.Basket", "shop.Cart.ItemAdded": "shop.Basket.Added"}
    )
    again = folded(codec, old)
    assert isinstance(again, Basket)
    assert (again.owner, again.skus) == ("ada", ["sku"])


@pytest.mark.parametrize(
    "renamed", [{"shop.Cart": "shop.Nothing"}, {"shop.Basket": "shop.Basket"}, {"shop.Cart.X": "shop.Basket"}]
)
def test_renamed_to_what_does_not_exist_is_refused(renamed: dict[str, str]) -> None:
    """A typing error here would surface when the first old event is read."""
    with pytest.raises(ConfigurationError, match="does not fit"):
        EventCodec("shop", [Basket], renamed=renamed)


def test_upcasters_bring_old_events_to_todays_schema() -> None:
    """Each goes from one schema version to the next; new events carry their version and are not upcast."""
    basket = Basket("b", owner="Ada Lovelace")
    [old] = as_stored(EventCodec("shop", [Basket]), basket)
    old = old._replace(data=pack({"holder": "ADA"}))

    def to_2(fields: dict[str, Any]) -> dict[str, Any]:
        return {"owner": fields["holder"]}

    def to_3(fields: dict[str, Any]) -> dict[str, Any]:
        return {"owner": fields["owner"].title()}

    codec = EventCodec("shop", [Basket], upcasters={"shop.Basket.Opened": [to_2, to_3]})
    first, second = folded(codec, [old]), folded(codec, as_stored(codec, basket))
    assert isinstance(first, Basket)
    assert isinstance(second, Basket)
    assert (first.owner, second.owner) == ("Ada", "Ada Lovelace")
    with pytest.raises(ConfigurationError, match="no such event type"):
        EventCodec("shop", [Basket], upcasters={"shop.Basket.Opend": [to_2]})


def test_every_old_event_of_a_stream_is_upcast() -> None:
    """Not only the first of its type: the fold may not remember how that one was read."""
    account = Account("ada", 1)
    for _ in range(3):
        account.deposit(5)
    first, *old = as_stored(EventCodec("bank", [Account]), account)
    old = [e._replace(data=pack({"cents": 500})) for e in old]
    codec = EventCodec(
        "bank", [Account], upcasters={"bank.Account.Deposited": [lambda f: {"amount": f["cents"] // 100}]}
    )
    found = folded(codec, [first, *old])
    assert isinstance(found, Account)
    assert found.balance == 16


def _lost(_: dict[str, Any]) -> dict[str, Any]:
    raise KeyError("holder")


def _nothing(_: dict[str, Any]) -> dict[str, Any]:
    return None  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        (_lost, "the upcaster of shop.Basket.Opened from schema version 2 to 3 raised KeyError: 'holder'"),
        (_nothing, "the upcaster of shop.Basket.Opened from schema version 2 to 3 returned NoneType, not the map"),
    ],
)
def test_an_upcaster_that_fails_is_named(broken: Callable[[Any], Any], what: str) -> None:
    """With the event: the fault is in the upcaster, not in the class or what is stored."""
    [old] = as_stored(EventCodec("shop", [Basket]), Basket("b", owner="ada"))
    codec = EventCodec("shop", [Basket], upcasters={"shop.Basket.Opened": [dict, broken]})
    with pytest.raises(DecodingError, match=f"version 1 of stream 'b' .*position 1.* cannot be read: {what}"):
        folded(codec, [old])


def test_events_of_a_newer_schema_are_refused_by_older_code() -> None:
    """They may have the same fields with another meaning."""
    newer = EventCodec("shop", [Basket], upcasters={"shop.Basket.Opened": [dict, dict]})
    older = EventCodec("shop", [Basket], upcasters={"shop.Basket.Opened": [dict]})
    stored = as_stored(newer, Basket("b", owner="ada"))
    with pytest.raises(DecodingError, match=r"in schema version 3 of shop\.Basket\.Opened, and this code knows 2"):
        folded(older, stored)


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x81", pack([1]), pack({"nobody": 1}), b"\xc7\x01\x63x", pack({}) + b"x"]
)
def test_a_corrupt_payload_names_stream_version_and_position(data: bytes) -> None:
    """Truncated, foreign, of another shape, with an unknown extension type, with bytes behind it."""
    codec = EventCodec("shop", [Basket])
    [stored] = as_stored(codec, Basket("b", owner="ada"))
    with pytest.raises(DecodingError, match=r"version 1 of stream 'b' \(shop\.Basket\.Opened, position 1\)"):
        folded(codec, [stored._replace(data=data)])


def test_a_stream_with_a_missing_version_is_not_folded() -> None:
    """A hole in a stream is never papered over."""
    codec = EventCodec("shop", [Basket])
    basket = Basket("b", owner="ada")
    basket.add("1")
    basket.add("2")
    first, _, third = as_stored(codec, basket)
    with pytest.raises(DecodingError, match=r"version 3 .* where 2 belongs"):
        folded(codec, [first, third])
    basket.add("3")
    first, second, _, fourth = as_stored(codec, basket)
    with pytest.raises(DecodingError, match=r"version 4 .* where 3 belongs"):  # the second of its type: see Fold
        folded(codec, [first, second, fourth])
    with pytest.raises(DecodingError, match="begins with the event that creates"):
        folded(codec, [third._replace(version=1)])


def test_big_integers_and_nested_collections_come_back_exactly() -> None:
    """msgpack ends at 64 bits; the codec does not."""
    value = {"n": 2**80, "m": -(2**70), "t": (1, (2, [3])), "s": {1, 2}, "f": frozenset({"a"}), "k": {1: 2, None: 3}}
    assert unpack(pack(value)) == value


def test_the_same_set_is_written_as_the_same_bytes() -> None:
    """Digests compare bytes: the order of a set must not depend on the process."""
    assert pack({"b", "a", "c"}) == pack({"c", "a", "b"})
    one, other = set([0, 8]), set([8, 0])  # noqa: C405  (equal hashes in a small table: the first one comes first)
    assert list(one) != list(other)
    assert pack(one) == pack(other)


def test_what_is_plain_needs_no_conversion() -> None:
    """Only annotated enums, models, dataclasses, tuples and sets do."""
    assert all(map(is_plain, [str, int | None, list[str], dict[str, datetime], Any, list]))
    assert not any(map(is_plain, [Colour, Address, tuple[int, ...], set[int], list[Colour], Colour | None, Enum]))


def test_a_timestamp_without_a_zone_is_refused() -> None:
    """It would mean another moment on another machine."""
    basket = Basket("b", owner="ada")
    basket.trigger_event(Basket.Added, sku="x", timestamp=datetime(2026, 1, 1))
    with pytest.raises(EncodingError, match="no time zone"):
        EventCodec("shop", [Basket]).encode(basket, basket.pending_events, {})
    assert datetime.now(UTC).tzinfo is UTC


def test_stored_events_are_tuples_in_column_order() -> None:
    """A database row becomes one without naming its columns."""
    assert StoredEvent._fields[:3] == ("position", "stream", "version")
