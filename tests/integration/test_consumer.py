"""Reading a log from its stream while everything works."""

from __future__ import annotations

import asyncio
import random

import pytest

from evsync.jetstream.client.pulls import PullPolicy
from evsync.jetstream.consumer import ReaderPolicy
from evsync.jetstream.server import EmbeddedServer
from evsync.records import StoredEvent
from tests.reading import PATIENT, batched, consumers, create, everything, publish, read_on, reading
from tests.relaying import caught_up, connected, eventually, new_log, relaying, save
from tests.unit.test_messages import HOSTILE

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("either_way")]


async def test_what_the_relay_publishes_is_read(nats_server: EmbeddedServer) -> None:
    """Every event, in order, once, equal in every field to what the log holds; and the reader says whose log it is."""
    log = new_log()
    for i in range(100):
        await save(log, 1 + i, stream=f"user {i}.*>")
    async with connected(nats_server.url) as conn, relaying(log, conn), reading(conn, log.identity) as reader:
        assert await read_on(reader, 0, 5050, limit=700) == await everything(log)
        assert (await reader.head(), reader.log, reader.incarnation) == (5050, "users.main", log.identity.incarnation)


async def test_hostile_ids_arrive_as_they_are(nats_server: EmbeddedServer) -> None:
    """A real server takes each of the subjects."""
    log = new_log()
    for stream in HOSTILE:
        await save(log, 2, stream=stream)
    async with connected(nats_server.url) as conn, relaying(log, conn), reading(conn, log.identity) as reader:
        events = await read_on(reader, 0, 2 * len(HOSTILE))
        assert events == await everything(log)
        assert [e.stream for e in events[::2]] == HOSTILE


async def test_a_waiting_read_returns_with_the_commit(nats_server: EmbeddedServer) -> None:
    """No clock is waited for: with an hour between all looks, each commit is read all the same."""
    log = new_log()
    async with (
        connected(nats_server.url) as conn,
        relaying(log, conn) as relay,
        reading(conn, log.identity, PATIENT) as reader,
    ):
        await save(log, 1)
        await caught_up(relay, 1)
        assert await reader.read(0, 100, 10) == await everything(log)
        for n in range(1, 30):
            waiting = asyncio.create_task(reader.read(n, 100, 3600))
            await asyncio.sleep(0)
            await save(log, 1)
            async with asyncio.timeout(10):
                assert [e.position for e in await waiting] == [n + 1]


async def test_reads_give_whole_commits(nats_server: EmbeddedServer) -> None:
    """About `limit` events: never less than a commit, never a part of one, and no commit more than needed."""
    log = new_log()
    sizes = [1, 7, 2, 400, 1, 1, 30, 5]
    for size in sizes:
        await save(log, size)
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    async with connected(nats_server.url) as conn, relaying(log, conn) as relay:
        await caught_up(relay, ends[-1])
        for limit in (1, 2, 8, 10, 100, 1000):
            async with reading(conn, log.identity, batched(16)) as reader:
                after = 0
                while after < ends[-1]:
                    events = await reader.read(after, limit, 5)
                    end = after + len(events)
                    assert [e.position for e in events] == list(range(after + 1, end + 1))
                    reached = [e for e in ends if e >= after + limit]
                    assert end in ends
                    assert end <= (reached[0] if reached else ends[-1])
                    after = end


async def test_a_commit_is_held_back_until_its_end_is_there(nats_server: EmbeddedServer) -> None:
    """The first half of a commit is read ahead, never returned; time runs out instead."""
    log = new_log()
    await save(log, 3)
    await save(log, 4)
    events = await everything(log)
    async with connected(nats_server.url) as conn, reading(conn, log.identity) as reader:
        await create(conn, log.identity)
        await publish(conn, events[:5])
        assert await reader.read(0, 100, 5) == events[:3]
        assert await reader.read(3, 100, 0.1) == []
        await publish(conn, events[5:])
        assert await reader.read(3, 100, 5) == events[3:]


async def test_a_read_may_begin_anywhere(nats_server: EmbeddedServer) -> None:
    """Also at an earlier place than the last, again and again, and beyond the end of the stream."""
    log = new_log()
    for _ in range(300):
        await save(log, 1)
    events = await everything(log)
    places = random.Random(7)
    async with connected(nats_server.url) as conn, relaying(log, conn), reading(conn, log.identity) as reader:
        await read_on(reader, 0, 300)
        for _ in range(20):
            after = places.randrange(300)
            assert await reader.read(after, 10, 5) == events[after : after + 10][: len(events) - after]
        assert await reader.read(305, 10, 0.1) == []
        assert await reader.read(300, 10, 0.1) == []
        assert await reader.read(0, 1, 5) == events[:1]


async def test_nothing_comes_of_an_empty_stream_until_something_does(nats_server: EmbeddedServer) -> None:
    """A timeout of zero is no error, nor is a stream with nothing in it."""
    log = new_log()
    async with connected(nats_server.url) as conn, relaying(log, conn), reading(conn, log.identity) as reader:
        assert await reader.read(0, 10, 0) == []
        assert await reader.read(0, 10, 0.3) == []
        await save(log, 2)
        assert await read_on(reader, 0, 2) == await everything(log)


async def test_a_slow_reader_holds_no_more_than_three_batches(nats_server: EmbeddedServer) -> None:
    """What was not asked for stays on the server; nothing is lost or doubled by the pause."""
    log = new_log()
    for _ in range(2000):
        await save(log, 1)
    async with connected(nats_server.url) as conn, relaying(log, conn) as relay:
        await caught_up(relay, 2000)
        async with reading(conn, log.identity, batched(50)) as reader:
            first = await reader.read(0, 1, 5)
            [name] = await consumers(conn, log.identity)
            info = f"CONSUMER.INFO.evsync_users_main_{log.identity.incarnation}.{name}"

            async def full() -> bool:
                return bool((await conn.api(info))["delivered"]["stream_seq"] >= 75)

            await eventually(full, "read ahead")
            await asyncio.sleep(0.7)  # longer than a pull lasts: it must not be renewed
            assert (await conn.api(info))["delivered"]["stream_seq"] <= 1 + 3 * 50
            assert first + await read_on(reader, 1, 2000) == await everything(log)


async def test_a_slow_reader_holds_no_more_than_three_batches_of_bytes(nats_server: EmbeddedServer) -> None:
    """Few large events fill the memory as well as many small ones."""
    log = new_log()
    for _ in range(100):
        await save(log, 1, size=400_000)
    policy = ReaderPolicy(pulls=PullPolicy(batch_bytes=1, heartbeat_s=0.1, expires_s=0.5))  # max_payload, then: 1 MiB
    async with connected(nats_server.url) as conn, relaying(log, conn) as relay:
        await caught_up(relay, 100)
        async with reading(conn, log.identity, policy) as reader:
            assert len(await reader.read(0, 1, 5)) == 1
            [name] = await consumers(conn, log.identity)
            await asyncio.sleep(0.7)  # longer than a pull lasts
            stream = f"evsync_users_main_{log.identity.incarnation}"
            assert (await conn.api(f"CONSUMER.INFO.{stream}.{name}"))["delivered"]["stream_seq"] <= 1 + 3 * 3


async def test_large_events_are_bounded_by_their_bytes(nats_server: EmbeddedServer) -> None:
    """A pull asks for so many bytes at most; an event that is larger than that comes all the same."""
    log = new_log()
    for size in (10, 300_000, 10, 900_000, 200_000, 10, 10, 500_000, 10):
        await save(log, 1, size=size)
    policy = ReaderPolicy(pulls=PullPolicy(batch_bytes=100_000, heartbeat_s=0.1, expires_s=0.5))
    async with connected(nats_server.url) as conn, relaying(log, conn), reading(conn, log.identity, policy) as reader:
        assert await read_on(reader, 0, 9, limit=2) == await everything(log)


async def test_readers_do_not_disturb_each_other(nats_server: EmbeddedServer) -> None:
    """Several on one connection, at different places, while the log grows."""
    log = new_log()
    await save(log, 5)

    async def grow() -> None:
        for _ in range(200):
            await save(log, 3)
            await asyncio.sleep(0)

    async with connected(nats_server.url) as conn, relaying(log, conn):

        async def follow(limit: int) -> list[StoredEvent]:
            async with reading(conn, log.identity, batched(40)) as reader:
                return await read_on(reader, 0, 605, limit=limit)

        *followed, _ = await asyncio.gather(follow(1), follow(50), follow(5000), grow())
        assert followed == 3 * [await everything(log)]


async def test_a_reader_that_is_closed_leaves_nothing_on_the_server(nats_server: EmbeddedServer) -> None:
    """Neither does one that went to another place. Reading after closing begins anew."""
    log = new_log()
    await save(log, 10)
    async with connected(nats_server.url) as conn, relaying(log, conn), reading(conn, log.identity) as reader:
        await read_on(reader, 0, 10)
        await reader.read(0, 5, 5)

        async def count(wanted: int) -> bool:
            return len(await consumers(conn, log.identity)) == wanted

        await eventually(lambda: count(1), "one consumer")
        await reader.close()
        await eventually(lambda: count(0), "no consumer")
        await reader.close()
        assert await reader.read(0, 10, 5) == await everything(log)


async def test_a_cancelled_read_loses_nothing(nats_server: EmbeddedServer) -> None:
    """A read that is broken off at any moment has taken nothing from the next one."""
    log = new_log()
    moments = random.Random(3)

    async def grow() -> None:
        for _ in range(300):
            await save(log, 2)
            await asyncio.sleep(0.001)

    async with connected(nats_server.url) as conn, relaying(log, conn), reading(conn, log.identity) as reader:
        growing = asyncio.create_task(grow())
        events: list[StoredEvent] = []
        while len(events) < 600:
            task = asyncio.create_task(reader.read(len(events), 10, 5))
            await asyncio.wait([task], timeout=moments.random() * 0.004)
            if task.done() or not task.cancel():
                events += await task
            else:
                await asyncio.wait([task])
                if not task.cancelled():
                    events += task.result()
        await growing
        assert events == await everything(log)


async def test_the_head_is_unknown_without_a_stream(nats_server: EmbeddedServer) -> None:
    """None, not 0: nothing is said about the log."""
    log = new_log()
    async with connected(nats_server.url) as conn, reading(conn, log.identity) as reader:
        assert await reader.head() is None
        assert await reader.read(0, 10, 0.2) == []
        assert "does not exist: the relay of users.main makes it" in reader.waiting_for
        await create(conn, log.identity)
        assert await reader.head() == 0
        assert await reader.read(0, 10, 0.5) == []
        assert reader.waiting_for == ""
    assert await reader.head() is None
