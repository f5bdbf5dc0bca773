"""What happens to connections, servers and consumers is waited out: the events read stay those of the log."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evsync.jetstream import streams
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.settings import NatsSettings
from evsync.jetstream.server import EmbeddedServer
from evsync.jetstream.stream_settings import stream_name
from evsync.records import StoredEvent
from evsync.stores.memory import MemoryStore
from tests.reading import PATIENT, QUICK, FaultyConnection, batched, consumers, everything, read_on, reading
from tests.relaying import caught_up, connected, eventually, new_log, relaying, save

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def growing(log: MemoryStore, commits: int) -> AsyncIterator[asyncio.Task[None]]:
    """Commits of one to five events, beside what the test does."""

    async def grow() -> None:
        for i in range(commits):
            await save(log, 1 + i % 5)
            await asyncio.sleep(0.002)

    task = asyncio.create_task(grow())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_server_that_is_killed_while_it_is_read(nats_server: EmbeddedServer) -> None:
    """kill -9 and restart, three times, under a writing relay: nothing lost, doubled or reordered."""
    log = new_log()
    async with (
        connected(nats_server.url) as conn,
        connected(nats_server.url, "orders") as other,
        relaying(log, conn) as relay,
        reading(other, log.identity, batched(30, PATIENT)) as reader,
        growing(log, 400) as task,
    ):
        events: list[StoredEvent] = []
        for _ in range(3):
            events += await read_on(reader, len(events), len(events) + 150, limit=10)
            nats_server.kill()
            events += await reader.read(len(events), 10, 0.1)
            nats_server.restart()
        await task
        await caught_up(relay, 1200)
        events = events + await read_on(reader, len(events), 1200)
        assert events == await everything(log)


async def test_a_server_that_is_away_is_waited_for(tmp_path: Path) -> None:
    """A read returns nothing and says why; the next one goes on as soon as the server is there."""
    log = new_log()
    await save(log, 10)
    with EmbeddedServer.start(tmp_path) as server:
        async with connected(server.url) as conn, relaying(log, conn) as relay:
            await caught_up(relay, 10)
        server.stop()
        async with (
            await Connection.open(NatsSettings(server.url), "orders") as conn,
            reading(conn, log.identity) as reader,
        ):
            assert await reader.read(0, 10, 0.1) == []
            assert server.url in reader.waiting_for
            assert await reader.head() is None
            server.restart()
            assert await read_on(reader, 0, 10) == await everything(log)
            assert reader.waiting_for == ""
            server.stop()
            assert await reader.read(10, 10, 0.2) == []
            assert server.url in reader.waiting_for


async def test_a_server_that_is_paused(nats_server: EmbeddedServer) -> None:
    """SIGSTOP: the connection stands, only heartbeats are missing. After SIGCONT reading goes on."""
    log = new_log()
    await save(log, 5)
    async with connected(nats_server.url) as conn, relaying(log, conn), reading(conn, log.identity) as reader:
        first = await read_on(reader, 0, 5)
        os.kill(nats_server.pid, signal.SIGSTOP)
        try:
            asyncio.get_running_loop().call_later(1.0, os.kill, nats_server.pid, signal.SIGCONT)
            await save(log, 5)
            assert first + await read_on(reader, 5, 10) == await everything(log)
        finally:
            os.kill(nats_server.pid, signal.SIGCONT)


async def test_a_consumer_that_is_deleted_behind_its_back(nats_server: EmbeddedServer) -> None:
    """By an operator, again and again, while it is read and while it waits."""
    log = new_log()
    async with (
        connected(nats_server.url) as conn,
        relaying(log, conn) as relay,
        reading(conn, log.identity, batched(20, PATIENT)) as reader,
        growing(log, 300) as task,
    ):
        events: list[StoredEvent] = []
        for _ in range(10):
            events += await read_on(reader, len(events), len(events) + 60, limit=7)
            for name in await consumers(conn, log.identity):
                await conn.api(f"CONSUMER.DELETE.{stream_name(log.identity)}.{name}")
        await task
        await caught_up(relay, 900)
        assert events + await read_on(reader, len(events), 900) == await everything(log)
        for name in await consumers(conn, log.identity):
            await conn.api(f"CONSUMER.DELETE.{stream_name(log.identity)}.{name}")
        waiting = asyncio.create_task(reader.read(900, 10, 20))
        await save(log, 3)
        assert [e.position for e in await waiting] == [901, 902, 903]


async def test_a_consumer_that_the_server_gave_up_for_idleness(nats_server: EmbeddedServer) -> None:
    """A reader may pause for longer than the server keeps a consumer that nobody pulls from."""
    log = new_log()
    for _ in range(100):
        await save(log, 1)
    policy = batched(10, inactive_s=0.2)
    async with connected(nats_server.url) as conn, relaying(log, conn), reading(conn, log.identity, policy) as reader:
        events = await read_on(reader, 0, 1, limit=1)

        async def gone() -> bool:
            return await consumers(conn, log.identity) == []

        await eventually(gone, "given up by the server")
        assert events + await read_on(reader, len(events), 100) == await everything(log)


async def test_a_stream_that_is_deleted_and_filled_again(nats_server: EmbeddedServer) -> None:
    """A new stream of the same incarnation: the reader waits where it is until the relay has passed it."""
    log = new_log()
    for _ in range(150):
        await save(log, 2)
    async with connected(nats_server.url) as conn, reading(conn, log.identity, batched(25)) as reader:
        async with relaying(log, conn):
            events = await read_on(reader, 0, 200, limit=20)
        await streams.delete(conn, stream_name(log.identity))
        while more := await reader.read(len(events), 100, 0.3):
            events += more  # what had been read ahead is still good
        assert "does not exist" in reader.waiting_for
        await save(log, 2)
        async with relaying(log, conn):
            events += await read_on(reader, len(events), 302)
    assert events == await everything(log)


async def test_a_stream_that_was_put_back_is_waited_for(tmp_path: Path) -> None:
    """A server on an older copy of its directory ends before the reader's place, until the relay has mended it."""
    log = new_log()
    server_dir, copy = tmp_path / "nats", tmp_path / "copy"
    with EmbeddedServer.start(server_dir) as server:
        async with connected(server.url) as conn, reading(conn, log.identity) as reader:
            async with relaying(log, conn) as relay:
                await save(log, 40)
                await caught_up(relay, 40)
                server.stop()
                shutil.copytree(server_dir, copy)
                server.restart()
                await save(log, 60)
                events = await read_on(reader, 0, 100)
            server.kill()
            shutil.rmtree(server_dir)
            shutil.copytree(copy, server_dir)
            server.restart()

            async def said() -> bool:
                assert await reader.read(100, 10, 0.3) == []
                return "ends at 40" in reader.waiting_for

            await eventually(said, "a word about it")
            assert await reader.head() == 40
            async with relaying(log, conn):
                await save(log, 5)
                events += await read_on(reader, 100, 105)
            assert reader.waiting_for == ""
            assert events == await everything(log)


async def test_a_server_that_begins_earlier_than_asked(nats_server: EmbeddedServer) -> None:
    """Some versions move a start beyond the stream's end back to it: what was read before is skipped."""

    class Earlier(FaultyConnection):
        async def api(
            self, name: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = 5
        ) -> dict[str, Any]:
            if name.startswith("CONSUMER.CREATE") and body is not None:
                body = {
                    **body,
                    "config": {**body["config"], "opt_start_seq": max(body["config"]["opt_start_seq"] - 7, 1)},
                }
            return await super().api(name, body, timeout_s=timeout_s)

    log = new_log()
    for _ in range(30):
        await save(log, 1)
    async with connected(nats_server.url) as conn, relaying(log, conn) as relay, Earlier.to(nats_server.url) as earlier:
        await caught_up(relay, 30)
        async with reading(earlier, log.identity) as reader:
            assert await reader.read(20, 100, 5) == (await everything(log))[20:]
            assert await reader.read(10, 5, 5) == (await everything(log))[10:15]


async def test_a_server_that_names_its_domain(tmp_path: Path) -> None:
    """Its reply subjects have more tokens; the numbers in them mean the same."""
    log = new_log()
    for _ in range(100):
        await save(log, 2)
    domain = "jetstream { domain: hub }\nfeature_flags { js_ack_fc_v2: true }"
    with EmbeddedServer.start(tmp_path, extra_config=domain) as server:
        async with connected(server.url) as conn, relaying(log, conn), reading(conn, log.identity) as reader:
            assert await read_on(reader, 0, 200) == await everything(log)


async def test_a_message_that_is_lost_on_the_way(nats_server: EmbeddedServer) -> None:
    """The consumer's own count shows it: it is made anew at the right place."""
    log = new_log()
    for _ in range(300):
        await save(log, 1)
    async with (
        connected(nats_server.url) as conn,
        relaying(log, conn) as relay,
        FaultyConnection.to(nats_server.url) as faulty,
    ):
        await caught_up(relay, 300)
        arrived = 0

        def every_37th(_: str, reply: bytes) -> bool:
            nonlocal arrived
            arrived += bool(reply)
            return bool(reply) and arrived % 37 == 0

        faulty.loses = every_37th
        async with reading(faulty, log.identity, batched(20)) as reader:
            assert await read_on(reader, 0, 300, limit=15) == await everything(log)


async def test_the_last_message_is_lost_on_the_way(nats_server: EmbeddedServer) -> None:
    """Nothing comes after it that could show it; a reader to whom nothing comes looks at the stream now and then."""
    log = new_log()
    await save(log, 1)
    async with (
        connected(nats_server.url) as conn,
        relaying(log, conn),
        FaultyConnection.to(nats_server.url) as faulty,
        reading(faulty, log.identity) as reader,
    ):
        events = await read_on(reader, 0, 1)
        lost = 0

        def once(_: str, reply: bytes) -> bool:
            nonlocal lost
            lost += bool(reply)
            return lost == 1 and bool(reply)

        faulty.loses = once
        await save(log, 1)
        assert events + await read_on(reader, 1, 2) == await everything(log)
        assert lost > 1


async def test_a_consumer_that_falls_silent(nats_server: EmbeddedServer) -> None:
    """No messages and no heartbeats, on a connection that stands: noticed, and the consumer made anew."""
    log = new_log()
    await save(log, 1)
    async with (
        connected(nats_server.url) as conn,
        relaying(log, conn),
        FaultyConnection.to(nats_server.url) as faulty,
        reading(faulty, log.identity, replace(QUICK, idle_check_s=3600)) as reader,
    ):
        events = await read_on(reader, 0, 1)
        [deaf] = await consumers(conn, log.identity)
        silent = faulty.inboxes[1:]
        faulty.loses = lambda inbox, _: inbox in silent
        await save(log, 1)
        assert events + await read_on(reader, 1, 2) == await everything(log)
        assert deaf not in await consumers(conn, log.identity)
