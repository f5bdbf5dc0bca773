"""What is exported describes what is written, and a change that is called compatible breaks nobody."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from evsync.codec.events import EventCodec
from evsync.codec.fields import wire_of
from evsync.codec.json_form import in_json
from evsync.codec.values import pack, unpack
from evsync.contracts.changes import changes
from evsync.contracts.document import Document, document_of, events_of, read, write
from tests.aggregates import Account, Basket, Point, Savings
from tests.exported import codec_with, contracts_from
from tests.properties.test_replay import described, text
from tests.stored import as_stored

MADE = "art.Picture.Made"


class Colour(Enum):
    """Two values."""

    RED = "red"
    BLUE = "blue"


class Colours(Enum):
    """One more."""

    RED = "red"
    BLUE = "blue"
    GREEN = "green"


class Frame(BaseModel):
    """A model."""

    width: int
    wood: str


class Gilded(BaseModel):
    """The same with another default and more."""

    width: float
    wood: str = "oak"
    carats: Decimal | None = None


class Bare(BaseModel):
    """The same with less."""

    width: int


@dataclass
class Node:
    """Holds itself."""

    name: str
    inside: list[Node]


class Cat(BaseModel):
    """One of two, told apart by a field."""

    kind: Literal["cat"] = "cat"
    lives: int


class Dog(BaseModel):
    """The other one."""

    kind: Literal["dog"] = "dog"
    name: str


class Pair(NamedTuple):
    """An array on the wire."""

    x: int
    y: str = "y"


class Sparse(TypedDict, total=False):
    """Keys that may be missing."""

    a: int


@dataclass
class Leaf:
    """Held by Tree."""

    name: str


nodes = st.deferred(lambda: st.builds(Node, text, st.lists(nodes, max_size=1)))
numbers = st.integers(-(2**70), 2**70)
VALUES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (str, text),
    (int, numbers),
    (float, st.floats(allow_nan=False, allow_infinity=False)),
    (bool, st.booleans()),
    (bytes, st.binary(max_size=9)),
    (UUID, st.uuids()),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    (datetime, st.datetimes(timezones=st.timezones())),
    (int | None, numbers | st.none()),
    (int | str, numbers | text),
    (str | UUID | None, text | st.uuids() | st.none()),
    (Colour, st.sampled_from(Colour)),
    (Colours, st.sampled_from(Colours)),
    (Colour | None, st.sampled_from(Colour) | st.none()),
    (Literal["red"], st.just("red")),
    (list[int], st.lists(st.integers(0, 1), max_size=3)),
    (list[int | None], st.lists(numbers | st.none(), max_size=3)),
    (set[int], st.sets(numbers, max_size=3)),
    (tuple[int, str], st.tuples(numbers, text)),
    (tuple[int, ...], st.lists(numbers, max_size=3).map(tuple)),
    (dict[str, int], st.dictionaries(text, numbers, max_size=3)),
    (dict[int, int], st.dictionaries(numbers, numbers, max_size=3)),
    (dict[str, Any], st.dictionaries(text, numbers | text, max_size=3)),
    (Annotated[int, Field(ge=0)], st.integers(0, 99)),
    (Annotated[int, Field(ge=9)], st.integers(9, 99)),
    (Annotated[int, Field(ge=9, le=99)], st.integers(9, 99)),
    (Frame, st.builds(Frame, width=numbers, wood=text)),
    (Gilded, st.builds(Gilded, width=st.just(1.5), wood=text, carats=st.none() | st.just(Decimal(2)))),
    (Bare, st.builds(Bare, width=numbers)),
    (Frame | None, st.none() | st.builds(Frame, width=numbers, wood=text)),
    (list[Frame], st.lists(st.builds(Frame, width=numbers, wood=text), max_size=2)),
    (list[Gilded], st.lists(st.builds(Gilded, width=st.just(1.5), wood=text), max_size=2)),
    (dict[str, Bare], st.dictionaries(text, st.builds(Bare, width=numbers), max_size=2)),
    (Node, nodes),
    (Leaf, st.builds(Leaf, text)),
    (Annotated[Cat | Dog, Field(discriminator="kind")], st.builds(Cat, lives=numbers) | st.builds(Dog, name=text)),
    (Cat, st.builds(Cat, lives=numbers)),
    (Pair, st.builds(Pair, numbers, text)),
    (Sparse, st.sampled_from([{}, {"a": 1}])),
    (dict[Colour, int], st.dictionaries(st.sampled_from(Colour), numbers)),
    (dict[UUID, list[tuple[date, ...]]], st.dictionaries(st.uuids(), st.lists(st.tuples(st.dates())), max_size=2)),
    (Any, numbers | text | st.uuids()),
]


class Published:
    """An event type, and how its events come out."""

    def __init__(self, fields: Mapping[str, tuple[int, bool]], draw: Any) -> None:
        self._of = {name: VALUES[which] for name, (which, _) in fields.items()}
        self.values = {name: draw(strategy) for name, (_, strategy) in self._of.items()}
        self.optional = {name for name, (_, optional) in fields.items() if optional}
        defaults = {name: self.values[name] for name in self.optional}
        # A dataclass takes no mutable default.
        defaults = {name: value for name, value in defaults.items() if type(value).__hash__ is not None}
        self.optional = set(defaults)
        self.document = document_of(codec_with({n: a for n, (a, _) in self._of.items()}, defaults))

    def event(self, without: set[str] = frozenset()) -> bytes:  # type: ignore[assignment]
        """The data of one event, some fields of which had not been thought of yet."""
        fields = {}
        for name, value in self.values.items():
            if name not in without:
                wire = wire_of(self._of[name][0])
                fields[name] = wire.write(value) if wire else value
        return pack(fields)


published = st.dictionaries(
    st.sampled_from(["a", "date", "json", "int"]), st.tuples(st.integers(0, len(VALUES) - 1), st.booleans()), max_size=3
)


def check_reads(document: Document, data: bytes) -> None:
    """The schema describes the event, and a contract generated from it decodes the event."""
    fields = unpack(data)
    validator(document, MADE).validate(in_json(fields))
    with contracts_from(document) as module:
        module.PictureMade.model_validate(fields)


def validator(document: Document, type: str) -> Draft202012Validator:
    """Judges the data of one event type, in its JSON form."""
    Draft202012Validator.check_schema(document)
    return Draft202012Validator({"$ref": f"#/$defs/{type}", "$defs": document["$defs"]})


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_an_exported_schema_describes_what_is_written_and_generated_contracts_decode_it(data: st.DataObject) -> None:
    """Of every kind of annotation, with every kind of default; written in one text, which reads back the same."""
    of = Published(data.draw(published), data.draw)
    missing = data.draw(st.sets(st.sampled_from(sorted(of.optional)))) if of.optional else set()
    check_reads(of.document, of.event(missing))
    assert read(write(of.document), "it") == of.document
    assert changes(of.document, read(write(of.document), "it")) == []


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_change_that_is_called_compatible_breaks_nobody(data: st.DataObject) -> None:
    """If nothing is said to break consumers, a contract made before reads events written after; if nothing is said to
    break history, a contract made after reads events stored before, also such as lack the optional fields."""
    before = data.draw(published)
    after = dict(before) if data.draw(st.booleans()) else {}
    after |= data.draw(published)
    old, new = Published(before, data.draw), Published(after, data.draw)
    found = changes(old.document, new.document)
    broken = {who for change in found for who in change.breaks}
    assume(len(broken) < 2)
    if "consumers" not in broken:
        check_reads(old.document, new.event())
    if "history" not in broken:
        missing = data.draw(st.sets(st.sampled_from(sorted(old.optional)))) if old.optional else set()
        check_reads(new.document, old.event(missing))


@cache
def document_of_kind(kind: int) -> Document:
    """Of a service whose events have one field, of one of the kinds in VALUES."""
    return document_of(codec_with({"value": VALUES[kind][0]}))


@cache
def breaks(old: int, new: int) -> set[str]:
    """Whom it breaks if the field's kind changes from one to the other."""
    return {who for change in changes(document_of_kind(old), document_of_kind(new)) for who in change.breaks}


def test_every_change_of_a_type_that_is_called_compatible_breaks_nobody() -> None:
    """The same for every pair of types, and that a type is compatible with itself and little else."""
    kinds = range(len(VALUES))
    with ExitStack() as stack:
        contracts = [stack.enter_context(contracts_from(document_of_kind(k))).PictureMade for k in kinds]
        schemas = [validator(document_of_kind(k), MADE) for k in kinds]

        @settings(max_examples=25, deadline=None)
        @given(st.tuples(*(strategy for _, strategy in VALUES)))
        def check(values: tuple[Any, ...]) -> None:
            for writer, value in enumerate(values):
                wire = wire_of(VALUES[writer][0])
                fields = unpack(pack({"value": wire.write(value) if wire else value}))
                for reader in kinds:
                    if "consumers" not in breaks(reader, writer) or "history" not in breaks(writer, reader):
                        schemas[reader].validate(in_json(fields))
                        contracts[reader].model_validate(fields)

        check()
    compatible = {(o, n) for o in kinds for n in kinds if not breaks(o, n)}
    assert {(k, k) for k in kinds} <= compatible
    assert len(compatible) < 2 * len(VALUES)


CODEC = EventCodec("bank", [Account, Savings, Basket, Point])
DOCUMENT = document_of(CODEC)
with contracts_from(DOCUMENT) as generated:
    CONTRACTS = dict(vars(generated))


@settings(max_examples=25, deadline=None)
@given(described.filter(lambda fields: math.isfinite(fields["amount"]) and math.isfinite(fields["ratio"])))
def test_real_events_are_described_and_decoded(fields: dict[str, Any]) -> None:
    """Those of aggregates, written by the codec: the schema takes them, and the contract has their values. But for
    infinities, which JSON has not, and which pydantic takes for no decimal."""
    account = Account(owner="Ada", balance=1)
    account.describe(**fields)
    account.audit("Bob")
    for stored in as_stored(CODEC, account):
        data = unpack(stored.data)
        validator(DOCUMENT, stored.type).validate(in_json(data))
        contract = CONTRACTS[f"Account{stored.type.rpartition('.')[2]}"].model_validate(data)
        for name in ("owner", "by", "amount", "on", "at", "moment", "span", "key", "raw", "ratio", "flag"):
            assert not hasattr(contract, name) or getattr(contract, name) == data[name]
    assert set(events_of(DOCUMENT)) >= {"bank.Account.Opened", "bank.Basket.Opened", "bank.Point.Created"}
    assert "bank.Account.Created" not in events_of(DOCUMENT)  # its __init__ is decorated with "Opened"
