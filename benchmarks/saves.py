"""Saving: one event in a new aggregate, durable before the save returns."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from functools import partial
from pathlib import Path
from uuid import uuid4

from benchmarks.eventsourcing_peer import application
from benchmarks.rounds import Advance, Goal, Row, Subject, alternate
from benchmarks.workload import orders, save_all, shop, sqlite_url

TITLE = "Saves into SQLite, each durable when it returns"
NOTES = """\
Each save stores one event of about 200 bytes in an aggregate of its own; making the aggregate counts too, as an
application pays for it as well. eventsourcing: `Application.save` with `eventsourcing.sqlite`. Both libraries keep a
write-ahead log and fsync it at every commit (`journal_mode=wal`, `synchronous=FULL`: read back from eventsourcing's own
connection in every run). eventsourcing saves one after the other, which is all that its synchronous interface offers
one thread; with eight threads it is measured too. bare sqlite3: one INSERT of 200 bytes a transaction into a table with a
(stream, version) index, no aggregate, no encoding.

One by one, a save waits for the disk: the fsync is most of it, the rest is Python. In flight together, saves share
transactions, and Python on one core is the limit: deciding, encoding, a row, and the task that waits for it.
"""

ONE_BY_ONE = 1_000
IN_FLIGHT = 12_800


def measure(rounds: int, advance: Advance) -> list[Row]:
    """The table."""
    peer = "eventsourcing, one by one"
    subjects = [
        Subject(name="bare sqlite3, one by one", run=_bare, unit="saves/s", peer=peer),
        Subject(name=peer, run=partial(_eventsourcing, threads=1), unit="saves/s"),
        Subject(name="eventsourcing, 8 threads", run=partial(_eventsourcing, threads=8), unit="saves/s", peer=peer),
        Subject(
            name="evsync, one by one",
            run=partial(_evsync, count=ONE_BY_ONE, in_flight=1),
            unit="saves/s",
            peer=peer,
            goal=Goal(of="ratio", least=1),
        ),
        Subject(
            name="evsync, 64 in flight",
            run=partial(_evsync, count=IN_FLIGHT, in_flight=64),
            unit="saves/s",
            peer=peer,
            goal=Goal(of="ratio", least=8),
        ),
        Subject(
            name="evsync, 512 in flight",
            run=partial(_evsync, count=IN_FLIGHT, in_flight=512),
            unit="saves/s",
            peer=peer,
        ),
    ]
    return alternate(subjects, rounds, advance)


def _evsync(directory: Path, count: int, in_flight: int) -> float:
    async def run() -> float:
        async with shop().open(store=sqlite_url(directory / "events.db")) as service:
            began = time.perf_counter()
            await save_all(service, orders(count), in_flight=in_flight)
            return count / (time.perf_counter() - began)

    return asyncio.run(run())


def _eventsourcing(directory: Path, threads: int) -> float:
    from concurrent.futures import ThreadPoolExecutor

    with application(directory / "events.db") as app, ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        if threads == 1:
            for order in orders(ONE_BY_ONE):
                app.save(order)
        else:
            list(pool.map(app.save, orders(ONE_BY_ONE)))
        return ONE_BY_ONE / (time.perf_counter() - began)


def _bare(directory: Path) -> float:
    connection = sqlite3.connect(directory / "events.db", isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(
            "CREATE TABLE events (position INTEGER PRIMARY KEY, stream TEXT, version INTEGER, data BLOB, "
            "UNIQUE (stream, version))"
        )
        data = b"d" * 200
        began = time.perf_counter()
        for _ in range(ONE_BY_ONE):  # in autocommit mode each statement is a transaction
            connection.execute("INSERT INTO events (stream, version, data) VALUES (?, 1, ?)", (str(uuid4()), data))
        return ONE_BY_ONE / (time.perf_counter() - began)
    finally:
        connection.close()
