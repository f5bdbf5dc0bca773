"""Latency: from the beginning of a save to the moment in which a read model shows it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median, quantiles

from benchmarks.rounds import Advance, Goal, Row, Subject, alternate
from benchmarks.workload import orders, reports, shop, sqlite_url
from evsync.config import Deployment
from evsync.jetstream.server import EmbeddedServer

TITLE = "From save to visible"
NOTES = """\
One order after the other, while nothing else goes on: `save`, then `wait` for its position in another service's read
model in SQLite; both services in one process. On the way: the store's commit with its fsync, the relay and the server
(not from the log), the read model's commit. The first orders are not counted.
"""

ORDERS = 200
WARM_UP = 20


def measure(rounds: int, advance: Advance) -> list[Row]:
    """The table."""
    subjects = []
    for name, run, goal in (
        ("through JetStream", _through_jetstream, Goal(of="value", most=10)),
        ("from the log, in one process", _from_the_log, None),
    ):
        subjects += [
            Subject(name=f"{name}: median", run=partial(run, median), unit="ms", goal=goal),
            Subject(name=f"{name}: 99 of 100 within", run=partial(run, _percentile_99), unit="ms"),
        ]
    return alternate(subjects, rounds, advance)


def _percentile_99(times_ms: Sequence[float]) -> float:
    return quantiles(times_ms, n=100)[98]


def _through_jetstream(number_of: Callable[[Sequence[float]], float], directory: Path) -> float:
    with EmbeddedServer.start(directory / "nats") as server:
        return number_of(asyncio.run(_save_and_wait(directory, server.url)))


def _from_the_log(number_of: Callable[[Sequence[float]], float], directory: Path) -> float:
    return number_of(asyncio.run(_save_and_wait(directory, None)))


async def _save_and_wait(directory: Path, nats: str | None) -> list[float]:
    """The times of all saves but the first ones, in ms."""
    writing = shop()
    broker: Deployment = {"nats": nats} if nats else {}
    own: Deployment = {"store": sqlite_url(directory / "shop.db"), **broker}
    views: Deployment = {
        "store": "memory://",
        "views": sqlite_url(directory / "views.db"),
        "run": ["customers"],
        **(broker or Deployment(sources={"shop": writing})),
    }
    times_ms = []
    async with writing.open(**own), reports().open(**views) as reading:
        for order in orders(WARM_UP + ORDERS):
            began = time.perf_counter()
            await reading.wait(await writing.save(order))
            times_ms.append((time.perf_counter() - began) * 1e3)
    return times_ms[WARM_UP:]
