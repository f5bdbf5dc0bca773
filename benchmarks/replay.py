"""Replay: an aggregate from its events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

from benchmarks import eventsource_py_peer as eventsource_py
from benchmarks.eventsourcing_peer import application
from benchmarks.rounds import Advance, Goal, Row, Subject, alternate, check
from benchmarks.workload import Account, shop, sqlite_url

TITLE = "Replay from SQLite"
NOTES = """\
The same aggregates with the same events, read by `Service.get`, by eventsourcing's `repository.get` and by
eventsource-py's `load` (without their caches and snapshots, as by default): one aggregate of 10,000 events, then 1,000
of ten events each, one after the other. The files are in the operating system's cache. "Again, cached" is a service
with `cached_aggregates=1`: the same aggregate is read 1,000 times more after the first, and the store is asked each
time whether there are later events.

What limits it: Python on one core. Two thirds are SQLite's rows becoming Python values (six columns an event), the
other third msgpack and the decorated functions themselves. For short streams it is the query.
"""

LONG, SHORT, MANY = 10_000, 10, 1_000
REFERENCE = "transfer {:06} of the month, from an account of the same bank"
AGAIN = 1_000
"""How often the long aggregate is read from the cache."""


def measure(rounds: int, advance: Advance) -> list[Row]:
    """The table."""
    with TemporaryDirectory(prefix="evsync-bench-") as directory:
        own, peers = Path(directory) / "evsync.db", Path(directory) / "eventsourcing.db"
        long, short = [_account(LONG)], [_account(SHORT) for _ in range(MANY)]
        advance("writing what is replayed")
        _write(own, peers, [*long, *short])
        others = Path(directory) / "eventsource-py.db"
        first, *rest = eventsource_py.write_accounts(others, [LONG, *[SHORT] * MANY], REFERENCE)
        subjects = []
        for what, accounts in ((f"one of {LONG:,} events", long), (f"{MANY:,} of {SHORT} events", short)):
            ids, peer = [a.id for a in accounts], f"eventsourcing, {what}"
            goal = Goal(of="ratio", least=10) if accounts is long else None
            subjects += [
                Subject(name=peer, run=partial(_by_eventsourcing, peers, ids)),
                Subject(
                    name=f"eventsource-py, {what}",
                    run=partial(
                        eventsource_py.replay,
                        others,
                        [first] if accounts is long else rest,
                        LONG if accounts is long else SHORT,
                    ),
                    peer=peer,
                ),
                Subject(name=f"evsync, {what}", run=partial(_by_evsync, own, ids), peer=peer, goal=goal),
            ]
        name = f"evsync, one of {LONG:,} events again, cached"
        subjects.append(Subject(name=name, run=partial(_from_cache, own, long[0].id), unit="µs a load"))
        return alternate(subjects, rounds, advance)


def _account(events: int) -> Account:
    account = Account("Ada")
    for i in range(events - 1):
        account.deposit(i, REFERENCE.format(i))
    return account


def _write(own: Path, peers: Path, accounts: Sequence[Account]) -> None:
    async def save() -> None:
        async with shop().open(store=sqlite_url(own)) as service:
            await asyncio.gather(*map(service.save, accounts))

    kept = [list(account.pending_events) for account in accounts]
    with application(peers) as app:
        for account, events in zip(accounts, kept, strict=True):
            app.save(account)
            account.pending_events.extend(events)  # a save takes them away, and the other library wants them too
    asyncio.run(save())


def _by_evsync(file: Path, ids: Sequence[UUID], _: Path) -> float:
    async def read() -> float:
        async with shop().open(store=sqlite_url(file)) as service:
            began = time.perf_counter()
            versions = [(await service.get(Account, id)).version for id in ids]
            seconds = time.perf_counter() - began
            check("versions", set(versions), {SHORT if len(ids) == MANY else LONG})
            return sum(versions) / seconds

    return asyncio.run(read())


def _from_cache(file: Path, id: UUID, _: Path) -> float:
    async def read() -> float:
        async with shop(cached_aggregates=1).open(store=sqlite_url(file)) as service:
            await service.get(Account, id)
            began = time.perf_counter()
            versions = [(await service.get(Account, id)).version for _ in range(AGAIN)]
            seconds = time.perf_counter() - began
            check("versions", set(versions), {LONG})
            return seconds / AGAIN * 1e6

    return asyncio.run(read())


def _by_eventsourcing(file: Path, ids: Sequence[UUID], _: Path) -> float:
    with application(file) as app:
        began = time.perf_counter()
        versions = []
        for id in ids:
            account: Account = app.repository.get(id)
            versions.append(account.version)
        seconds = time.perf_counter() - began
        check("versions", set(versions), {SHORT if len(ids) == MANY else LONG})
        return sum(versions) / seconds
