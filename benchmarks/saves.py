"""Saving: one event in a new aggregate, durable before the save returns."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from uuid import uuid4

from benchmarks import eventsource_py_peer as eventsource_py
from benchmarks.eventsourcing_peer import application
from benchmarks.rounds import Advance, Goal, Row, Subject, alternate, check
from benchmarks.workload import orders, save_all, shop, sqlite_url

TITLE = "Saves into SQLite, each durable when it returns"
NOTES = """\
Each save stores one event of about 200 bytes in an aggregate of its own. Making the aggregate, which is the same code
and about 13 µs for both libraries, is not timed. eventsourcing: `Application.save` with `eventsourcing.sqlite`; it
saves one after the other, which is all that a synchronous interface offers to one thread, so it is measured with eight
threads too. eventsource-py: `AggregateRepository.save` with its `SQLiteEventStore`, whose saves wait for one another,
and a pydantic model an event; an aggregate of the same fields. bare sqlite3: one INSERT of 200 bytes a transaction,
into a table with a (stream, version) index; no aggregate, nothing encoded.

All keep a write-ahead log and fsync it at every commit (`journal_mode=wal`, `synchronous=FULL`; the other libraries set
only the former, and the run ends if their own connection says otherwise of either). Before the clock starts, each has
saved so much that its write-ahead log has its final size: while that file grows, an fsync takes up to half as long
again, and how long it grows is a setting (theirs: SQLite's 1,000 pages; evsync: a thousand appends).

Aggregates are of the same class for evsync and eventsourcing, evsync's, whose ids are in the order of time. With random
ids, as of eventsourcing's own class, 64 new streams touch about 64 pages of the index, all of which are written at the
commit: 64 in flight are then a third slower, one by one makes no difference.

What limits it. One by one: the fsync, then a turn of the event loop, which eventsourcing does without. In flight
together: saves share a transaction, and half of the time is Python on one core (encoding, a task's turn, a row), half
is SQLite.

With uvloop in place of asyncio's own event loop, saves, the relay and the consumer took the same processor time an
event within a tenth, now more, now less: no reason for an extra.
"""

ONE_BY_ONE = 1_000
IN_FLIGHT = 12_800
WARM_UP = 1_500
"""After so many saves, one by one, the write-ahead logs have stopped growing."""


def measure(rounds: int, advance: Advance) -> list[Row]:
    """The table."""
    peer = "eventsourcing, one by one"
    subjects = [
        Subject(name="bare sqlite3, one by one", run=_bare, unit="saves/s", peer=peer),
        Subject(name=peer, run=partial(_eventsourcing, threads=1), unit="saves/s"),
        Subject(name="eventsourcing, 8 threads", run=partial(_eventsourcing, threads=8), unit="saves/s", peer=peer),
        Subject(
            name="eventsource-py, one by one", run=partial(_eventsource_py, in_flight=1), unit="saves/s", peer=peer
        ),
        Subject(
            name="eventsource-py, 64 in flight", run=partial(_eventsource_py, in_flight=64), unit="saves/s", peer=peer
        ),
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
            await save_all(service, orders(WARM_UP), in_flight=1)
            new = orders(count)
            began = time.perf_counter()
            last = await save_all(service, new, in_flight=in_flight)
            seconds = time.perf_counter() - began
            check("events saved", last.number, WARM_UP + count)
            return count / seconds

    return asyncio.run(run())


def _eventsourcing(directory: Path, threads: int) -> float:
    with application(directory / "events.db") as app, ThreadPoolExecutor(threads) as pool:
        for order in orders(WARM_UP):
            app.save(order)
        new = orders(ONE_BY_ONE)
        began = time.perf_counter()
        if threads > 1:
            list(pool.map(app.save, new))
        else:
            for order in new:
                app.save(order)
        return ONE_BY_ONE / (time.perf_counter() - began)


def _eventsource_py(directory: Path, in_flight: int) -> float:
    return eventsource_py.saves(ONE_BY_ONE, WARM_UP, in_flight, directory)


def _bare(directory: Path) -> float:
    connection = sqlite3.connect(directory / "events.db", isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(
            "CREATE TABLE events (position INTEGER PRIMARY KEY, stream TEXT, version INTEGER, data BLOB, "
            "UNIQUE (stream, version))"
        )
        _insert(connection, WARM_UP)
        began = time.perf_counter()
        _insert(connection, ONE_BY_ONE)
        return ONE_BY_ONE / (time.perf_counter() - began)
    finally:
        connection.close()


def _insert(connection: sqlite3.Connection, count: int) -> None:
    data = b"d" * 200
    for _ in range(count):  # in autocommit mode each statement is a transaction
        connection.execute("INSERT INTO events (stream, version, data) VALUES (?, 1, ?)", (str(uuid4()), data))
