"""Laws of the plans: who joins takes only, who leaves gives only, weights hold."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

from hypothesis import assume, given
from hypothesis import strategies as st

from evsync.errors import ConfigurationError
from evsync.sharding import HashRing, RangeRouter, slot_of
from evsync.sharding.router import Placement

NAMES = st.lists(st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True), min_size=1, max_size=9, unique=True)
WEIGHTS = st.one_of(st.integers(1, 8), st.floats(0.25, 8))


@st.composite
def rings(draw: st.DrawFn, least: int = 1) -> HashRing:
    """Any ring of up to nine shards; some have lost shards on the way."""
    names = draw(NAMES.filter(lambda found: len(found) >= least))
    weights = {name: draw(WEIGHTS) for name in names if draw(st.booleans())}
    ring = HashRing(names, weights=weights, slots=draw(st.sampled_from((256, 512))))
    for name in draw(st.lists(st.sampled_from(names), unique=True, max_size=len(names) - least)):
        ring = ring.without(name)
    return ring


def moved(before: Placement, after: Placement) -> list[tuple[str, str]]:
    """From where to where, for every slot that moves."""
    return [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]


def share(ring: HashRing, name: str) -> Fraction:
    """How many slots a shard should have, exactly."""
    weights = {shard: Fraction(weight) for shard, weight in ring.weights.items()}
    return ring.slots * weights[name] / sum(weights.values())


@given(rings(), WEIGHTS)
def test_a_shard_that_joins_only_takes(ring: HashRing, weight: float) -> None:
    """Every slot that moves moves to it, and it gets its share: 1 / (n + 1) where weights are equal."""
    try:
        after = ring.adding("zzzzzzz", weight=weight)
    except ConfigurationError:
        assume(False)
    changes = moved(ring.placement, after.placement)
    assert {to for _, to in changes} == {"zzzzzzz"}
    assert abs(len(changes) - share(after, "zzzzzzz")) < 2


@given(NAMES, st.data())
def test_a_ring_written_with_one_shard_more_moves_slots_to_it_alone(names: list[str], data: st.DataObject) -> None:
    """Not only `adding`: what a deployment writes down after it has grown says the same."""
    weights = {name: data.draw(WEIGHTS) for name in names}
    before = HashRing(names, weights=weights)
    after = HashRing([*names, "zzzzzzz"], weights=weights)
    assert {to for _, to in moved(before.placement, after.placement)} <= {"zzzzzzz"}


@given(rings(least=2), st.data())
def test_a_shard_that_leaves_only_gives(ring: HashRing, data: st.DataObject) -> None:
    """Every slot that moves was its own, and each goes to one that stays."""
    name = data.draw(st.sampled_from(ring.shards))
    after = ring.without(name)
    changes = moved(ring.placement, after.placement)
    assert {source for source, _ in changes} == {name}
    assert len(changes) == len(ring.slots_of(name))
    assert name not in after.placement


@given(rings())
def test_weights_hold(ring: HashRing) -> None:
    """Each shard's slots are its share, to within two."""
    held = Counter(ring.placement)
    assert all(abs(held[name] - share(ring, name)) < 2 for name in ring.shards)


@given(NAMES, st.sampled_from((12, 64, 256)))
def test_equal_weights_differ_by_a_slot_at_most(names: list[str], slots: int) -> None:
    """So four shards of 256 slots are far within 15 % of one another."""
    held = Counter(HashRing(names, slots=slots).placement)
    assert max(held.values()) - min(held.values()) <= 1


@given(rings())
def test_a_plan_is_at_rest(ring: HashRing) -> None:
    """Planned on from itself, nothing moves."""
    assert ring.plan(ring.placement) == ring.placement


@given(rings(), st.data())
def test_any_placement_is_planned_on_with_the_fewest_moves(ring: HashRing, data: st.DataObject) -> None:
    """Nobody both gives and takes, only shards of the ring take, and the result is at rest."""
    chance = data.draw(st.randoms(use_true_random=False))
    now = tuple(chance.choices((*ring.shards, "gone"), k=ring.slots))
    after = ring.plan(now)
    changes = moved(now, after)
    assert {source for source, _ in changes} & {to for _, to in changes} == set()
    assert set(after) <= set(ring.shards)
    assert ring.plan(after) == after


@given(st.text(max_size=40), rings())
def test_a_key_is_where_its_slot_is(key: str, ring: HashRing) -> None:
    """`shard_of` and the placement say the same."""
    assume(key.isascii() or key.encode("utf-8", "replace").decode() == key)
    assert ring.shard_of(key) == ring.placement[slot_of(key, ring.slots)]


@given(st.integers(1, 6), st.data())
def test_splitting_and_merging_again_is_as_before(shards: int, data: st.DataObject) -> None:
    """A split moves slots to the new shard alone, and a merge brings back those and no others."""
    router = RangeRouter.even([f"s{n}" for n in range(shards)], slots=64)
    at = data.draw(st.integers(1, 63))
    assume(at not in [slot for slot, _ in router.splits])
    after = router.split(at, to="new")
    changes = moved(router.placement, after.placement)
    assert {to for _, to in changes} == {"new"}
    (source,) = {source for source, _ in changes}
    assert after.merge("new", into=source) == router
