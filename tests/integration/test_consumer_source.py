"""Finding the logs of a service on NATS."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from evsync.jetstream import streams
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.settings import NatsSettings
from evsync.jetstream.server import EmbeddedServer
from evsync.jetstream.source import JetStreamSource
from evsync.records import LogIdentity
from tests.reading import QUICK, everything
from tests.relaying import caught_up, connected, eventually, new_log, relaying, save

pytestmark = pytest.mark.anyio


async def test_a_service_that_comes_later_is_waited_for(nats_server: EmbeddedServer) -> None:
    """The source says what it waits for, and gives a reader as soon as the relay has made the stream."""
    log = new_log()
    await save(log, 3)
    async with connected(nats_server.url) as conn, connected(nats_server.url, "orders") as consumer:
        source = JetStreamSource(consumer, "users", QUICK)
        finding = asyncio.create_task(source.readers())
        await eventually(lambda: "no stream of service 'users'" in source.waiting_for, "a word about it")
        assert not finding.done()
        async with relaying(log, conn) as relay:
            async with asyncio.timeout(10):
                [reader] = await finding
            assert source.waiting_for == ""
            assert (reader.log, reader.incarnation) == ("users.main", log.identity.incarnation)
            await caught_up(relay, 3)
            assert await reader.read(0, 10, 5) == await everything(log)
        await reader.close()


async def test_each_shard_has_a_reader_and_no_other_service_has(nats_server: EmbeddedServer) -> None:
    """Streams of other services, of other programs, and of services with a longer name are left alone."""
    shards = [LogIdentity("users", name, f"{name}123") for name in ("main", "east", "west")]
    others = [LogIdentity("orders", "main", "abc"), LogIdentity("users-old", "main", "abc")]
    async with connected(nats_server.url) as conn:
        for identity in shards + others:
            await streams.ensure(conn, identity)
        await conn.api("STREAM.CREATE.mine", {"name": "mine", "subjects": ["mine.>"]})
        readers = await JetStreamSource(conn, "users").readers()
        assert sorted((r.log, r.incarnation) for r in readers) == sorted((i.name, i.incarnation) for i in shards)


async def test_a_broker_that_is_away_is_waited_for(tmp_path: Path) -> None:
    """Nothing is raised; the source names the address and the problem."""
    with EmbeddedServer.start(tmp_path) as server:
        async with connected(server.url) as conn:
            await streams.ensure(conn, LogIdentity("users", "main", "abc"))
        server.stop()
        async with await Connection.open(NatsSettings(server.url), "orders") as conn:
            source = JetStreamSource(conn, "users")
            finding = asyncio.create_task(source.readers())
            await eventually(lambda: server.url in source.waiting_for, "a word about it")
            server.restart()
            async with asyncio.timeout(15):
                [reader] = await finding
            assert reader.log == "users.main"
            assert source.waiting_for == ""
