"""How groups are shared among workers: evenly, and none moves that need not."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from evsync.projections.models.shares import Lease, decide


class Stage:
    """Leases as a database would keep them, and workers that come and go."""

    def __init__(self, groups: int) -> None:
        self.owner = [""] * groups
        self.memory: dict[str, set[int]] = {}
        self.moves = 0

    def turn(self, me: str) -> None:
        """One worker decides and acts."""
        leases = [Lease(g, 0, owner, owner in self.memory) for g, owner in enumerate(self.owner)]
        change = decide(me, self.memory.keys(), leases, self.memory[me])
        assert not set(change.give) & set(change.take)
        for group in change.give:
            assert self.owner[group] == me
            self.owner[group] = ""
            self.memory[me].discard(group)
        for group in change.take:
            assert self.owner[group] == me or self.owner[group] not in self.memory, "taken from the living"
            self.moves += self.owner[group] != me
            self.owner[group] = me
            self.memory[me].add(group)

    def settle(self, chance: random.Random) -> None:
        """Everybody decides, in any order, until nothing changes any more."""
        for _ in range(len(self.memory) * 2 + 4):
            before = list(self.owner)
            for me in chance.sample(sorted(self.memory), len(self.memory)):
                self.turn(me)
            if self.owner == before:
                return
        raise AssertionError("it does not come to rest")


@given(st.integers(1, 40), st.lists(st.sampled_from("+-?"), min_size=1, max_size=25), st.integers(0, 2**32))
def test_groups_are_spread_evenly_and_move_no_more_than_they_must(groups: int, steps: list[str], seed: int) -> None:
    """Whoever comes, goes or loses its memory: shares differ by one at most, and only the surplus moves."""
    chance, stage, born = random.Random(seed), Stage(groups), 0
    for step in steps:
        if step == "+" or not stage.memory:
            stage.memory[f"w{chance.randrange(1_000)}-{born}"] = set()
            born += 1
        elif step == "-" and len(stage.memory) > 1:
            del stage.memory[chance.choice(sorted(stage.memory))]
        else:  # fenced: it forgets what it holds, and its leases run on
            stage.memory[chance.choice(sorted(stage.memory))].clear()
        counts = {w: stage.owner.count(w) for w in stage.memory}
        least, larger = divmod(groups, len(counts))
        ranked = sorted(counts.values(), reverse=True)
        must = sum(max(0, least + (n < larger) - count) for n, count in enumerate(ranked))
        stage.moves = 0
        stage.settle(chance)
        shares = [stage.owner.count(w) for w in stage.memory]
        assert sum(shares) == groups
        assert max(shares) - min(shares) <= 1
        assert all(stage.memory[w] == {g for g, o in enumerate(stage.owner) if o == w} for w in stage.memory)
        assert stage.moves <= must + len(counts), "groups moved that need not have"
