"""Workers: one projection shared by processes. `python -m benchmarks.workers LOG VIEWS GATE HANDLER` is one."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import sqlalchemy as sa

from benchmarks.rounds import Advance, Goal, Row, Subject, alternate, check
from benchmarks.workload import OrderPlaced, customers, full_log, reports, sqlite_url, tables
from evsync import Event, Projection, Service, SqlModel, Tables
from evsync.config import Deployment
from evsync.ports import LogReader
from evsync.projections.models.engines import ViewsPlace
from evsync.sources import StoreSource
from evsync.testing.postgres import PostgresServer

TITLE = "Workers that share a projection"
NOTES = """\
200,000 events of 2,000 customers, out of the shop's SQLite file, with the handler of the projection above, and with one
that also works out the interest on twelve instalments, 16 µs in all. The workers are processes; they have shared the
groups evenly before the clock starts, and it stops when every group has come to the log's end.

What limits two workers: that each has to see every position. The store fetches the events of its groups and counts the
others, which takes 0.3 µs for each of those, against 7 and more for one that is applied. In SQLite one process writes
at a time, and they wait for each other for about a hundredth of the time. In PostgreSQL the server's processes need the
two cores as well, and the customers' rows, which both workers change, are written by one after the other; so there is
no goal.
"""

EVENTS = 200_000
GROUPS = 16
PATIENCE_S = 120.0
MONTHLY_RATE, CENT = Decimal("0.0049"), Decimal("0.01")


def measure(rounds: int, advance: Advance) -> list[Row]:
    """The table."""
    with (
        TemporaryDirectory(prefix="evsync-bench-") as directory,
        TemporaryDirectory(prefix="evsync-bench-pg-", ignore_cleanup_errors=True) as data,
        PostgresServer(Path(data)) as server,
    ):
        log = Path(directory) / "shop.db"
        advance("filling a log")
        asyncio.run(full_log(log, EVENTS))
        sqlite, postgres = partial(_sqlite, log), partial(_postgres, log, server)
        computing = partial(sqlite, handler="instalments")
        two = Goal(of="ratio", least=1.6)
        one = "SQLite, one worker"
        subjects = [
            Subject(name=one, run=partial(sqlite, 1)),
            Subject(name="SQLite, two workers", run=partial(sqlite, 2), peer=one),
            Subject(name=f"{one}, instalments", run=partial(computing, 1)),
            Subject(
                name="SQLite, two workers, instalments",
                run=partial(computing, 2),
                peer=f"{one}, instalments",
                goal=two,
            ),
            Subject(name="PostgreSQL, one worker", run=partial(postgres, 1)),
            Subject(name="PostgreSQL, two workers", run=partial(postgres, 2), peer="PostgreSQL, one worker"),
        ]
        return alternate(subjects, rounds, advance)


def _sqlite(log: Path, workers: int, directory: Path, *, handler: str = "sums") -> float:
    return _catch_up(log, f"sqlite:///{directory}/views.db", workers, directory, handler)


def _postgres(log: Path, server: PostgresServer, workers: int, directory: Path) -> float:
    return _catch_up(log, f"{server.url}&schema={directory.name.replace('-', '_')}", workers, directory)


def _catch_up(log: Path, views: str, workers: int, directory: Path, handler: str = "sums") -> float:
    gate = directory / "gate"
    engine = ViewsPlace.of(views).engine(readers=1)

    def ask(select: str) -> Sequence[int]:
        try:
            with engine.connect() as connection:
                return tuple(connection.execute(sa.text(select)).one())
        except (sa.exc.OperationalError, sa.exc.ProgrammingError):  # there is nothing yet
            return ()

    shares = "SELECT count(*), count(DISTINCT owner) FROM evsync_leases WHERE expires > 0"
    reached = "SELECT count(*), coalesce(min(position), 0) FROM evsync_checkpoints"
    with _processes(workers, [str(log), views, str(gate), handler]):
        _await(lambda: ask(shares) == (GROUPS, workers))
        gate.touch()
        began = time.perf_counter()
        _await(lambda: ask(reached) == (GROUPS, EVENTS))
        seconds = time.perf_counter() - began
        check("orders in the read model", ask("SELECT sum(orders) FROM customers"), (EVENTS,))
    engine.dispose()
    return EVENTS / seconds


@contextmanager
def _processes(count: int, arguments: Sequence[str]) -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks.workers", *arguments]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)


def _await(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("the workers did not get there in time")
        time.sleep(0.01)


class _GatedSource:
    """A log that nobody can read before a file exists. Implements LogSource."""

    def __init__(self, log: Path, gate: Path) -> None:
        self.service = "shop"
        self._source, self._gate = StoreSource("shop", {"main": sqlite_url(log)}), gate

    async def readers(self) -> Sequence[LogReader]:
        while not self._gate.exists():
            await asyncio.sleep(0.002)
        return await self._source.readers()


def instalments(cents: int) -> int:
    """The interest on a price that is paid in twelve instalments, in cents: some 16 µs of work for a handler."""
    left, interest = Decimal(cents) / 100, Decimal(0)
    for month in range(12):
        interest += (left * MONTHLY_RATE).quantize(CENT)
        left -= (left / (12 - month)).quantize(CENT)
    return int(interest * 100)


def _by_instalments() -> Service:
    """The read model of `reports`, with interest."""
    view = Projection("customers", model=SqlModel(tables))

    @view.on(OrderPlaced)
    def placed(e: Event[OrderPlaced], db: Tables) -> None:
        due = e.data.price_cents + instalments(e.data.price_cents)
        db.increment(customers, id=e.data.customer_id, orders=1, cds=e.data.cds, spent_cents=due)
        db.upsert(customers, id=e.data.customer_id, last_order=e.stream_id)

    return Service("reports", projections=[view])


async def _work(log: Path, views: str, gate: Path, handler: str) -> None:
    settings: Deployment = {
        "store": "memory://", "views": views, "nats": "", "run": ["customers"],
        "sources": {"shop": _GatedSource(log, gate)},  # type: ignore[dict-item]  # as a test world puts its own in
    }  # fmt: skip
    async with (_by_instalments() if handler == "instalments" else reports()).open(**settings) as service:
        await service.serve()


if __name__ == "__main__":
    asyncio.run(_work(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]))
