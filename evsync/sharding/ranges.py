"""Ranges of slots: a plan by hand, where an operator says what lies where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evsync.errors import ConfigurationError
from evsync.sharding.router import Placed, Placement, check_shards
from evsync.sharding.slots import SLOTS


class RangeRouter(Placed):
    """Each shard holds the slots of a range, or of several: `{"a": range(0, 128), "b": range(128, 256)}`.

    Every slot belongs to exactly one shard. `split` and `merge` change the plan where they say, and nowhere else;
    `splits` shows it by its split points. Implements Router. Raises ConfigurationError for ranges that overlap, leave
    a slot out, or reach beyond the slots.
    """

    __slots__ = ()

    def __init__(self, ranges: Mapping[str, range | Sequence[range]], *, slots: int = SLOTS) -> None:
        names = check_shards(tuple(ranges), slots)
        owners: list[str | None] = [None] * slots
        for name in names:
            given = ranges[name]
            for part in (given,) if isinstance(given, range) else given:
                _place(owners, name, part)
        placement = tuple(owner for owner in owners if owner is not None)
        if len(placement) < slots:
            missing = owners.index(None)
            raise ConfigurationError(f"slot {missing} of {slots} is in no shard's range: the ranges must cover all")
        super().__init__(placement, names)

    @classmethod
    def even(cls, shards: Sequence[str], *, slots: int = SLOTS) -> RangeRouter:
        """One range for each shard, in their order, of equal lengths to within a slot."""
        names = check_shards(shards, slots)
        cuts = [slots * n // len(names) for n in range(len(names) + 1)]
        return cls({name: range(cuts[n], cuts[n + 1]) for n, name in enumerate(names)}, slots=slots)

    @property
    def splits(self) -> tuple[tuple[int, str], ...]:
        """The split points: from this slot on, to the next split point, slots belong to this shard."""
        owners = self.placement
        return tuple((slot, owner) for slot, owner in enumerate(owners) if slot == 0 or owners[slot - 1] != owner)

    def plan(self, now: Sequence[str]) -> Placement:
        """The ranges as they are: nothing is left to choose."""
        self._check_slots(now)
        return self.placement

    def split(self, at: int, *, to: str) -> RangeRouter:
        """Cut the range that slot `at` lies in: from `at` to the range's end, slots belong to the new shard `to`."""
        self._check_new(to)
        if not 0 < at < self.slots:
            raise ConfigurationError(
                f"there is nothing to split at slot {at!r}: split points are 1 to {self.slots - 1}"
            )
        starts = [slot for slot, _ in self.splits]
        if at in starts:
            raise ConfigurationError(f"slot {at} is a split point of {self!r} already: name one inside a range")
        end = next((slot for slot in starts if slot > at), self.slots)
        return self._with(dict.fromkeys(range(at, end), to), (*self.shards, to))

    def merge(self, shard: str, *, into: str) -> RangeRouter:
        """Give all slots of a shard to another one; the shard leaves the plan."""
        self._check_known(shard)
        self._check_known(into)
        if shard == into:
            raise ConfigurationError(f"shard {shard!r} cannot be merged into itself")
        return self._with(
            dict.fromkeys(self.slots_of(shard), into), tuple(name for name in self.shards if name != shard)
        )

    def _with(self, changed: Mapping[int, str], names: Sequence[str]) -> RangeRouter:
        owners = [changed.get(slot, owner) for slot, owner in enumerate(self.placement)]
        return RangeRouter({name: _ranges(owners, name) for name in names}, slots=self.slots)

    def __repr__(self) -> str:
        parts = []
        for name in self.shards:
            ranges = _ranges(self.placement, name)
            parts.append(f"{name!r}: {ranges[0] if len(ranges) == 1 else ranges}")
        return f"RangeRouter({{{', '.join(parts)}}}, slots={self.slots})"


def _ranges(owners: Sequence[str], name: str) -> list[range]:
    """The slots of a shard as ranges that do not touch."""
    found: list[range] = []
    for slot, owner in enumerate(owners):
        if owner != name:
            continue
        if found and found[-1].stop == slot:
            found[-1] = range(found[-1].start, slot + 1)
        else:
            found.append(range(slot, slot + 1))
    return found


def _place(owners: list[str | None], name: str, part: range) -> None:
    if not isinstance(part, range) or part.step != 1 or not 0 <= part.start < part.stop <= len(owners):
        raise ConfigurationError(
            f"shard {name!r}: {part!r} is not a range of slots; one is range(first, beyond the last), within 0 and "
            f"{len(owners)}, and holds a slot at least"
        )
    for slot in part:
        if (other := owners[slot]) is not None:
            raise ConfigurationError(
                f"slot {slot} is in a range of {other!r} and in {part!r} of {name!r}: ranges must not overlap"
            )
        owners[slot] = name
