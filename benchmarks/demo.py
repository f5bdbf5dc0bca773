"""The example at full size: where its time goes."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.cdnow import CUSTOMERS, PURCHASES, write_full_size
from benchmarks.processes import Usage, usage_below
from benchmarks.rounds import Advance, Goal, Row, check
from benchmarks.workload import sqlite_url
from evsync.errors import StoreError
from evsync.opening import open_store
from evsync.ports import Store
from examples.users_orders.demo import SAMPLE

TITLE = "The example, users and orders, at full size"
NOTES = f"""\
`python -m examples.users_orders demo` with {PURCHASES:,} purchases of {CUSTOMERS:,} customers: a file in the layout of
the full CDNOW set, made from the sample that ships. Four processes share the processors: the loader (an HTTP client),
users and orders (FastAPI, store, relay; orders has the projection too) and nats-server. The phases are seen from
outside, by the heads of the stores: relaying and projecting go on during the first two, and the third is what was left
to project. The processor time of each process is for the whole run, with its start.

What limits it: the orders process, one core of Python. Of its time a third is saving, a fifth making the aggregates
(eventsourcing's own code), a fifth HTTP, JSON, its validation and the tasks of each request, a tenth the projection,
less than a tenth the relay; the rest is the event loop.
"""

LOOK_S = 0.1
PATIENCE_S = 600.0
PARTS = {
    "loader": " demo ",
    "users": " users --fd",
    "orders": " orders --fd",
    "nats-server": "nats-server",
}
"""What tells each process by its command line."""


@dataclass(slots=True)
class Run:
    """What was seen of one run."""

    ended: dict[str, float] = field(default_factory=dict)
    """When each phase was over, in seconds."""
    usage: dict[int, Usage] = field(default_factory=dict)
    seconds: float = 0.0
    """By the demo's own clock: from the first command until the read model is current."""
    events: int = 0


def measure(rounds: int, advance: Advance) -> list[Row]:
    """The table. Measured twice at most: it takes its time."""
    runs = []
    for _ in range(min(rounds, 2)):
        advance("the whole example")
        with TemporaryDirectory(prefix="evsync-bench-") as directory:
            runs.append(asyncio.run(_run(Path(directory))))

    def row(name: str, number_of: Callable[[Run], float], unit: str = "s", goal: Goal | None = None) -> Row:
        return Row(name=name, unit=unit, values=[number_of(run) for run in runs], goal=goal)

    rows = [
        row("the whole load", lambda r: r.seconds, goal=Goal(of="value", most=30)),
        row("the same, events", lambda r: r.events / r.seconds, "events/s"),
        row("phase 1, registering customers", lambda r: r.ended["users"] - r.ended["started"]),
        row("phase 2, placing orders", lambda r: r.ended["orders"] - r.ended["users"]),
        row("phase 3, projecting the rest", lambda r: r.seconds - (r.ended["orders"] - r.ended["started"])),
    ]
    if runs[0].usage:
        rows += [row(f"processor time of {part}", partial(_cpu_s, sign)) for part, sign in PARTS.items()]
    return rows


def _cpu_s(sign: str, run: Run) -> float:
    return sum(usage.cpu_s for usage in run.usage.values() if sign in usage.command)


async def _run(directory: Path) -> Run:
    data, run = directory / "purchases.txt", Run()
    write_full_size(SAMPLE, data)
    arguments = ["demo", "--data", str(data), "--dir", str(directory / "run"), "--json"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "examples.users_orders", *arguments), stdout=PIPE, stderr=PIPE
    )
    watching = asyncio.create_task(_watch(directory / "run", process.pid, run))
    try:
        output, errors = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    finally:
        watching.cancel()
        await asyncio.wait([watching])
        if process.returncode is None:
            process.terminate()
            await process.wait()
    if process.returncode != 0:
        raise RuntimeError(f"the demo failed with {process.returncode}:\n{errors.decode()[-3000:]}")
    result = json.loads(output.splitlines()[-1])
    check("what the example loaded", (result["users"], result["orders"]), (CUSTOMERS, PURCHASES))
    run.seconds, run.events = result["seconds"], result["events"]
    return run


async def _watch(directory: Path, pid: int, run: Run) -> None:
    """Note when each phase is over, and what the processes have used, until cancelled."""
    async with AsyncExitStack() as stack:
        stores: dict[str, Store] = {}
        while True:
            run.usage |= usage_below(pid)
            for service, all_events in (("users", CUSTOMERS), ("orders", PURCHASES)):
                if service not in stores:
                    with suppress(StoreError):  # it is not there yet
                        store = await open_store(sqlite_url(directory / f"{service}.db"), service=service, create=False)
                        stack.push_async_callback(store.close)
                        stores[service] = store
                    continue
                head = await stores[service].head()
                if head > 0:
                    run.ended.setdefault("started", time.monotonic())
                if head == all_events:
                    run.ended.setdefault(service, time.monotonic())
            await asyncio.sleep(LOOK_S)
