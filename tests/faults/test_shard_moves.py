"""Slots move under load from several processes, and movers die between every two steps."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from evsync.operations.verification import verify
from evsync.sharding import HashRing, RangeRouter, Router
from evsync.sharding.truth import truth
from tests.docs.pages import ROOT
from tests.integration.test_shards import Counted, check_order, home, opened, urls

pytestmark = pytest.mark.anyio
PATIENCE_S = 60.0
SHARDS = ("a", "b", "c", "d")


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """One of tests.shard_processes; gone at the end, whatever happens."""
    started = subprocess.Popen(
        [sys.executable, "-m", "tests.shard_processes", *arguments],
        cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ,
    )  # fmt: skip
    try:
        yield started
    finally:
        started.kill()
        started.wait()
        for pipe in (started.stdin, started.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def writing(directory: Path, stores: Mapping[str, str], *ids: list[str]) -> Iterator[list[subprocess.Popen[str]]]:
    """A process that writes to these streams, for each list of them; all are at it."""
    with ExitStack() as running:
        writers = [
            running.enter_context(process("write", str(directory), json.dumps(stores), json.dumps(mine)))
            for mine in ids
        ]
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "writing\n"
        yield writers


def finished(writers: list[subprocess.Popen[str]]) -> Counter[str]:
    """End the writers; how often each stream was written to."""
    done: Counter[str] = Counter()
    for writer in writers:
        out, _ = writer.communicate(timeout=PATIENCE_S)
        assert writer.returncode == 0
        done.update(json.loads(out.splitlines()[-1]))
    return done


def move(directory: Path, stores: Mapping[str, str], target: Router, die_after: int) -> int:
    """Run a mover to its end, of whichever kind."""
    arguments = json.dumps(stores), json.dumps(target.placement), str(die_after)
    with process("move", str(directory), *arguments) as mover:
        return mover.wait(PATIENCE_S)


def written(directory: Path, writer: subprocess.Popen[str]) -> int:
    """How often a writer has written by now."""
    file = directory / f"{writer.pid}.done"
    return int(file.read_text() or 0) if file.exists() else 0


def goes_on(directory: Path, writer: subprocess.Popen[str]) -> None:
    """Wait until a writer has got further."""
    before, deadline = written(directory, writer), time.monotonic() + PATIENCE_S
    while written(directory, writer) <= before:
        assert writer.poll() is None, "the writer has failed"
        assert time.monotonic() < deadline, "the writer is stuck"
        time.sleep(0.01)


def pause(directory: Path, writer: subprocess.Popen[str]) -> None:
    """Stop a writer where it holds no lock: SQLite lets nobody past a process that sleeps in a transaction."""
    while True:
        writer.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, writer.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        try:
            for shard in SHARDS:
                with closing(sqlite3.connect(directory / f"{shard}.db", timeout=1.0, isolation_level=None)) as c:
                    c.execute("BEGIN IMMEDIATE")
                    c.execute("ROLLBACK")
        except sqlite3.OperationalError:
            writer.send_signal(signal.SIGCONT)
        else:
            return


async def test_movers_are_killed_between_all_steps_and_writers_notice_nothing(tmp_path: Path) -> None:
    """Two shards become four and then three; a writer sleeps through each. Nothing is lost, doubled or out of order."""
    ids = [f"stream-{n}" for n in range(18)]
    two = HashRing(["a", "b"])
    four = two.adding("c").adding("d")
    three = four.without("b")
    stores = urls(tmp_path, *SHARDS)
    async with opened(tmp_path, *SHARDS, router=two, run="none") as service:
        for id in ids:
            await service.save(Counted(id=id))
    with writing(tmp_path, stores, *(ids[n::3] for n in range(3))) as writers:
        killed = 0
        for target in (four, three):
            pause(tmp_path, writers[0])
            for die_after in range(1, 4):  # copied, closed, opened
                killed += move(tmp_path, stores, target, die_after) == -signal.SIGKILL
            assert move(tmp_path, stores, target, 0) == 0
            writers[0].send_signal(signal.SIGCONT)
            for writer in writers:
                goes_on(tmp_path, writer)
        assert killed == 6
        done = finished(writers)
    async with opened(tmp_path, *SHARDS, router=three) as service:
        now = await truth(home(service).stores)
        assert tuple(now[slot].shard for slot in range(256)) == three.placement
        assert all(held.is_open for held in now.values())
        await check_order(service, done)


async def test_slots_go_from_postgresql_to_sqlite_and_back_while_movers_die(tmp_path: Path, postgres_url: str) -> None:
    """One writer sleeps through the first move. Nothing is lost, doubled or out of order, and `verify` agrees."""
    ids = [f"stream-{n}" for n in range(8)]
    stores = {"p": f"{postgres_url}&schema=moved_and_back", "s": f"sqlite:///{tmp_path}/s.db"}
    in_p, in_s = RangeRouter({"p": range(256)}), RangeRouter({"s": range(256)})
    async with opened(tmp_path, stores=stores, router=in_p) as service:
        for id in ids:
            await service.save(Counted(id=id))
    with writing(tmp_path, stores, ids[::2], ids[1::2]) as writers:
        killed = 0
        for target in (in_s, in_p):
            if target is in_s:
                writers[0].send_signal(signal.SIGSTOP)  # it holds no lock of SQLite's yet
            for die_after in range(1, 4):  # copied, closed, opened
                killed += move(tmp_path, stores, target, die_after) == -signal.SIGKILL
            assert move(tmp_path, stores, target, 0) == 0
            writers[0].send_signal(signal.SIGCONT)
            for writer in writers:
                goes_on(tmp_path, writer)
        assert killed == 6
        done = finished(writers)
    async with opened(tmp_path, stores=stores, router=in_p) as service:
        now = await truth(home(service).stores)
        assert {(held.shard, held.is_open, held.state.epoch) for held in now.values()} == {("p", True, 3)}
        await check_order(service, done)
        (report,) = [await verify(service.runtime, projection) for projection in service.projections]
        assert report.ok
