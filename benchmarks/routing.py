"""Routing: from an id to its shard."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from uuid import UUID

from benchmarks.rounds import Advance, Goal, Row, Subject, alternate, check
from evsync.sharding import HashRing, RangeRouter, Router

TITLE = "Routing, id to shard"
NOTES = """\
`shard_of` for one id after the other, four shards and 256 slots. What limits it: the call itself and the CRC-32 of the
id; the plan is a table that was made before. Most of the time of a UUID is the making of its text.
"""

KEYS = 200_000


def measure(rounds: int, advance: Advance) -> list[Row]:
    """The table."""
    shards = ["a", "b", "c", "d"]
    ring, ranges = HashRing(shards), RangeRouter.even(shards)
    uuids = [UUID(int=n * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128) for n in range(KEYS)]
    ids = [str(id) for id in uuids]
    goal = Goal(of="value", least=1_000_000)
    subjects = [
        Subject(name="HashRing, ids as text", run=partial(_route, ring, ids), unit="keys/s", goal=goal),
        Subject(name="RangeRouter, ids as text", run=partial(_route, ranges, ids), unit="keys/s", goal=goal),
        Subject(name="HashRing, UUIDs", run=partial(_route, ring, uuids), unit="keys/s"),
    ]
    return alternate(subjects, rounds, advance)


def _route(router: Router, keys: Sequence[UUID | str], _: Path) -> float:
    shard_of, found = router.shard_of, set[str]()
    began = time.perf_counter()
    for key in keys:
        found.add(shard_of(key))
    elapsed = time.perf_counter() - began
    check("shards that have got keys", found, set(router.shards))
    return len(keys) / elapsed
