"""Which slots a shard gets, and whose: the arithmetic behind HashRing.

How many: by the method of Sainte-Laguë, the one that shares out seats in a parliament. The next slot goes to the shard
with the greatest weight / (2 × slots held + 1), the next to leave comes from the shard with the least
weight / (2 × slots held − 1). It is within a slot or so of the exact share, and it is *monotone*: where nobody would
give a slot to another, that is still so after a shard has joined or left. So a new shard only takes, and what a shard
leaves behind is only shared out. Rounding each share by itself (largest remainder) would not do: there a shard may win
a slot because a third one joined.

Which: by rendezvous hashing. Every pair of a shard and a slot has a score; of the slots that may go, the one goes whose
score rises most. Scores are integers made of BLAKE2b, compared exactly: no float, no `hash()`, nothing that differs
between machines or versions of Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from hashlib import blake2b

_Before = Callable[[str, str], bool]


def allocate(now: Sequence[str | None], weights: Mapping[str, int]) -> list[str]:
    """The shard of every slot: as it is `now` where that is fair, by as few changes as there can be where it is not.

    Slots of None, and of shards without a weight, are shared out first. Then shards that hold too much give to those
    that hold too little. The order of `weights` decides between equals.
    """
    held: dict[str, set[int]] = {shard: set() for shard in weights}
    homeless: set[int] = set()
    for slot, shard in enumerate(now):
        (held[shard] if shard is not None and shard in weights else homeless).add(slot)
    names = list(weights)
    queues: dict[tuple[str | None, str], list[int]] = {}

    def taker() -> str:
        return _first(names, lambda a, b: weights[a] * (2 * len(held[b]) + 1) > weights[b] * (2 * len(held[a]) + 1))

    def giver() -> str:
        giving = [name for name in names if held[name]]
        return _first(giving, lambda a, b: weights[a] * (2 * len(held[b]) - 1) < weights[b] * (2 * len(held[a]) - 1))

    def move(source: str | None, to: str) -> None:
        slots = homeless if source is None else held[source]
        if (queue := queues.get((source, to))) is None:
            queue = queues[source, to] = _by_gain(source, to, slots)
        while (slot := queue.pop()) not in slots:  # it went to another
            pass
        slots.remove(slot)
        held[to].add(slot)

    while homeless:
        move(None, taker())
    while True:
        source, to = giver(), taker()
        # Fair: the shard with the least claim to its last slot has as good a claim to it as anybody else.
        if weights[source] * (2 * len(held[to]) + 1) >= weights[to] * (2 * len(held[source]) - 1):
            break
        move(source, to)
    owner = {slot: shard for shard, slots in held.items() for slot in slots}
    return [owner[slot] for slot in range(len(now))]


def _first(names: Sequence[str], before: _Before) -> str:
    """The name that comes before all others; of equals the first."""
    best = names[0]
    for name in names[1:]:
        if before(name, best):
            best = name
    return best


def _by_gain(source: str | None, to: str, slots: Iterable[int]) -> list[int]:
    """The slots in the order in which they move, the first last: by what their score gains, of equals the lowest."""
    gains = {slot: _score(to, slot) - (_score(source, slot) if source is not None else 0) for slot in slots}
    return sorted(gains, key=lambda slot: (gains[slot], -slot))


@cache
def _score(shard: str, slot: int) -> int:
    return int.from_bytes(blake2b(f"{shard}/{slot}".encode(), digest_size=8).digest(), "big")
