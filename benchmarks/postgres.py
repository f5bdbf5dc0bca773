"""PostgreSQL as the event store. `python -m benchmarks.postgres URL COUNT MOST` is one of several processes."""

from __future__ import annotations

import asyncio
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import psycopg

from benchmarks.eventsourcing_peer import postgres_application
from benchmarks.rounds import Advance, Goal, Row, Subject, alternate, check
from benchmarks.workload import Account, orders, save_all, shop
from evsync.ports import EventLog
from evsync.records import StoredEvent
from evsync.testing.postgres import PostgresServer

TITLE = "PostgreSQL as the event store"
NOTES = """\
A server of its own on the same machine, over TCP. `fsync`, `synchronous_commit` and `full_page_writes` are on (the run
ends if the server, or eventsourcing's own connection, says otherwise). Saves and events are those of the first table:
one event of about 200 bytes in an aggregate of its own. eventsourcing: `Application.save` with `eventsourcing.postgres`
and all of its defaults; it saves one after the other, locks the table and inserts in two pipelined round trips.

Four processes have one store and 64 saves in flight each; they are compared with one process with 64. The run ends
unless the log is whole and in its order. Six processes make commits of one to five events while a reader follows the
log, and what is counted is: events that the reader never saw, positions that are missing, and events that came at
another place than their position.

Replay: one aggregate of 10,000 events, the same for both, read by `Service.get` and by eventsourcing's `repository.get`
(without its cache and snapshots, as by default).

What limits it. One by one: the fsync and the way to the server and back; half of the time is Python. In flight
together: Python takes two thirds of the time (encoding, a task's turn, the arrays for the driver), the server with its
fsync the rest, and the next group is not sent before the last one is stored. The server brings one group after the
other to the disk, so processes gain what Python takes beside that, as far as there are cores; on two, one process and
its server use them already. Replay: Python on one core, somewhat more than half of it msgpack and the decorated
functions, the rest the driver and its rows.
"""

WARM_UP = 200
ONE_BY_ONE = 1_000
IN_FLIGHT = 12_800
PROCESSES, EACH = 4, 3_200
WRITERS, MIXED_EACH, MOST_EVENTS = 6, 600, 5
LONG = 10_000
PATIENCE_S = 120.0


def measure(rounds: int, advance: Advance) -> list[Row]:
    """The table."""
    with (
        TemporaryDirectory(prefix="evsync-bench-pg-", ignore_cleanup_errors=True) as data,
        PostgresServer(Path(data)) as server,
    ):
        _check_durability(server)
        advance("writing what is replayed")
        account = asyncio.run(_write_account(server))
        peer, together = "eventsourcing, one by one", "evsync, 64 in flight"
        replayed = f"eventsourcing, replay of {LONG:,}"
        subjects = [
            Subject(name=peer, run=partial(_eventsourcing, server), unit="saves/s"),
            Subject(
                name="evsync, one by one",
                run=partial(_evsync, server, ONE_BY_ONE, 1),
                unit="saves/s",
                peer=peer,
            ),
            Subject(
                name=together,
                run=partial(_evsync, server, IN_FLIGHT, 64),
                unit="saves/s",
                peer=peer,
                goal=Goal(of="ratio", least=10),
            ),
            Subject(
                name="evsync, four processes, 64 in flight each",
                run=partial(_processes, server),
                unit="saves/s",
                peer=together,
                goal=Goal(of="ratio", least=1),
            ),
            Subject(
                name="six processes: missed, gaps, out of order",
                run=partial(_faults, server),
                unit="events",
                goal=Goal(of="value", most=0),
            ),
            Subject(name=replayed, run=partial(_replay_by_eventsourcing, server, account)),
            Subject(
                name=f"evsync, replay of {LONG:,}",
                run=partial(_replay, server, account),
                peer=replayed,
                goal=Goal(of="ratio", least=8),
            ),
        ]
        return alternate(subjects, rounds, advance)


def _check_durability(server: PostgresServer) -> None:
    with psycopg.connect(server.url) as c:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            check(name, c.execute(f"SHOW {name}").fetchone(), ("on",))


def _url(server: PostgresServer, schema: str) -> str:
    return f"{server.url}&schema={schema}"


def _schema(directory: Path) -> str:
    return directory.name.replace("-", "_").lower()


# ---- saving


def _eventsourcing(server: PostgresServer, directory: Path) -> float:
    with postgres_application(server, _schema(directory)) as app:
        for order in orders(WARM_UP):
            app.save(order)
        new = orders(ONE_BY_ONE)
        began = time.perf_counter()
        for order in new:
            app.save(order)
        return ONE_BY_ONE / (time.perf_counter() - began)


def _evsync(server: PostgresServer, count: int, in_flight: int, directory: Path) -> float:
    async def run() -> float:
        async with shop().open(store=_url(server, _schema(directory))) as service:
            await save_all(service, orders(WARM_UP), in_flight=1)
            new = orders(count)
            began = time.perf_counter()
            last = await save_all(service, new, in_flight=in_flight)
            seconds = time.perf_counter() - began
            check("events saved", last.number, WARM_UP + count)
            return count / seconds

    return asyncio.run(run())


# ---- several processes, and a reader


class _Watched(NamedTuple):
    """What several processes did, and what a reader saw of it."""

    seconds: float
    seen: list[StoredEvent]
    log: list[StoredEvent]
    """The whole log, read when nobody appends any more."""

    @property
    def faults(self) -> int:
        """How many events the reader missed, positions are missing, and events came at another place than due."""
        missed = len({e.id for e in self.log} - {e.id for e in self.seen})
        gaps = self.log[-1].position - len(self.log)
        return missed + gaps + sum(e.position != due for due, e in enumerate(self.seen, 1))


def _processes(server: PostgresServer, directory: Path) -> float:
    watched = asyncio.run(_watched(server, directory, processes=PROCESSES, each=EACH, most_events=1, beside=False))
    check("events in the log", len(watched.log), PROCESSES * (WARM_UP + EACH))
    check("events that the reader missed, gaps, events out of order", watched.faults, 0)
    return PROCESSES * EACH / watched.seconds


def _faults(server: PostgresServer, directory: Path) -> float:
    watched = asyncio.run(
        _watched(server, directory, processes=WRITERS, each=MIXED_EACH, most_events=MOST_EVENTS, beside=True)
    )
    mixed = sum(1 + n % MOST_EVENTS for n in range(MIXED_EACH))
    check("events in the log", len(watched.log), WRITERS * (WARM_UP + mixed))
    return watched.faults


async def _watched(
    server: PostgresServer, directory: Path, *, processes: int, each: int, most_events: int, beside: bool
) -> _Watched:
    """Let processes append; the reader follows `beside` them, or reads the log when they are done."""
    url = _url(server, _schema(directory))
    async with asyncio.timeout(PATIENCE_S), shop().open(store=url) as service:
        log = service.store
        assert log is not None
        command = [sys.executable, "-m", "benchmarks.postgres", url, str(each), str(most_events)]
        started = [await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE) for _ in range(processes)]
        try:
            await _say(started, b"ready\n")
            done = asyncio.Event()
            following = asyncio.create_task(_follow(log, done)) if beside else None
            began = time.perf_counter()
            for process in started:
                assert process.stdin is not None
                process.stdin.write(b"go\n")
            await _say(started, b"done\n")
            seconds = time.perf_counter() - began
            done.set()
            seen = await following if following is not None else await _follow(log, done)
            return _Watched(seconds, seen, await _follow(log, done))
        finally:
            for process in started:
                if process.returncode is None:
                    process.kill()
                await process.wait()


async def _say(processes: Sequence[Process], line: bytes) -> None:
    for process in processes:
        assert process.stdout is not None
        check("a writing process says", await process.stdout.readline(), line)


async def _follow(log: EventLog, done: asyncio.Event) -> list[StoredEvent]:
    """Read as the log grows, until nobody appends any more and everything is read."""
    seen: list[StoredEvent] = []
    while True:
        ending, after = done.is_set(), seen[-1].position if seen else 0
        events = await log.read(after, 1_000)
        seen += events
        if not events:
            if ending:
                return seen
            await log.wait(after, 0.1)


async def _append(url: str, count: int, most_events: int) -> None:
    """What one of the processes does: COUNT saves of 1, 2, … MOST events each, 64 in flight, once it is told to."""
    async with shop().open(store=url) as service:
        await save_all(service, orders(WARM_UP), in_flight=1)
        new = orders(count) if most_events == 1 else [_account(1 + n % most_events) for n in range(count)]
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await save_all(service, new, in_flight=64)
        print("done", flush=True)


# ---- replay


def _account(events: int) -> Account:
    account = Account("Ada")
    for i in range(events - 1):
        account.deposit(i, f"transfer {i:06} of the month, from an account of the same bank")
    return account


async def _write_account(server: PostgresServer) -> Account:
    """One account, the same in a store of each library."""
    account = _account(LONG)
    kept = list(account.pending_events)
    with postgres_application(server, "replayed_peer") as app:
        app.save(account)
    account.pending_events.extend(kept)  # a save takes them away, and the other library wants them too
    async with shop().open(store=_url(server, "replayed")) as service:
        await service.save(account)
    with psycopg.connect(server.url, autocommit=True) as c:
        c.execute("VACUUM ANALYZE")  # as the server does by itself within a minute
    return account


def _replay(server: PostgresServer, account: Account, _: Path) -> float:
    async def read() -> float:
        async with shop().open(store=_url(server, "replayed")) as service:
            began = time.perf_counter()
            found = await service.get(Account, account.id)
            seconds = time.perf_counter() - began
            check("version and balance", (found.version, found.balance), (LONG, account.balance))
            return LONG / seconds

    return asyncio.run(read())


def _replay_by_eventsourcing(server: PostgresServer, account: Account, _: Path) -> float:
    with postgres_application(server, "replayed_peer") as app:
        began = time.perf_counter()
        found: Account = app.repository.get(account.id)
        seconds = time.perf_counter() - began
        check("version and balance", (found.version, found.balance), (LONG, account.balance))
        return LONG / seconds


if __name__ == "__main__":
    asyncio.run(_append(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
