"""Many processes that share one projection in PostgreSQL: they come, go and are killed, and so is the database."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from evsync.jetstream.server import EmbeddedServer
from evsync.records import Append, Commit, LogIdentity, NewEvent, StoredEvent, new_command
from evsync.stores.memory import MemoryStore
from evsync.testing.postgres import PostgresServer
from tests.projection_logs import INCARNATION
from tests.projection_processes import GROUPS, Workers, until
from tests.relaying import connected, eventually, relaying

CHAOS_S = float(os.environ.get("EVSYNC_CHAOS_S", "5"))
"""For how long workers come and go. A minute shows more; a run of all tests has no time for that."""
MOST = 10
BATCH, PACE_MS = 20, 20


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server of this test's own, to be killed."""
    with (
        tempfile.TemporaryDirectory(prefix="evsync-pg-", ignore_cleanup_errors=True) as directory,
        PostgresServer(Path(directory)) as server,
    ):
        yield server


def test_ten_workers_that_join_leave_and_are_killed_under_load_apply_every_event_once(
    postgres_url: str, tmp_path: Path
) -> None:
    """At every moment, and at the end: a fold over the log, counted exactly; and who is left shares evenly.

    Some events are bad: their streams are parked meanwhile, each event of them once and none too many.
    """
    chance, schema = random.Random(), f"schema=workers{random.randrange(10**6)}"
    events = int(CHAOS_S * 1_000 / PACE_MS * BATCH)
    workers = Workers(f"{postgres_url}&{schema}", tmp_path, events, bad=chance.sample(range(1, events), 8))
    alive: list[subprocess.Popen[bytes]] = []
    try:
        alive += [workers.start(batch=BATCH, pace_ms=PACE_MS, lease_ms=600) for _ in range(4)]
        until(lambda: workers.position() > 0)
        end = time.monotonic() + CHAOS_S
        while time.monotonic() < end:
            deed = chance.choice(("join", "leave", "kill", "pause"))
            if deed == "join" or len(alive) < 4:
                if len(alive) < MOST:
                    alive.append(workers.start(batch=BATCH, pace_ms=PACE_MS, lease_ms=600))
            elif deed == "pause":
                one = chance.choice(alive)
                one.send_signal(signal.SIGSTOP)
                time.sleep(chance.choice([0.05, 0.9]))
                one.send_signal(signal.SIGCONT)
            else:
                one = alive.pop(chance.randrange(len(alive)))
                one.send_signal(signal.SIGKILL if deed == "kill" else signal.SIGTERM)
            time.sleep(chance.uniform(0, 0.3))
            workers.assert_is_a_fold_over_the_log()
        final = [workers.start(batch=1_000, lease_ms=600) for _ in range(3)]
        for process in alive:
            process.send_signal(chance.choice([signal.SIGKILL, signal.SIGTERM]))
        until(lambda: workers.position() == workers.events)
        # What those had that were killed stays theirs for a while, and three of them may have had it all.
        ours = {str(process.pid) for process in final}
        until(lambda: sorted((shares := workers.shares()).values()) == [5, 5, 6] and set(shares) == ours)
        assert workers.assert_is_a_fold_over_the_log() == workers.events
        codes = {process.wait() for process in workers.processes if process not in final}
        assert codes <= {0, -signal.SIGKILL, -signal.SIGTERM}  # SIGTERM: before it had begun to work
        assert all(process.poll() is None for process in final)
    finally:
        workers.end()


def test_a_database_restarted_in_the_middle_of_batches_is_waited_for(server: PostgresServer, tmp_path: Path) -> None:
    """Killed or stopped: what was committed counts, what was not is applied again, and no worker gives up."""
    workers = Workers(f"{server.url}&schema=views", tmp_path, 6_000)
    try:
        both = [workers.start(batch=BATCH, pace_ms=5, lease_ms=600) for _ in range(2)]
        until(lambda: sorted(workers.shares().values()) == [8, 8])
        for end in (server.kill, server.stop):
            before = workers.position()
            until(lambda before=before: workers.position() > before + 200)  # type: ignore[misc]
            end()
            server.restart()
            assert workers.assert_is_a_fold_over_the_log() >= before
        assert workers.position() < workers.events, "the log was too short to restart the database in time"
        until(lambda: workers.position() == workers.events)
        assert workers.assert_is_a_fold_over_the_log() == workers.events
        assert all(process.poll() is None for process in both)
        assert sum(workers.shares().values()) == GROUPS
    finally:
        workers.end()


@pytest.mark.anyio
async def test_workers_that_read_from_jetstream_outlive_a_broker_and_a_database_that_are_killed_beside_them(
    server: PostgresServer, tmp_path: Path
) -> None:
    """All at once: workers killed, paused and new ones, events parked, both servers restarted, and new events."""
    chance, events = random.Random(), int(CHAOS_S * 800)
    bad = chance.sample(range(1, events), 8)
    workers = Workers(f"{server.url}&schema=views", tmp_path, events, bad=bad)
    store = MemoryStore(LogIdentity("bank", "main", INCARNATION))
    batches = [workers.log[n : n + 50] for n in range(0, events, 50)]
    alive: list[subprocess.Popen[bytes]] = []
    try:
        with EmbeddedServer.start(tmp_path / "nats") as nats:
            async with connected(nats.url, "bank") as conn, relaying(store, conn):

                def join() -> None:
                    alive.append(workers.start("--nats", nats.url, batch=BATCH, lease_ms=600))

                def restart_database() -> None:
                    server.kill()
                    server.restart()

                for _ in range(4):
                    join()
                await eventually(lambda: sum(workers.shares().values()) == GROUPS, "workers at work", timeout_s=60)
                begun = time.monotonic()
                due = {0.3: restart_database, 0.5: nats.kill, 0.6: nats.restart, 0.8: restart_database}
                for number, batch in enumerate(batches, 1):
                    outcomes = await store.append([as_commit(e) for e in batch])
                    assert outcomes == [e.position for e in batch]
                    deed = chance.choice(("join", "kill", "pause", "nothing"))
                    if deed == "join" and len(alive) < MOST:
                        join()
                    elif deed == "kill" and len(alive) > 3:
                        alive.pop(chance.randrange(len(alive))).kill()
                    elif deed == "pause":
                        one = chance.choice(alive)
                        one.send_signal(signal.SIGSTOP)
                        await asyncio.sleep(chance.choice([0.05, 0.9]))
                        one.send_signal(signal.SIGCONT)
                    for share in [share for share in due if number / len(batches) >= share]:
                        await asyncio.to_thread(due.pop(share))
                    await asyncio.sleep(max(0.0, begun + CHAOS_S * number / len(batches) - time.monotonic()))
                workers.log = await store.read(0, events)
                reached = workers.assert_is_a_fold_over_the_log()
                await eventually(lambda: workers.position() == events, "the end of the log", timeout_s=60)
                assert workers.assert_is_a_fold_over_the_log() == events >= reached
                ended = [workers.said(process) for process in alive if process.poll() is not None]
                assert all("cannot be opened" in said for said in ended)  # had begun while the database was away
    finally:
        workers.end()


def as_commit(e: StoredEvent) -> Commit:
    """A commit that stores such an event again."""
    event = NewEvent(e.type, e.time_us, e.data, e.meta)
    return Commit(new_command(), [Append(e.stream, e.slot, e.version - 1, [event])])
