"""Consistent hashing with exact loads: a plan that moves as little as can be when shards come and go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import isfinite, lcm

from evsync.errors import ConfigurationError
from evsync.sharding.allocation import allocate
from evsync.sharding.router import Placed, Placement, check_shards
from evsync.sharding.slots import SLOTS


class HashRing(Placed):
    """Slots shared out over shards by their weights, to within a slot or so. Implements Router.

    A shard that is added (at the end of `shards`, or by `adding`) takes slots from the others until it has its share:
    1 / (n + 1) of all where weights are equal, and no other slot moves. A shard that leaves (`without`) leaves its
    slots to the others, and no other slot moves. `plan` does the same from any placement.

    The shards' order is part of the plan: it is that in which they joined. `weights` says how much a shard takes,
    beside 1 for one that is not named. See `evsync.sharding.allocation` for how.

    Raises ConfigurationError for shards, weights or a number of slots that cannot be.
    """

    __slots__ = ("_weights",)

    def __init__(
        self, shards: Sequence[str], *, weights: Mapping[str, float] | None = None, slots: int = SLOTS
    ) -> None:
        names = check_shards(shards, slots)
        self._weights = _check_weights(names, weights or {})
        placement: list[str] = []
        for joined in range(1, len(names) + 1):
            placement = self._allocate(placement or [None] * slots, names[:joined])
        super().__init__(tuple(placement), names)
        self._check_shares()

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of every shard."""
        return dict(self._weights)

    def plan(self, now: Sequence[str]) -> Placement:
        """The fewest moves from the placement `now` to one that is as even as this ring's own."""
        self._check_slots(now)
        return tuple(self._allocate(now, self.shards))

    def adding(self, shard: str, *, weight: float = 1) -> HashRing:
        """The ring with one shard more: slots move to it alone."""
        self._check_new(shard)
        return HashRing((*self.shards, shard), weights={**self._weights, shard: weight}, slots=self.slots)._from(self)

    def without(self, shard: str) -> HashRing:
        """The ring with one shard less: its slots move, and no others."""
        self._check_known(shard)
        if len(self.shards) == 1:
            raise ConfigurationError(f"{shard!r} is the last shard: its slots have nowhere to go")
        rest = tuple(name for name in self.shards if name != shard)
        weights = {name: self._weights[name] for name in rest}
        return HashRing(rest, weights=weights, slots=self.slots)._from(self)

    def _from(self, before: HashRing) -> HashRing:
        self._placement = self.plan(before.placement)
        return self

    def _allocate(self, now: Sequence[str | None], names: Sequence[str]) -> list[str]:
        exact = {name: Fraction(self._weights[name]) for name in names}
        scale = lcm(*(weight.denominator for weight in exact.values()))
        return allocate(now, {name: int(weight * scale) for name, weight in exact.items()})

    def _check_shares(self) -> None:
        for name in self.shards:
            if name not in self._placement:
                raise ConfigurationError(
                    f"shard {name!r} of weight {self._weights[name]} would get none of the {self.slots} slots beside "
                    f"the others' {sum(self._weights.values()) - self._weights[name]}: raise its weight or leave it out"
                )

    def __repr__(self) -> str:
        weights = {name: weight for name, weight in self._weights.items() if weight != 1}
        shown = f", weights={weights}" if weights else ""
        return f"HashRing({list(self.shards)}{shown}, slots={self.slots})"


def _check_weights(shards: Sequence[str], weights: Mapping[str, float]) -> dict[str, float]:
    if unknown := set(weights) - set(shards):
        raise ConfigurationError(
            f"weights name {', '.join(map(repr, sorted(unknown)))}, and there is no such shard; there are "
            f"{', '.join(map(repr, shards))}"
        )
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not isfinite(weight) or weight <= 0:
            raise ConfigurationError(
                f"shard {name!r} has weight {weight!r}: a weight is a number above 0. A shard that is to hold nothing "
                "is left out"
            )
    return {name: weights.get(name, 1) for name in shards}
