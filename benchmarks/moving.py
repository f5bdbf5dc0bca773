"""Moving slots from one shard to another, alone and under load."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import Awaitable
from functools import partial
from pathlib import Path

from benchmarks.rounds import Advance, Goal, Row, Subject, alternate, check
from benchmarks.workload import Account, shop
from evsync.homes import ShardedStores
from evsync.service import Service
from evsync.sharding import HashRing
from evsync.sharding.handover import bring_about

TITLE = "Moving slots between SQLite shards"
NOTES = """\
Half of a shard's slots, with 20 events in each of 2,000 streams, are moved to a new shard by a process of its own, as
`evsync shards` is one. First alone; then while 16 writers add to other streams of all slots, each waiting for its save.
Their saves a second while the move lasts stand beside those without a move. The longest save is one that met a closed
slot: from the call of `save` to its return.

What limits it: between two reads the mover rests three times as long as it worked, so that writers have the disk and
the processor. Without the rest it moves several times as many events a second, at the writers' cost.
"""

STREAMS, EVENTS, WRITERS = 2_000, 20, 16


def measure(rounds: int, advance: Advance) -> list[Row]:
    """The table."""
    moved = Goal(of="value", least=20_000)
    kept, pause = Goal(of="ratio", least=0.7), Goal(of="value", most=500)
    return alternate(
        [
            Subject(name="moving, nobody writes", run=partial(_run, _move), goal=moved),
            Subject(name="writers, no move", run=partial(_run, _write), unit="saves/s"),
            Subject(
                name="writers, during a move",
                run=partial(_run, _both),
                unit="saves/s",
                peer="writers, no move",
                goal=kept,
            ),
            Subject(name="longest save, during a move", run=partial(_run, _pause), unit="ms", goal=pause),
        ],
        rounds,
        advance,
    )  # fmt: skip


def _run(what: object, directory: Path) -> float:
    async def work() -> float:
        service = shop(router=HashRing(["a"]))
        urls = {name: f"sqlite:///{directory}/{name}.db" for name in ("a", "b")}
        async with service.open(store=urls, run="none"):
            await _fill(service)
            return await what(service)  # type: ignore[operator, no-any-return]

    return asyncio.run(work())


async def _fill(service: Service) -> None:
    for start in range(0, STREAMS, 200):
        accounts = [Account(f"owner {n}") for n in range(start, start + 200)]
        for account in accounts:
            for n in range(EVENTS - 1):
                account.deposit(n, "a transfer")
        await asyncio.gather(*map(service.save, accounts))


async def _move(service: Service, writers: _Writers | None = None) -> float:
    """Events moved a second, the mover's start left out."""
    urls = service.runtime.settings["store"]
    mover = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.moving", json.dumps(urls), stdin=PIPE, stdout=PIPE
    )
    assert mover.stdin is not None
    assert mover.stdout is not None
    check("the mover", await mover.stdout.readline(), b"ready\n")
    began, saves = time.perf_counter(), writers.saves if writers is not None else 0
    mover.stdin.write(b"go\n")
    check("the mover", await mover.stdout.readline(), b"moved\n")
    elapsed = time.perf_counter() - began
    if writers is not None:
        writers.rate = (writers.saves - saves) / elapsed
    await mover.wait()
    home = service.runtime.home
    assert isinstance(home, ShardedStores)
    moved = await home.stores["b"].slot_size()
    return moved.streams * EVENTS / elapsed


async def _mover(urls: dict[str, str]) -> None:
    async with shop(router=HashRing(["a"])).open(store=urls, run="none") as service:
        home = service.runtime.home
        assert isinstance(home, ShardedStores)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        await bring_about(home.stores, HashRing(["a"]).adding("b").placement)
        sys.stdout.write("moved\n")
        sys.stdout.flush()


class _Writers:
    def __init__(self, service: Service) -> None:
        self._service, self._stop = service, False
        self.saves, self.longest_s, self.rate = 0, 0.0, 0.0

    async def write(self) -> None:
        account = Account("writer")
        while not self._stop:
            account.deposit(1, "a transfer")
            began = time.perf_counter()
            await self._service.save(account)
            self.longest_s = max(self.longest_s, time.perf_counter() - began)
            self.saves += 1
            if account.version > 20:
                account = Account("writer")

    async def during(self, work: Awaitable[object]) -> float:
        """Write while the work lasts; saves a second."""
        tasks = [asyncio.create_task(self.write()) for _ in range(WRITERS)]
        began = time.perf_counter()
        await work
        elapsed, saves = time.perf_counter() - began, self.saves
        self._stop = True
        await asyncio.gather(*tasks)
        return saves / elapsed


async def _write(service: Service) -> float:
    return await _Writers(service).during(asyncio.sleep(1.0))


async def _both(service: Service) -> float:
    writers = _Writers(service)
    await writers.during(_move(service, writers))
    return writers.rate


async def _pause(service: Service) -> float:
    writers = _Writers(service)
    await writers.during(_move(service, writers))
    return writers.longest_s * 1000


if __name__ == "__main__":
    asyncio.run(_mover(json.loads(sys.argv[1])))
