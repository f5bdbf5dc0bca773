"""How the groups of a projection are shared among its workers: a pure decision, made by each worker for itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple


class Lease(NamedTuple):
    """Who has a group, as it is stored."""

    group: int
    token: int
    owner: str
    runs: bool
    """Whether the lease has not expired, by the database's clock."""


class Change(NamedTuple):
    """What one worker is to do."""

    give: Sequence[int]
    """Groups to release."""
    take: Sequence[int]
    """Groups to take: nobody has them."""


def decide(me: str, workers: Collection[str], leases: Sequence[Lease], held: Collection[int]) -> Change:
    """What `me` is to do so that the groups are spread evenly, and none moves that need not.

    `workers` are those that have shown a sign of life lately, `held` the groups that `me` knows it has. Shares differ
    by one at most, and the larger ones go to who has most already. A worker with more than its share gives the surplus
    back; one with less takes what is free, first what still stands under its own name from before it lost its memory
    of it. Nobody takes from the living: whoever decides on old news takes too little or gives too much, for a moment.
    """
    counts = Counter(lease.owner for lease in leases if lease.runs)
    ranked = sorted({*workers, me}, key=lambda worker: (-counts[worker], worker))
    least, larger = divmod(len(leases), len(ranked))
    share = least + (ranked.index(me) < larger)
    own = [lease.group for lease in leases if lease.owner == me and lease.runs and lease.group not in held]
    free = [lease.group for lease in leases if not lease.runs]
    kept = sorted(held)[:share]
    take = [*own, *free][: share - len(kept)]
    return Change(give=[group for group in [*sorted(held), *own] if group not in kept and group not in take], take=take)
