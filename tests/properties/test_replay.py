"""The compiled fold and the library's own path give the same state; what is written comes back as it was."""

from __future__ import annotations

import copy
import pickle
from datetime import UTC, date, time, timedelta, timezone
from decimal import Decimal
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from evsync.aggregates.replay import apply_by_library
from evsync.codec.events import EventCodec
from evsync.codec.values import pack, unpack
from evsync.domain import Aggregate, AnyAggregate, event
from evsync.errors import DecodingError
from evsync.records import StoredEvent, change_of
from tests.aggregates import Account, Address, Basket, Card, Colour, Level, Point, Savings
from tests.stored import as_stored, folded

CODEC = EventCodec("bank", [Account, Savings, Basket, Point])

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
zones = st.one_of(st.just(UTC), st.integers(-14 * 60, 14 * 60).map(lambda m: timezone(timedelta(minutes=m))))
moments = st.datetimes(timezones=zones)
decimals = st.decimals(allow_nan=False)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text | st.binary(max_size=20) | st.uuids()
    | decimals | moments | st.dates() | st.times() | st.timedeltas(),
    lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple)
    | st.dictionaries(text, inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
addresses = st.builds(Address, text, st.sampled_from(Colour), st.lists(text, max_size=3).map(tuple))
described = st.fixed_dictionaries({
    "text": text, "amount": decimals, "on": st.dates(), "at": st.times(), "moment": moments, "span": st.timedeltas(),
    "key": st.uuids(), "raw": st.binary(max_size=50), "ratio": st.floats(allow_nan=False),
    "flag": st.none() | st.booleans(), "colour": st.sampled_from(Colour), "level": st.sampled_from(Level),
    "address": st.none() | addresses,
    "card": st.builds(Card, number=text, limit=st.decimals(allow_nan=False, allow_infinity=False), owner=st.uuids()),
    "pair": st.tuples(st.integers(-2**63, 2**63), st.sampled_from(Colour)), "colours": st.sets(st.sampled_from(Colour)),
    "frozen": st.frozensets(text, max_size=3), "addresses": st.dictionaries(text, addresses, max_size=2),
    "anything": plain, "mode": st.sampled_from(["a", "b"]),
})  # fmt: skip
steps = st.lists(
    st.one_of(
        st.tuples(st.just("deposit"), st.fixed_dictionaries({"amount": st.integers()})),
        st.tuples(st.just("rename"), st.fixed_dictionaries({"name": text})),
        st.tuples(st.just("audit"), st.fixed_dictionaries({"by": text})),
        st.tuples(st.just("stamp"), st.fixed_dictionaries({"timestamp": st.just(None)})),
        st.tuples(st.just("describe"), described),
        st.tuples(
            st.just("pay_interest"), st.fixed_dictionaries({"rate": st.sampled_from([Decimal("0.5"), Decimal(2)])})
        ),
    ),
    max_size=8,
)


def by_library(events: list[StoredEvent]) -> AnyAggregate | None:
    """Every event constructed and applied by the library itself."""
    aggregate = None
    for e in events:
        coding = CODEC.coding_of(e.type)
        aggregate = apply_by_library(coding, e.stream, change_of(e), CODEC.fields_of(coding, e.data, e.meta), aggregate)
    return aggregate


class Draft(Aggregate):
    """An aggregate whose events keep copies of it, and compare it with them."""

    @event("Begun")
    def __init__(self) -> None:
        self.text = ""
        self.kept: list[Any] = []
        self.same: list[bool] = []

    @event("Written")
    def write(self, text: str) -> None:
        """Change the text."""
        self.text = text

    @event("Kept")
    def keep(self) -> None:
        """Keep the draft as it is now, in three ways."""
        before = copy.deepcopy(self)
        self.same.append(self == before)
        before.kept, before.same = [], []
        self.kept += [before, copy.copy(before), pickle.loads(pickle.dumps(before))]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["write", "keep"]), max_size=8))
def test_what_an_event_copies_of_its_aggregate_is_as_it_was(done: list[str]) -> None:
    """Copies and pickles made in the middle of a fold are those that were made when the event was decided."""
    codec, live = EventCodec("desk", [Draft]), Draft()
    for n, name in enumerate(done):
        live.write(str(n)) if name == "write" else live.keep()
    stored = as_stored(codec, live)
    live.pending_events.clear()
    for kept in live.kept:
        kept.pending_events.clear()
    found = folded(codec, stored)
    assert found == live
    assert isinstance(found, Draft)
    assert [vars(kept) for kept in found.kept] == [vars(kept) for kept in live.kept]


@settings(deadline=None, max_examples=80)
@given(st.sampled_from([Account, Savings]), text, st.integers(), steps)
def test_fold_library_and_live_state_are_the_same(cls: type[Account], owner: str, balance: int, done: Any) -> None:
    """For every sequence of commands: replay == live state, by either path."""
    live = cls(owner, balance)
    for name, arguments in done:
        if hasattr(live, name):
            getattr(live, name)(**arguments)
    stored = as_stored(CODEC, live)
    live.pending_events.clear()
    assert folded(CODEC, stored) == live
    assert by_library(stored) == live


@settings(deadline=None, max_examples=40)
@given(text.filter(lambda t: t and "\0" not in t), st.lists(text, max_size=5), text)
def test_the_same_for_a_named_aggregate(id: str, skus: list[str], note: str) -> None:
    """Ids given by the caller, and a decorated property."""
    live = Basket(id, owner="ada")
    for sku in skus:
        live.add(sku)
    live.note = note
    stored = as_stored(CODEC, live)
    live.pending_events.clear()
    assert folded(CODEC, stored) == by_library(stored) == live


@given(st.integers(), st.integers(), st.lists(st.integers(), max_size=5))
def test_the_same_for_a_dataclass_aggregate(x: int, y: int, shifts: list[int]) -> None:
    """Its `__init__` was made by dataclasses."""
    live = Point(x, y)
    for by in shifts:
        live.shift(by)
    stored = as_stored(CODEC, live)
    live.pending_events.clear()
    assert folded(CODEC, stored) == by_library(stored) == live


@given(plain)
def test_decode_undoes_encode(value: Any) -> None:
    """decode(encode(v)) == v, and its types are the same."""
    back = unpack(pack(value))
    assert back == value
    assert type(back) is type(value)


@given(st.binary(max_size=200))
def test_garbage_is_refused_as_such(garbage: bytes) -> None:
    """Whatever the bytes are, decoding gives a value or a DecodingError."""
    try:
        value = unpack(garbage)
    except DecodingError:
        return
    assert pack(unpack(pack(value))) == pack(value)


def test_dates_and_times_keep_their_types() -> None:
    """A datetime is a date, and must not be written as one."""
    assert type(unpack(pack(date(2026, 1, 2)))) is date
    assert type(unpack(pack(time(1, 2)))) is time
