"""Workers: one projection shared by processes. `python -m benchmarks.workers LOG VIEWS GATE` is one of them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import sqlalchemy as sa

from benchmarks.rounds import Advance, Goal, Row, Subject, alternate, check
from benchmarks.workload import full_log, reports, sqlite_url
from evsync.config import Deployment
from evsync.ports import LogReader
from evsync.projections.engines import Place
from evsync.sources import StoreSource
from evsync.testing.postgres import PostgresServer

TITLE = "Workers that share a projection"
NOTES = """\
100,000 events of 2,000 customers, out of the shop's SQLite file, with the handler of the projection above. The workers
are processes; they have shared the groups evenly before the clock starts, and it stops when every group has come to the
log's end. Each worker reads the whole log and applies the events of its groups.

What limits two workers: in SQLite one process writes at a time, so what was gathered is written by one after the other;
decoding and handlers go on beside it. In PostgreSQL it is the machine's two cores: one worker takes 2.6 s of processor
time for 100,000 events and its server process 0.9 s, two workers together 2.9 and 1.0. So two cores cannot be more than
1.4 times as fast as one worker, and there is no goal.
"""

EVENTS = 100_000
GROUPS = 16
PATIENCE_S = 120.0


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
        two = Goal(of="ratio", least=1.6)
        subjects = [
            Subject(name="SQLite, one worker", run=partial(sqlite, 1)),
            Subject(name="SQLite, two workers", run=partial(sqlite, 2), peer="SQLite, one worker", goal=two),
            Subject(name="PostgreSQL, one worker", run=partial(postgres, 1)),
            Subject(name="PostgreSQL, two workers", run=partial(postgres, 2), peer="PostgreSQL, one worker"),
        ]
        return alternate(subjects, rounds, advance)


def _sqlite(log: Path, workers: int, directory: Path) -> float:
    return _catch_up(log, f"sqlite:///{directory}/views.db", workers, directory)


def _postgres(log: Path, server: PostgresServer, workers: int, directory: Path) -> float:
    return _catch_up(log, f"{server.url}&schema={directory.name.replace('-', '_')}", workers, directory)


def _catch_up(log: Path, views: str, workers: int, directory: Path) -> float:
    gate = directory / "gate"
    engine = Place.of(views).engine(readers=1)

    def ask(select: str) -> Sequence[int]:
        try:
            with engine.connect() as connection:
                return tuple(connection.execute(sa.text(select)).one())
        except (sa.exc.OperationalError, sa.exc.ProgrammingError):  # there is nothing yet
            return ()

    shares = "SELECT count(*), count(DISTINCT owner) FROM evsync_leases WHERE expires > 0"
    reached = "SELECT count(*), coalesce(min(position), 0) FROM evsync_checkpoints"
    with _processes(workers, [str(log), views, str(gate)]):
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


async def _work(log: Path, views: str, gate: Path) -> None:
    settings: Deployment = {
        "store": "memory://", "views": views, "nats": "", "run": ["customers"],
        "sources": {"shop": _GatedSource(log, gate)},  # type: ignore[dict-item]  # as a test world puts its own in
    }  # fmt: skip
    async with reports().open(**settings) as service:
        await service.serve()


if __name__ == "__main__":
    asyncio.run(_work(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
