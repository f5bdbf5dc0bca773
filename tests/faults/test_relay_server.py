"""The relay while its server crashes, forgets, stands still, is full, or is not there."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from evsync.errors import EventTooLarge, StreamHole
from evsync.jetstream import streams
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.settings import NatsSettings
from evsync.jetstream.rebuild import rebuild_stream
from evsync.jetstream.relay import RelayState
from evsync.jetstream.server import EmbeddedServer
from evsync.jetstream.verification import check_stream
from evsync.stores.memory import MemoryStore
from tests.relaying import (
    assert_mirrored,
    caught_up,
    connected,
    eventually,
    halted,
    mirrored_again,
    new_log,
    relaying,
    save,
)

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def saving(log: MemoryStore, *, every_s: float = 0.001) -> AsyncIterator[None]:
    """Commits of three events, one after the other, for as long as the block runs."""

    async def keep_saving() -> None:
        while True:
            await save(log, 3)
            await asyncio.sleep(every_s)

    task = asyncio.create_task(keep_saving())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def put_back(server: EmbeddedServer, copy: Path) -> None:
    """The server's streams as they were when `copy` was made."""
    shutil.rmtree(server.store_dir / "jetstream")
    shutil.copytree(copy, server.store_dir / "jetstream")


async def test_nothing_is_lost_or_doubled_when_the_server_is_killed(nats_server: EmbeddedServer) -> None:
    """kill -9 in mid-stream, three times, while commits go on: event n ends at sequence n."""
    log = new_log()
    async with connected(nats_server.url) as conn, relaying(log, conn) as relay:
        async with saving(log):
            for _ in range(3):
                await caught_up(relay, relay.confirmed + 100)
                nats_server.kill()
                await eventually(lambda: not conn.connected, "the loss noticed")
                nats_server.restart()
        await mirrored_again(log, conn)


@pytest.mark.parametrize("idle", [True, False], ids=["while idle", "in mid-stream"])
async def test_a_server_that_lost_its_tail_gets_the_events_again(
    nats_server: EmbeddedServer, tmp_path: Path, idle: bool
) -> None:
    """A directory put back to an older copy: acknowledged messages are gone, and each returns at its own place."""
    log = new_log()
    await save(log, 300)
    async with connected(nats_server.url) as conn, relaying(log, conn) as relay:
        await caught_up(relay, 300)
        nats_server.stop()
        shutil.copytree(nats_server.store_dir / "jetstream", tmp_path / "copy")
        nats_server.restart()
        await save(log, 500)
        await caught_up(relay, 800)
        async with saving(log, every_s=3600 if idle else 0.001):
            nats_server.kill()
            put_back(nats_server, tmp_path / "copy")
            nats_server.restart()
            await eventually(lambda: conn.epoch == 3, "connected again")
            await eventually(lambda: relay.state is RelayState.PUMP or idle, "the relay at work again")
        await mirrored_again(log, conn)


async def test_a_server_that_lost_everything_is_filled_again(nats_server: EmbeddedServer) -> None:
    """An empty directory: the stream is created anew and holds the whole log."""
    log = new_log()
    await save(log, 300)
    async with connected(nats_server.url) as conn, relaying(log, conn) as relay:
        await caught_up(relay, 300)
        nats_server.kill()
        shutil.rmtree(nats_server.store_dir / "jetstream")
        nats_server.restart()
        await eventually(lambda: conn.epoch == 2, "connected again")
        await mirrored_again(log, conn)


def zero(block: Path) -> None:
    """Overwrite a stretch in the middle."""
    content = bytearray(block.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    block.write_bytes(content)


def cut(block: Path) -> None:
    """Lose the second half."""
    os.truncate(block, block.stat().st_size // 2)


def zero_and_lose_index(block: Path) -> None:
    """The same as `zero`, and the server must find out by itself what is there."""
    zero(block)
    (block.parent / "index.db").unlink()


@pytest.mark.parametrize("damage", [zero, cut, Path.unlink, zero_and_lose_index])
async def test_a_damaged_block_file_is_noticed_and_mended(
    nats_server: EmbeddedServer, damage: Callable[[Path], None]
) -> None:
    """Either the server dropped the rest of the stream, and gets it again; or there is a hole, and the relay says so,
    halts, and goes on by itself after the rebuild."""
    log = new_log()
    async with connected(nats_server.url) as conn, relaying(log, conn) as relay:
        await caught_up(relay, await save(log, 500, size=300))
        nats_server.stop()
        [block] = nats_server.store_dir.glob("jetstream/*/streams/*/msgs/1.blk")
        damage(block)
        nats_server.restart()
        await eventually(lambda: conn.epoch == 2, "connected again")
        await save(log, 1)
        if damage is not zero_and_lose_index:
            error = await halted(relay)
            assert isinstance(error, StreamHole)
            assert "evsync stream rebuild" in str(error)
            assert not (await check_stream(log, conn)).ok
            assert (await rebuild_stream(log, conn)).ok
            await eventually(lambda: relay.halted is None, "the relay at work again")
        await save(log, 10)
        await mirrored_again(log, conn)


async def test_the_scrub_finds_what_the_server_does_not_tell(nats_server: EmbeddedServer) -> None:
    """A message that can no longer be read, far below the tail that each SYNC reads; INFO counts it all the same."""
    log = new_log()
    await save(log, 6000)
    async with connected(nats_server.url) as conn:
        async with relaying(log, conn) as relay:
            await caught_up(relay, 6000)
        nats_server.stop()
        [block] = nats_server.store_dir.glob("jetstream/*/streams/*/msgs/1.blk")
        damaged = bytearray(block.read_bytes())
        damaged[damaged.index(b"0000699") + 1] ^= 0xFF
        block.write_bytes(damaged)
        nats_server.restart()
        await conn.ready(10)
        async with relaying(log, conn, scrub_interval_s=0.2, scrub_pause_s=0.0) as relay:
            await save(log, 1)
            await caught_up(relay, 6001)
            error = await halted(relay)
            assert isinstance(error, StreamHole)
            assert error.values["position"] == 700


async def test_a_server_that_stands_still_is_waited_for(nats_server: EmbeddedServer) -> None:
    """SIGSTOP looks like silence: after SIGCONT everything is there once."""
    log = new_log()
    async with connected(nats_server.url) as conn, relaying(log, conn) as relay, saving(log):
        await eventually(lambda: relay.confirmed > 50, "the relay at work")
        os.kill(nats_server.pid, signal.SIGSTOP)
        try:
            await eventually(lambda: relay.state is RelayState.SYNC and relay.status().reason, "the silence noticed")
        finally:
            os.kill(nats_server.pid, signal.SIGCONT)
        await caught_up(relay, await log.head() + 100)
        assert relay.status().reason == ""
    async with connected(nats_server.url) as conn, relaying(log, conn) as relay:
        await caught_up(relay, await log.head())
        await assert_mirrored(log, conn)


async def test_the_relay_waits_for_a_server_that_comes_later(tmp_path: Path) -> None:
    """Saves go on meanwhile; the status says what is missing."""
    with EmbeddedServer.start(tmp_path) as server:
        server.stop()
        log = new_log()
        async with await Connection.open(NatsSettings(server.url), "users") as conn, relaying(log, conn) as relay:
            await save(log, 100)
            await eventually(lambda: "Connect call failed" in relay.status().reason, "the reason in the status")
            await eventually(lambda: relay.status().lag == 100, "the lag in the status")
            server.restart()
            await caught_up(relay, 100)
            assert relay.status().reason == ""
            await assert_mirrored(log, conn)


async def test_a_full_stream_is_waited_for(nats_server: EmbeddedServer) -> None:
    """Nothing is dropped: the events wait in the log until there is room."""
    log = new_log()
    async with connected(nats_server.url) as conn, relaying(log, conn) as relay:
        await save(log, 10)
        await caught_up(relay, 10)
        config = dict((await streams.ensure(conn, log.identity)).config)
        await conn.api(f"STREAM.UPDATE.{config['name']}", config | {"max_msgs": 50})
        await save(log, 90)
        await eventually(lambda: "is full" in relay.status().reason, "the reason in the status")
        await eventually(lambda: relay.confirmed == 50 and relay.status().lag == 50, "the part that had room")
        assert relay.halted is None
        await conn.api(f"STREAM.UPDATE.{config['name']}", config)
        await caught_up(relay, 100)
        await assert_mirrored(log, conn)


async def test_an_event_too_large_for_the_server_halts_until_the_limit_is_raised(tmp_path: Path) -> None:
    """Everything before it is published; what comes after waits, in order."""
    with EmbeddedServer.start(tmp_path, max_payload=4096) as server:
        port = int(server.url.rpartition(":")[2])
        log = new_log()
        await save(log, 20)
        await save(log, 1, size=5000)
        await save(log, 20)
        async with connected(server.url) as conn, relaying(log, conn) as relay:
            error = await halted(relay)
            assert isinstance(error, EventTooLarge)
            assert (error.position, error.event_type, error.limit_bytes) == (21, "users.User.Renamed", 4096)
            assert relay.confirmed == 20
            server.stop()
            with EmbeddedServer.start(tmp_path, port=port, max_payload=65536):
                await caught_up(relay, 41)
                await assert_mirrored(log, conn)
