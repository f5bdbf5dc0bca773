"""Memory, and the time of an event, of what goes through whole logs: short ones and long ones.

`python -m benchmarks.memory OPERATION DIRECTORY EVENTS` is one operation in a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from benchmarks.rounds import Advance, Goal, Row, check
from benchmarks.workload import Account, customers, orders, reports, shop, sqlite_url
from evsync.archive.backup import Backups
from evsync.archive.copies import Archive
from evsync.archive.restore import Until
from evsync.archive.targets import open_target
from evsync.opening import open_store
from evsync.operations.recovery import restore_log
from evsync.ports import Store
from evsync.records import Append, Commit, NewEvent, new_command
from evsync.sharding.slots import slot_of

TITLE = "Long logs: memory, and the time of an event"
NOTES = """\
Logs of 10,000, 100,000 and 1,000,000 events of about 200 bytes in SQLite, each gone through by a process of its own
that does nothing else. Backup: into a directory. Restore: from there into a new SQLite store. Replay: `Service.get` of
one aggregate that has all of the events. Rebuild: `Service.rebuild` of the read model above, read from the log. Memory
is the most that was resident in the process, with the interpreter and all that is imported. The time of an event is
measured from the opened service on, without the start of the process.

![The most memory, and the time of an event, by the length of the log: all stay below 200 MiB at a million events, and
no time of an event grows.](plots/memory.svg)
"""

SIZES = (10_000, 100_000, 1_000_000)
OPERATIONS = ("backup", "restore", "replay", "rebuild")
MOST_MIB = 300
LEVEL = 1.3
"""So much longer an event of the longest log may take: as far as two measurements on a busy machine differ."""
COMMIT = 500


def measure(rounds: int, advance: Advance) -> list[Row]:
    """The table. Two rounds at most: a long log takes its time."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {(o, n): [] for n in SIZES for o in OPERATIONS}
    with TemporaryDirectory(prefix="evsync-bench-") as directory:
        for events in SIZES:
            advance(f"filling logs of {events:,} events")
            (place := Path(directory) / str(events)).mkdir()
            asyncio.run(_fill(place, events))
        for number in range(min(rounds, 2)):
            for events in SIZES:
                for operation in OPERATIONS:
                    advance(f"{operation} of {events:,} events")
                    found[operation, events].append(_measured(operation, Path(directory), events, number))
    rows = []
    for operation in OPERATIONS:
        for events in SIZES:
            most = Goal(of="value", most=MOST_MIB) if events == SIZES[-1] else None
            rows.append(Row(name=f"{operation} of {events:,}: memory", unit="MiB",
                            values=[mib for mib, _ in found[operation, events]], goal=most))  # fmt: skip
    for operation in OPERATIONS:
        for events in SIZES:
            last, peer = events == SIZES[-1], f"{operation} of {SIZES[0]:,}"
            values = [us for _, us in found[operation, events]]
            ratios = [us / other for us, (_, other) in zip(values, found[operation, SIZES[0]], strict=True)]
            rows.append(
                Row(name=f"{operation} of {events:,}", unit="µs/event", values=values, peer=peer if last else None,
                    ratios=ratios if last else (), goal=Goal(of="ratio", most=LEVEL) if last else None)
            )  # fmt: skip
    return rows


def _measured(operation: str, directory: Path, events: int, number: int) -> tuple[float, float]:
    """The most MiB that it had, and µs an event."""
    command = [sys.executable, "-m", "benchmarks.memory", operation, str(directory / str(events)), str(events)]
    done = subprocess.run([*command, str(number)], check=True, stdout=subprocess.PIPE, text=True, timeout=600)
    mib, us = json.loads(done.stdout)
    return mib, us


# ---- the logs


async def _fill(place: Path, events: int) -> None:
    """A log of orders, and one of a single account."""
    async with shop().open(store=sqlite_url(place / "orders.db")) as service:
        await service.save(orders(1)[0])
        (first,) = await service.runtime.store.read(0, 1)
        await _append(service.runtime.store, events, lambda n: f"order-{n}", first.type, first.data)
    async with shop().open(store=sqlite_url(place / "account.db")) as service:
        account = Account("Ada")
        account.deposit(1, "n" * 120)
        await service.save(account)
        *_, last = await service.runtime.store.read(0, 2)
        await _append(service.runtime.store, events, None, last.type, last.data, account=str(account.id))


async def _append(
    store: Store, events: int, stream: Callable[[int], str] | None, type: str, data: bytes, account: str = ""
) -> None:
    """Make the log so long by events like its last one."""
    now = time.time_ns() // 1_000
    while (head := await store.head()) < events:
        new = [NewEvent(type, now, data, None) for _ in range(min(COMMIT, events - head))]
        if stream is None:
            appends = [Append(account, slot_of(account), head, new)]
        else:
            names = [stream(head + n) for n in range(len(new))]
            appends = [Append(name, slot_of(name), 0, [e]) for name, e in zip(names, new, strict=True)]
        await store.append([Commit(new_command(), appends)])


# ---- the operations, each in a process of its own


async def _backup(place: Path, events: int, number: int) -> float:
    store = await open_store(sqlite_url(place / "orders.db"), service="shop", create=False)
    began = time.perf_counter()
    report = await Backups(store, [open_target(str(place / f"backups-{number}"))], copies=1).run()
    seconds = time.perf_counter() - began
    check("events in the archive", report.backed_up, events)
    await store.close()
    return seconds


async def _restore(place: Path, events: int, number: int) -> float:
    archive = await Archive.find([open_target(str(place / f"backups-{number}"))], "shop.main")
    began = time.perf_counter()
    report = await restore_log(archive, sqlite_url(place / f"restored-{number}.db"), Until())
    check("restored events", report.position, events)
    return time.perf_counter() - began


async def _replay(place: Path, events: int, _: int) -> float:
    async with shop().open(store=sqlite_url(place / "account.db"), run="none") as service:
        first = (await service.runtime.store.read(0, 1))[0]
        began = time.perf_counter()
        account = await service.get(Account, UUID(first.stream))
        seconds = time.perf_counter() - began
        check("version of the account", account.version, events)
        return seconds


async def _rebuild(place: Path, events: int, number: int) -> float:
    service = reports()
    settings = {"store": "memory://", "views": sqlite_url(place / f"views-{number}.db"), "run": "none",
                "sources": {"shop": sqlite_url(place / "orders.db")}}  # fmt: skip
    async with service.open(**settings):  # type: ignore[arg-type]
        began = time.perf_counter()
        await service.rebuild()
        seconds = time.perf_counter() - began
        shown = await service.query(sa.select(sa.func.sum(customers.c.orders)))
        check("orders in the read model", shown.scalar_one(), events)
        return seconds


_RUN: dict[str, Callable[[Path, int, int], Coroutine[Any, Any, float]]] = {
    "backup": _backup, "restore": _restore, "replay": _replay, "rebuild": _rebuild,
}  # fmt: skip


def _most_mib() -> float:
    """The most that was resident since this program began.

    getrusage is asked where there is nothing better: on Linux it starts with what the process had been before it became
    this program, a copy of its parent.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1_024
    except (OSError, StopIteration):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / (1 << 20 if sys.platform == "darwin" else 1 << 10)


if __name__ == "__main__":
    _, operation, place, events, number = sys.argv
    took: float = asyncio.run(_RUN[operation](Path(place), int(events), int(number)))
    print(json.dumps([_most_mib(), took / int(events) * 1e6]))
