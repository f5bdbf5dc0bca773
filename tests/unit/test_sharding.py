"""Slot → shard: the plans of the routers, what they refuse, and that they are the same everywhere."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from evsync.errors import ConfigurationError
from evsync.sharding import HashRing, RangeRouter, Router, slot_of
from tests.docs.pages import ROOT

VECTORS: dict[str, Any] = json.loads((ROOT / "tests" / "vectors" / "sharding.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("vector", VECTORS["slots"], ids=lambda v: repr(v["key"]))
def test_a_slot_is_the_same_in_every_language(vector: dict[str, Any]) -> None:
    """The file of vectors is for whoever computes slots elsewhere; numbers of slots beside 256 included."""
    assert slot_of(vector["key"], vector["slots"]) == vector["slot"]


@pytest.mark.parametrize("vector", VECTORS["rings"], ids=lambda v: "-".join(v["shards"]))
def test_a_plan_is_the_same_on_every_machine_and_version(vector: dict[str, Any]) -> None:
    """Golden plans, by runs of equal shards: a changed one would move slots in services that are running."""
    ring = HashRing(vector["shards"], weights=vector["weights"], slots=vector["slots"])
    named = dict(enumerate(vector["shards"]))
    assert ring.placement == tuple(named[int(digit)] for digit in vector["placement"])


def test_a_router_says_where_a_key_lives_without_a_service() -> None:
    """By text or UUID, and by the tag where the id has one."""
    router: Router = HashRing(["a", "b", "c"])
    id = UUID("12345678-1234-5678-1234-567812345678")
    assert router.shard_of(id) == router.shard_of(str(id)) == router.placement[73]
    assert router.shard_of("{c42}.order7") == router.shard_of("{c42}.order8") == router.shard_of("c42")


def test_four_shards_hold_the_same_number_of_keys_to_within_15_percent() -> None:
    """By slots exactly; by keys as exactly as the hash spreads them."""
    ring = HashRing(["a", "b", "c", "d"])
    assert set(Counter(ring.placement).values()) == {64}
    keys = Counter(ring.shard_of(f"order-{n}") for n in range(40_000))
    assert all(0.95 < count / 10_000 < 1.05 for count in keys.values())


def test_a_range_is_split_and_merged_where_it_says_and_nowhere_else() -> None:
    """Split points are slots; what is merged away is out of the plan."""
    halves = RangeRouter.even(["a", "b"])
    assert halves == RangeRouter({"a": range(128), "b": range(128, 256)})
    three = halves.split(64, to="c")
    assert three.splits == ((0, "a"), (64, "c"), (128, "b"))
    assert three.merge("c", into="a") == halves
    outer = three.merge("b", into="a")
    assert outer.splits == ((0, "a"), (64, "c"), (128, "a"))
    assert outer == RangeRouter({"a": [range(64), range(128, 256)], "c": range(64, 128)})
    assert outer.slots_of("c") == tuple(range(64, 128))


def test_ranges_are_planned_as_they_are() -> None:
    """Whatever lies where now."""
    router = RangeRouter.even(["a", "b"], slots=4)
    assert router.plan(("b", "b", "z", "a")) == ("a", "a", "b", "b")


REFUSED = {
    "no shards": (lambda: HashRing([]), "at least one shard"),
    "no shards for ranges": (lambda: RangeRouter({}), "at least one shard"),
    "a text for a list": (lambda: HashRing("abc"), "one name"),
    "a shard twice": (lambda: HashRing(["a", "b", "a"]), "'a' is named twice"),
    "a name that is none": (lambda: HashRing(["a", "B!"]), "'B!' cannot be the name of a shard"),
    "weight zero": (lambda: HashRing(["a", "b"], weights={"b": 0}), "'b' has weight 0"),
    "negative weight": (lambda: HashRing(["a", "b"], weights={"b": -1.5}), "weight -1.5"),
    "weight nan": (lambda: HashRing(["a", "b"], weights={"b": float("nan")}), "weight nan"),
    "weight of nobody": (lambda: HashRing(["a"], weights={"z": 1}), "'z', and there is no such shard"),
    "a weight too small": (lambda: HashRing(["a", "b"], weights={"b": 0.001}), "none of the 256 slots"),
    "no slots": (lambda: HashRing(["a"], slots=0), "slots=0"),
    "too many slots": (lambda: HashRing(["a"], slots=65_537), "slots=65537"),
    "more shards than slots": (lambda: HashRing(["a", "b", "c"], slots=2), "3 shards cannot share 2 slots"),
    "another number of slots": (lambda: HashRing(["a"], slots=4).plan(["a"] * 5), "number of slots never changes"),
    "another number of slots in ranges": (lambda: RangeRouter.even(["a"]).plan(["a"]), "number of slots never changes"),
    "the last shard leaves": (lambda: HashRing(["a"]).without("a"), "'a' is the last shard"),
    "an unknown shard leaves": (lambda: HashRing(["a", "b"]).without("z"), "no shard 'z'"),
    "a known shard joins": (lambda: HashRing(["a", "b"]).adding("b"), "'b' in HashRing"),
    "the slots of nobody": (lambda: HashRing(["a"]).slots_of("z"), "no shard 'z'"),
    "overlap": (lambda: RangeRouter({"a": range(130), "b": range(128, 256)}), "slot 128 is in a range of 'a'"),
    "a gap": (lambda: RangeRouter({"a": range(100), "b": range(128, 256)}), "slot 100 of 256 is in no shard's range"),
    "beyond the slots": (lambda: RangeRouter({"a": range(257)}), "not a range of slots"),
    "an empty range": (lambda: RangeRouter({"a": range(256), "b": range(5, 5)}), "holds a slot at least"),
    "no range": (lambda: RangeRouter({"a": [7]}), "7 is not a range"),  # type: ignore[list-item]
    "steps": (lambda: RangeRouter({"a": range(0, 256, 2)}), "not a range of slots"),
    "a split that is there": (lambda: RangeRouter.even(["a", "b"]).split(128, to="c"), "split point"),
    "a split at the beginning": (lambda: RangeRouter.even(["a"]).split(0, to="c"), "nothing to split at slot 0"),
    "a split to a known shard": (lambda: RangeRouter.even(["a", "b"]).split(7, to="b"), "already"),
    "merged into itself": (lambda: RangeRouter.even(["a", "b"]).merge("a", into="a"), "into itself"),
    "merged into nobody": (lambda: RangeRouter.even(["a", "b"]).merge("a", into="z"), "no shard 'z'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_a_plan_is_refused(what: str) -> None:
    """With an error that names it and says what would do."""
    make, words = REFUSED[what]
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        make()


def test_routers_are_shown_as_they_would_be_written() -> None:
    """For errors and logs."""
    ring = HashRing(["a", "b"], weights={"b": 2}, slots=16)
    assert repr(ring) == "HashRing(['a', 'b'], weights={'b': 2}, slots=16)"
    ranges = RangeRouter({"a": [range(4), range(8, 16)], "b": range(4, 8)}, slots=16)
    assert repr(ranges) == "RangeRouter({'a': [range(0, 4), range(8, 16)], 'b': range(4, 8)}, slots=16)"
    assert eval(repr(ring)) == ring
    assert eval(repr(ranges)) == ranges
    assert len({ring, ranges, HashRing(["a", "b"], weights={"b": 2}, slots=16)}) == 2


def test_the_plot_in_the_documentation_is_what_its_script_draws() -> None:
    """And so is what the routers do."""
    script = ROOT / "docs" / "plots" / "sharding.py"
    names: dict[str, Any] = {"__name__": "plot", "__file__": str(script)}
    exec(compile(script.read_text(encoding="utf-8"), str(script), "exec"), names)
    assert Path(names["FILE"]).read_text(encoding="utf-8") == names["drawing"]()
