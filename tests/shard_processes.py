"""A sharded service in processes of its own: writers that go on until they are told; movers and backups that are
killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evsync.archive.backup import Backups
from evsync.archive.restore import Until
from evsync.archive.targets import open_target
from evsync.errors import StoreUnavailable
from evsync.operations.recovery import archives_of, restore_shard
from evsync.sharding.handover import Step, bring_about
from evsync.stores.slot_steps import Steps
from evsync.stores.sqlite.restore import SqliteRestore
from tests.integration.test_shards import Counted, home, opened


async def write(directory: Path, stores: Mapping[str, str], ids: list[str]) -> None:
    """Add 1 to each stream in turn until standard input ends; then print how often for each."""
    done = dict.fromkeys(ids, 0)
    loop = asyncio.get_running_loop()
    ended = loop.run_in_executor(None, sys.stdin.read)
    async with opened(directory, stores=stores, run="none") as service:
        print("writing", flush=True)
        while not ended.done():
            for id in ids:
                # A process that sleeps may hold one of the locks that SQLite has beside that of a transaction, and on a
                # busy machine one of many may wait in vain for its turn: nothing was stored then.
                while True:
                    with contextlib.suppress(StoreUnavailable):
                        await service.execute(Counted, id, Counted.add, 1)
                        break
                done[id] += 1
            (directory / f"{os.getpid()}.done").write_text(str(sum(done.values())))
    print(json.dumps(done), flush=True)


async def move(directory: Path, stores: Mapping[str, str], target: list[str], die_after: int) -> None:
    """Bring slots where the target says; killed after so many steps (0: never)."""
    steps = 0

    def step(_: Step) -> None:
        nonlocal steps
        steps += 1
        if steps == die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    async with opened(directory, stores=stores, run="none") as service:
        await bring_about(home(service).stores, target, step)
    print("moved", flush=True)


async def backup(directory: Path, stores: Mapping[str, str], targets: list[str], die_after: int) -> None:
    """Archive the logs of all shards; killed when it is about to bring so many files to the disk (0: never)."""
    steps, fsync = 0, os.fsync

    def counted(descriptor: int) -> None:
        nonlocal steps
        steps += 1
        if steps == die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = counted  # type: ignore[assignment]
    places = [open_target(str(directory / target)) for target in targets]
    async with opened(directory, stores=stores, run="none") as service:
        for store in service.stores.values():
            assert (await Backups(store, places, copies=len(places), segment_events=100).run()).ok
    print("archived", flush=True)


async def restore(directory: Path, stores: Mapping[str, str], argument: tuple[str, str, str], die_after: int) -> None:
    """Restore one shard into a new store from its archive, beside the others; killed when it is about to take so many
    of its steps (0: never)."""
    shard, to, target = argument
    steps = 0

    def counted(method: Any) -> Any:
        async def step(*arguments: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == die_after:
                os.kill(os.getpid(), signal.SIGKILL)
            return await method(*arguments)

        return step

    for kind, name in ((Steps, "fence"), (SqliteRestore, "load"), (SqliteRestore, "complete"), (Steps, "open_slots")):
        setattr(kind, name, counted(getattr(kind, name)))
    archives = await archives_of([open_target(str(directory / target))], "counts", {shard: None})
    others = {name: url for name, url in stores.items() if name != shard}
    await restore_shard(shard, archives[shard], None, to, others, Until())
    print("restored", flush=True)


if __name__ == "__main__":
    what, where, stores, argument, *rest = sys.argv[1:]
    place = Path(where), json.loads(stores), json.loads(argument)
    if what == "write":
        asyncio.run(write(*place))
    else:
        asyncio.run({"move": move, "backup": backup, "restore": restore}[what](*place, int(rest[0])))
