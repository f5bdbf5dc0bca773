"""What is found between two documents, by kind of change, and who reads what has changed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from pydantic import AliasChoices, AliasPath, BaseModel, Field

from evsync.codec.events import EventCodec
from evsync.contracts.changes import Change, changes, is_breaking
from evsync.contracts.document import document_of, read
from evsync.contracts.readers import readers_of
from evsync.domain import Aggregate, event
from evsync.errors import ConfigurationError
from evsync.projections import Contract, Event, MemoryModel, Projection, Reaction
from tests.exported import document_with

MADE = "art.Picture.Made"


class Two(Enum):
    """Two values."""

    A = "a"
    B = "b"


class Other(Enum):
    """One of them, and another."""

    B = "b"
    C = "c"


@dataclass
class Line:
    """Stands in lists."""

    sku: str
    price: int


@dataclass
class PricedLine:
    """The same, later."""

    sku: str
    price: int | None
    gift: bool = False


@dataclass
class Folder:
    """Holds itself."""

    name: str
    folders: list[Folder]


@dataclass
class Box:
    """Holds itself, and has a number instead of a name."""

    name: int
    folders: list[Box]


def between(old: dict[str, Any], new: dict[str, Any], **defaults: dict[str, Any]) -> list[tuple[str, str, set[str]]]:
    """Field, what has changed, and whom it breaks."""
    found = changes(document_with(old, defaults.get("had")), document_with(new, defaults.get("has")))
    return [(c.where, c.what, set(c.breaks)) for c in found]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"a": str}, {}, ("a", "field removed", {"consumers"})),
        ({}, {"a": str}, ("a", "field added", {"history"})),
        ({"a": int | None}, {"a": int}, ("a", "type narrowed", {"history"})),
        ({"a": int}, {"a": int | None}, ("a", "type widened", {"consumers"})),
        ({"a": int}, {"a": float}, ("a", "type widened", {"consumers"})),
        ({"a": str}, {"a": UUID}, ("a", "type changed", {"consumers", "history"})),
        ({"a": list[int]}, {"a": set[int]}, ("a", "type narrowed", {"history"})),
        ({"a": list[str]}, {"a": list[date]}, ("a[]", "type changed", {"consumers", "history"})),
        ({"a": dict[str, int]}, {"a": dict[str, str]}, ("a{}", "type changed", {"consumers", "history"})),
        ({"a": dict[str, int]}, {"a": dict[int, int]}, ("a", "type changed", {"consumers", "history"})),
        ({"a": Any}, {"a": str}, ("a", "type narrowed", {"history"})),
        ({"a": Folder}, {"a": Box}, ("a.name", "type changed", {"consumers", "history"})),
    ],
)
def test_one_change_is_found_and_named(old: dict[str, Any], new: dict[str, Any], expected: Any) -> None:
    """Where, what, and whom it breaks; inside of arrays, maps and classes too."""
    assert between(old, new) == [expected]
    assert between(old, old) == []


def test_changes_of_defaults_are_found() -> None:
    """A default that is lost breaks contracts made from now on, at events that lack the field."""
    a = {"a": int}
    assert between(a, a, had={"a": 1}) == [("a", "default lost", {"history"})]
    assert between(a, a, has={"a": 1}) == [("a", "default added", set())]
    assert between(a, a, had={"a": 1}, has={"a": 2}) == [("a", "default changed", set())]
    assert between({}, a, has={"a": 1}) == [("a", "field added", set())]


def test_values_of_an_enum_are_found_each() -> None:
    """A new value breaks who knew the old ones; a lost one breaks who knows the new ones only."""
    found = changes(document_with({"a": Two | None}), document_with({"a": Other | None}))
    assert [(c.what, c.detail, c.breaks) for c in found] == [
        ("enum value added", '"c"', ("consumers",)),
        ("enum value removed", '"a"', ("history",)),
    ]


def test_changes_inside_of_a_class_are_found_each() -> None:
    """With the way to each field."""
    assert between({"lines": list[Line] | None}, {"lines": list[PricedLine] | None}) == [
        ("lines[].price", "type widened", {"consumers"}),
        ("lines[].gift", "field added", set()),
    ]


def test_limits_of_a_type_are_compared() -> None:
    """A tighter limit is a narrower type."""
    from typing import Annotated

    loose, tight = (Annotated[str, Field(max_length=n)] for n in (9, 3))
    assert between({"a": loose}, {"a": tight}) == [("a", "type narrowed", {"history"})]
    assert between({"a": tight}, {"a": loose}) == [("a", "type widened", {"consumers"})]
    assert between({"a": str}, {"a": Annotated[str, Field(pattern="x")]}) == [("a", "type narrowed", {"history"})]


class Cart(Aggregate):
    """Has one event."""

    @event("Filled")
    def fill(self, n: int) -> None:
        """Put n things in."""


class Basket(Aggregate):
    """What Cart is called later."""

    @event("Filled")
    def fill(self, n: int) -> None:
        """Put n things in."""

    @event("Emptied")
    def empty(self) -> None:
        """Take everything out."""


def same(fields: dict[str, Any]) -> dict[str, Any]:
    """An upcaster."""
    return fields


def test_event_types_and_schema_versions_are_compared() -> None:
    """A type that is gone breaks consumers, and if it has another name now that is said; upcasters are counted."""
    old = document_of(EventCodec("shop", [Cart]))
    new = document_of(EventCodec("shop", [Basket], renamed={"shop.Cart": "shop.Basket"}))
    found = {(c.event, c.what): c for c in changes(old, new)}
    assert found["shop.Cart.Filled", "event type renamed"].detail.startswith("to shop.Basket.Filled")
    assert found["shop.Cart.Filled", "event type renamed"].breaks == ("consumers",)
    assert found["shop.Basket.Emptied", "event type added"].breaks == ()
    gone = changes(new, old)
    assert Change("shop.Basket.Emptied", (), "event type removed", "no such event will come", ("consumers",)) in gone
    versions = [
        document_of(EventCodec("shop", [Cart], upcasters={"shop.Cart.Filled": [same] * n} if n else None))
        for n in (0, 1)
    ]
    assert [(c.what, is_breaking([c])) for c in changes(*versions)] == [("schema version raised", False)]
    assert [(c.what, is_breaking([c])) for c in changes(*reversed(versions))] == [("schema version lowered", True)]
    with pytest.raises(ConfigurationError, match="two services, shop and art"):
        changes(old, document_with({}))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "old.json is not JSON"),
        ("[]", "old.json is not a document of exported contracts: make one with `evsync contracts export"),
        ('{"asyncapi": "3.0.0"}', r"AsyncAPI document; compared are the JSON Schemas beside it.*\.schema\.json"),
        ('{"$defs": {}, "x-evsync": {"format": 2}}', "has format 2, and this evsync reads 1"),
    ],
)
def test_what_is_not_an_exported_document_is_refused(text: str, says: str) -> None:
    """With what it is, and how to make one."""
    with pytest.raises(ConfigurationError, match=says):
        read(text, "old.json")


class Inner(BaseModel):
    """A part of a line."""

    sku: str


class Made(Contract, type=MADE):
    """Reads some fields, by several names."""

    a: str = Field(validation_alias=AliasChoices("a", "old_a"))
    first: str = Field(validation_alias=AliasPath("tags", 0))
    lines: list[Inner]
    whole: dict[str, Any]


class OfArt(Contract, type="art.*", extra="allow"):
    """Takes whatever there is."""


class Elsewhere(Contract, type="music.*"):
    """Reads something else."""

    a: str


def test_the_projections_that_read_a_field_are_known() -> None:
    """By each of its names, inside of models as far as these go; `extra="allow"` reads everything."""
    view, reaction = Projection("view", model=MemoryModel[dict[str, Any]](dict)), Reaction("answer", since="now")
    for contract in (Made, Elsewhere):
        view.on(contract)(lambda e, state: None)

    @reaction.on(OfArt)
    async def answer(e: Event[OfArt], service: Any) -> None: ...

    readers = list(readers_of("shop", [view, reaction]))
    assert [str(r) for r in readers] == [
        "shop: projection view (Made)",
        "shop: projection view (Elsewhere)",
        "shop: reaction answer (OfArt)",
    ]
    fields = ["a", "old_a", "tags", "lines", "lines[].sku", "whole.x", "b", "first", "lines[].price"]
    read = [f for f in fields if readers[0].reads(MADE, f.replace("[]", ".[]").split("."))]
    assert read == ["a", "old_a", "tags", "lines", "lines[].sku", "whole.x"]
    assert readers[0].reads(MADE, ())
    assert not readers[0].reads("art.Picture.Hung", ())
    assert [r.reads(MADE, ("b",)) for r in readers] == [False, False, True]
