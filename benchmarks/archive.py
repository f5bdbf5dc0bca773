"""The archive: backups, restores, history from segments."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import sqlalchemy as sa

from benchmarks.cdnow import PURCHASES, write_full_size
from benchmarks.rounds import Advance, Goal, Row, Subject, alternate, check
from benchmarks.workload import Order, OrderPlaced, customers, orders, reports, save_all, shop, sqlite_url
from evsync import Event, MemoryModel, Position, Projection, Service
from evsync.archive.backup import GENTLE, Backups
from evsync.archive.copies import Archive
from evsync.archive.reader import ArchivedReader
from evsync.archive.restore import Until
from evsync.archive.targets import open_target
from evsync.archive.verification import verify_copy
from evsync.errors import ConfigurationError
from evsync.opening import open_store
from evsync.operations.recovery import restore_log
from evsync.ports import LogReader
from evsync.sources import StoreReader
from examples.users_orders.demo import SAMPLE
from examples.users_orders.orders import Order as Purchase
from examples.users_orders.orders import orders as purchases_service
from examples.users_orders.purchases import Purchase as Line
from examples.users_orders.purchases import read

TITLE = "Archive, restore, history"
NOTES = f"""\
The {PURCHASES:,} orders of the example at full size in an SQLite store, archived into one directory on the same disk,
and restored from there into a new SQLite store; each segment is read back when it is written, and verified when it is
read. History: what a projection's reader does with the archive; and 200,000 orders out of their archive, counted by
customer in memory, and projected into the tables above, two operations an order. The size is that of all segments, of
the store's file after `VACUUM`. Saves during a backup: the same saves, 64 in flight, with and without backups that
begin again as soon as they end, which no interval does; they rest between two pieces of work, as a service's own do.

What limits it: Python on one core. A backup is SQLite's rows becoming Python values, then columns of them; a restore
the columns becoming values, and SQLite's index of streams. Reading history is far from being what limits a projection:
the handler, the contract and the read model's own statements are.
"""

EVENTS = 200_000
"""In the history that is projected."""
SAVES = 40_000


def measure(rounds: int, advance: Advance) -> list[Row]:
    """The table."""
    with TemporaryDirectory(prefix="evsync-bench-") as directory:
        store, place = Path(directory) / "orders.db", Path(directory) / "backups"
        advance("filling a log")
        asyncio.run(_fill(store, Path(directory)))
        backed_up = partial(_back_up, store)
        backed_up(Path(directory))
        last = asyncio.run(_fill_shop(Path(directory)))
        alone = "saves, 64 in flight"
        subjects = [
            Subject(name="backup of the example", run=backed_up, goal=Goal(of="value", least=100_000)),
            Subject(name="verify", run=partial(_verify, place)),
            Subject(name="restore into SQLite", run=partial(_restore, place), goal=Goal(of="value", least=100_000)),
            Subject(
                name="history from segments, read",
                run=partial(_history, store, place),
            ),
            Subject(
                name="history from segments, into a projection in memory",
                run=partial(_project, Path(directory), last, tables=False),
                goal=Goal(of="value", least=150_000),
            ),
            Subject(
                name="history from segments, into a projection in SQLite",
                run=partial(_project, Path(directory), last, tables=True),
            ),
            Subject(
                name="archive of the example, of the store's size",
                run=partial(_size, store, place),
                unit="%",
                goal=Goal(of="value", most=25),
            ),
            Subject(name=alone, run=partial(_save, backups=False), unit="saves/s"),
            Subject(
                name="the same during backups",
                run=partial(_save, backups=True),
                unit="saves/s",
                peer=alone,
                goal=Goal(of="ratio", least=0.8),
            ),
        ]
        return alternate(subjects, rounds, advance)


async def _fill(store: Path, directory: Path) -> None:
    data = directory / "purchases.txt"
    write_full_size(SAMPLE, data)
    service = Service("orders", aggregates=purchases_service.codec.aggregates)
    async with service.open(store=sqlite_url(store)):
        await save_all(service, _purchases(data), in_flight=1_000)
        await service.runtime.store.head()


def _purchases(data: Path) -> Iterator[Purchase]:
    with data.open(encoding="utf-8") as lines:
        for line in read(lines):
            if isinstance(line, Line):
                yield Purchase(f"cdnow-{line.customer}", line.cds, line.price_cents, line.on)


def _back_up(store: Path, directory: Path) -> float:
    async def run() -> float:
        opened = await open_store(sqlite_url(store), service="orders", create=False)
        target = open_target(str(directory / "backups"))
        began = time.perf_counter()
        report = await Backups(opened, [target], copies=1).run()
        seconds = time.perf_counter() - began
        check("events in the archive", report.backed_up, PURCHASES)
        await opened.close()
        return PURCHASES / seconds

    return asyncio.run(run())


def _verify(place: Path, _: Path) -> float:
    async def run() -> float:
        archive = await Archive.find([open_target(str(place))], "orders.main")
        began = time.perf_counter()
        report = await verify_copy(archive.copies[0])
        check("verified events", (report.last, report.problems), (PURCHASES, []))
        return PURCHASES / (time.perf_counter() - began)

    return asyncio.run(run())


def _restore(place: Path, directory: Path) -> float:
    async def run() -> float:
        archive = await Archive.find([open_target(str(place))], "orders.main")
        began = time.perf_counter()
        report = await restore_log(archive, sqlite_url(directory / "restored.db"), Until())
        check("restored events", report.position, PURCHASES)
        return PURCHASES / (time.perf_counter() - began)

    return asyncio.run(run())


def _history(store: Path, place: Path, _: Path) -> float:
    async def run() -> float:
        opened = await open_store(sqlite_url(store), service="orders", create=False)
        reader: LogReader = ArchivedReader(StoreReader(opened, _never), [open_target(str(place))])
        position, began = 0, time.perf_counter()
        while position < PURCHASES:
            position = (await reader.read(position, 2_000, 0.0))[-1].position
        seconds = time.perf_counter() - began
        await reader.close()
        await opened.close()
        return PURCHASES / seconds

    return asyncio.run(run())


def _never() -> None:
    raise ConfigurationError("everything is in the archive; the live log is not asked")


async def _fill_shop(directory: Path) -> Position:
    async with shop().open(store=sqlite_url(directory / "shop.db")) as service:
        last = await save_all(service, orders(EVENTS), in_flight=1_000)
        await Backups(service.runtime.store, [open_target(str(directory / "shop"))], copies=1).run()
    return last


def _project(history: Path, last: Position, directory: Path, *, tables: bool) -> float:
    async def run() -> float:
        totals = MemoryModel[Counter[str]](Counter)
        async with (reports() if tables else _totals(totals)).open(
            store="memory://",
            views=sqlite_url(directory / "views.db"),
            run=["customers"],
            sources={"shop": sqlite_url(history / "shop.db")},
            archives={"shop": [str(history / "shop")]},
        ) as service:
            began = time.perf_counter()
            await service.wait(last, timeout_s=120)
            seconds = time.perf_counter() - began
            if tables:
                shown = (await service.query(sa.select(sa.func.sum(customers.c.orders)))).scalar_one()
            else:
                shown = service.state(totals).total()
            check("orders in the read model", shown, EVENTS)
            return EVENTS / seconds

    return asyncio.run(run())


def _totals(model: MemoryModel[Counter[str]]) -> Service:
    """A service that counts the orders of each customer, in memory."""
    view = Projection("customers", model=model)

    @view.on(OrderPlaced)
    def placed(e: Event[OrderPlaced], totals: Counter[str]) -> None:
        totals[e.data.customer_id] += 1

    return Service("reports", projections=[view])


def _size(store: Path, place: Path, directory: Path) -> float:
    import sqlite3

    packed = directory / "packed.db"
    with sqlite3.connect(store) as connection:
        connection.execute("VACUUM INTO ?", (str(packed),))
    connection.close()
    archived = sum(file.stat().st_size for file in place.rglob("*.segment"))
    return 100 * archived / packed.stat().st_size


def _save(directory: Path, *, backups: bool) -> float:
    async def run() -> float:
        async with shop().open(store=sqlite_url(directory / "shop.db")) as service:
            await save_all(service, orders(20_000), in_flight=64)
            made: list[Order] = orders(SAVES)
            task = asyncio.create_task(_again_and_again(service, directory)) if backups else None
            began = time.perf_counter()
            await save_all(service, made, in_flight=64)
            seconds = time.perf_counter() - began
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
            return SAVES / seconds

    return asyncio.run(run())


async def _again_and_again(service: Service, directory: Path) -> None:
    target = open_target(str(directory / "backups"))
    backups = Backups(service.runtime.store, [target], copies=1, share=GENTLE)
    while True:
        await backups.run()
