"""Projections: history into a read model in SQLite."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import sqlalchemy as sa

from benchmarks import eventsource_py_peer as eventsource_py
from benchmarks.eventsourcing_peer import project
from benchmarks.relay import relayed
from benchmarks.rounds import Advance, Goal, Row, Subject, alternate, check
from benchmarks.workload import CUSTOMERS, customers, full_log, orders, reports, shop, sqlite_url
from evsync import Position
from evsync.config import Deployment
from evsync.jetstream.server import EmbeddedServer
from evsync.testing.postgres import PostgresServer

TITLE = "Projection: catching up with a history"
NOTES = """\
200,000 events of 2,000 customers; the handler increments three columns and upserts one. Timed from the opening of a
service that has an empty read model until `wait` returns for the last event. From JetStream the events come over NATS
(one server on the same machine), from the log out of the shop's SQLite file. bare sqlite3: what the handler would be by
hand, two statements an event with the values at hand, a transaction every thousand events: nothing is read, decoded,
checked or counted. Both write ahead without an fsync a batch (`synchronous=NORMAL`): the checkpoint is in the same
transaction, so what a power failure takes is projected again.

eventsourcing: its ProjectionRunner with a view in SQLite, whose transaction has one event and an fsync; 5,000 events,
which its application keeps in memory, for its SQLite recorder has no subscriptions. They are saved while they are
projected. eventsource-py: a SubscriptionManager that catches up with 5,000 events in its SQLite store, a
DatabaseProjection with SQLAlchemy and aiosqlite, `synchronous=NORMAL`; its checkpoint follows in a transaction of its
own, after each batch.

What limits it: Python on one core, about 11 µs an event from the log. Reading the row takes 2 of them, the contract and
its checks 1.5, the handler's two calls 3, the digest 1, and writing what was gathered 2. From JetStream, taking the
message apart and receiving it take the place of the row.
"""

EVENTS = 200_000
PEER_EVENTS = 5_000
BATCH = 1_000


def measure(rounds: int, advance: Advance) -> list[Row]:
    """The table."""
    with (
        TemporaryDirectory(prefix="evsync-bench-") as directory,
        EmbeddedServer.start(Path(directory) / "nats") as server,
        TemporaryDirectory(prefix="evsync-bench-pg-", ignore_cleanup_errors=True) as data,
        PostgresServer(Path(data)) as postgres,
    ):
        log = Path(directory) / "shop.db"
        advance("filling a log and a stream")
        last = asyncio.run(_fill(log, server.url))
        peer, from_log = "eventsourcing, one event a transaction", Deployment(sources={"shop": sqlite_url(log)})
        subjects = [
            Subject(name="bare sqlite3, two statements an event", run=_bare),
            Subject(name=peer, run=_eventsourcing),
            Subject(name="eventsource-py, one event a transaction", run=_eventsource_py, peer=peer),
            Subject(
                name="evsync, from the log into SQLite",
                run=partial(_project, last, from_log, _sqlite_views),
                peer=peer,
                goal=Goal(of="value", least=80_000),
            ),
            Subject(
                name="evsync, from the log into PostgreSQL",
                run=partial(_project, last, from_log, partial(_postgres_views, postgres)),
                peer=peer,
                goal=Goal(of="value", least=40_000),
            ),
            Subject(
                name="evsync, from JetStream into SQLite",
                run=partial(_project, last, Deployment(nats=server.url), _sqlite_views),
                peer=peer,
                goal=Goal(of="value", least=25_000),
            ),
        ]
        return alternate(subjects, rounds, advance)


async def _fill(log: Path, nats_url: str) -> Position:
    last = await full_log(log, EVENTS)
    async with shop().open(store=sqlite_url(log), nats=nats_url) as service:
        await relayed(service)
    return last


def _eventsourcing(directory: Path) -> float:
    return PEER_EVENTS / project(directory, orders(PEER_EVENTS))


def _eventsource_py(directory: Path) -> float:
    return PEER_EVENTS / eventsource_py.project(directory, PEER_EVENTS)


def _sqlite_views(directory: Path) -> str:
    return sqlite_url(directory / "views.db")


def _postgres_views(server: PostgresServer, directory: Path) -> str:
    return f"{server.url}&schema={directory.name.replace('-', '_')}"


def _project(last: Position, where: Deployment, views: Callable[[Path], str], directory: Path) -> float:
    async def run() -> float:
        settings: Deployment = {
            "store": "memory://",  # it has no aggregates of its own
            "views": views(directory),
            "run": ["customers"],
            **where,
        }
        async with reports().open(**settings) as service:
            began = time.perf_counter()
            await service.wait(last, timeout_s=120)
            seconds = time.perf_counter() - began
            shown = await service.query(sa.select(sa.func.sum(customers.c.orders)))
            check("orders in the read model", shown.scalar_one(), EVENTS)
            return EVENTS / seconds

    return asyncio.run(run())


def _bare(directory: Path) -> float:
    connection = sqlite3.connect(directory / "views.db", isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(
            "CREATE TABLE customers (id TEXT PRIMARY KEY, orders INTEGER DEFAULT 0, cds INTEGER DEFAULT 0, "
            "spent_cents INTEGER DEFAULT 0, last_order TEXT)"
        )
        began = time.perf_counter()
        for start in range(0, EVENTS, BATCH):
            connection.execute("BEGIN")
            for number in range(start, start + BATCH):
                id = f"customer-{number % CUSTOMERS:05}"
                connection.execute(
                    "INSERT INTO customers (id, orders, cds, spent_cents) VALUES (?1, 1, ?2, ?3) ON CONFLICT (id) DO "
                    "UPDATE SET orders = orders + 1, cds = cds + ?2, spent_cents = spent_cents + ?3",
                    (id, 1 + number % 7, 1299 + number % 900),
                )
                connection.execute(
                    "INSERT INTO customers (id, last_order) VALUES (?1, ?2) ON CONFLICT (id) DO "
                    "UPDATE SET last_order = ?2",
                    (id, str(number)),
                )
            connection.execute("COMMIT")
        return EVENTS / (time.perf_counter() - began)
    finally:
        connection.close()
