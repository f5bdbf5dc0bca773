"""Relays as real processes that are killed, paused and doubled."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from evsync.jetstream import streams
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.server import EmbeddedServer
from evsync.jetstream.stream_settings import stream_name
from evsync.stores.sqlite.store import SqliteStore
from tests.relaying import connected, eventually, mirrored_again, save

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def relay_process(log: SqliteStore, server: EmbeddedServer) -> AsyncIterator[Process]:
    """A relay of its own process, killed at the end if it still lives."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.relay_process", str(log.path), server.url, cwd=ROOT, stdout=PIPE
    )
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 30) == b"ready\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()  # also ends a stopped one
        await process.wait()


async def last_of(conn: Connection, log: SqliteStore) -> int:
    """The stream's last sequence: 0 if there is no stream yet."""
    state = await streams.info(conn, stream_name(log.identity))
    return state.last if state is not None else 0


@asynccontextmanager
async def saving(log: SqliteStore) -> AsyncIterator[None]:
    """Commits of up to 30 events, one after the other, for as long as the block runs; the last one is stored then."""
    ended = asyncio.Event()

    async def keep_saving() -> None:
        while not ended.is_set():
            await save(log, random.randint(1, 30), stream=f"user-{random.randrange(50)}")

    task = asyncio.create_task(keep_saving())
    try:
        yield
    finally:
        ended.set()
        await task


async def grows(conn: Connection, log: SqliteStore, by: int) -> None:
    """Wait until the stream is longer by so many messages."""
    seen = await last_of(conn, log)

    async def longer() -> bool:
        return await last_of(conn, log) >= seen + by

    await eventually(longer, f"the stream {by} messages beyond {seen}")


async def test_a_relay_killed_in_mid_stream_loses_and_doubles_nothing(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """kill -9, at any point, again and again: the next one goes on where the stream ends."""
    log = await SqliteStore.open(tmp_path / "users.db", service="users")
    async with connected(nats_server.url) as conn, saving(log):
        for _ in range(2):
            async with relay_process(log, nats_server) as process:
                await grows(conn, log, random.randint(1, 500))
                process.kill()
                assert await process.wait() == -signal.SIGKILL
    async with connected(nats_server.url) as conn, relay_process(log, nats_server):
        await mirrored_again(log, conn)
    await log.close()


async def test_a_relay_that_was_paused_and_resumes_publishes_nothing_twice(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """SIGSTOP in mid-stream; another relay takes over; SIGCONT: what the first had under way is refused."""
    log = await SqliteStore.open(tmp_path / "users.db", service="users")
    async with AsyncExitStack() as stack:
        conn = await stack.enter_async_context(connected(nats_server.url))
        relays = [await stack.enter_async_context(relay_process(log, nats_server)) for _ in range(2)]
        async with saving(log):
            for relay in (*relays, *relays):
                await grows(conn, log, 100)
                os.kill(relay.pid, signal.SIGSTOP)
                await grows(conn, log, 200)  # by the other one
                os.kill(relay.pid, signal.SIGCONT)
            await grows(conn, log, 200)
        await mirrored_again(log, conn)
        assert [r.returncode for r in relays] == [None, None]
    await log.close()


async def test_two_relays_and_a_server_that_is_killed(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """Whoever wins after the restart, event n is at sequence n."""
    log = await SqliteStore.open(tmp_path / "users.db", service="users")
    async with AsyncExitStack() as stack:
        conn = await stack.enter_async_context(connected(nats_server.url))
        for _ in range(2):
            await stack.enter_async_context(relay_process(log, nats_server))
        async with saving(log):
            await grows(conn, log, 200)
            nats_server.kill()
            await eventually(lambda: not conn.connected, "the loss noticed")
            nats_server.restart()
            await conn.ready(10)
            await grows(conn, log, 200)
        await mirrored_again(log, conn)
    await log.close()
