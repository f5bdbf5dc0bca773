"""The relay and a server that both work as they should."""

from __future__ import annotations

import asyncio

import pytest

from evsync.errors import StreamGone
from evsync.jetstream import streams
from evsync.jetstream.faults import Kind
from evsync.jetstream.flight import Flight
from evsync.jetstream.messages import MessageFormat
from evsync.jetstream.relay import Relay, RelayPolicy, RelayState
from evsync.jetstream.server import EmbeddedServer
from evsync.jetstream.verification import check_stream
from tests.relaying import assert_mirrored, caught_up, connected, eventually, halted, new_log, relaying, save

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("either_way")]


async def test_what_is_in_the_log_before_the_relay_starts_is_published(nats_server: EmbeddedServer) -> None:
    """Event n of the log stands at sequence n of the stream, whole."""
    log = new_log()
    for i in range(30):
        await save(log, 100, stream=f"user {i}.*>")
    async with connected(nats_server.url) as conn, relaying(log, conn) as relay:
        await caught_up(relay, 3000)
        await assert_mirrored(log, conn)
        status = relay.status()
        assert (status.state, status.lag, status.confirmed, status.reason) == (RelayState.PUMP, 0, 3000, "")


async def test_a_commit_wakes_the_relay(nats_server: EmbeddedServer) -> None:
    """No clock is waited for: with looks an hour apart, a commit is published all the same."""
    log = new_log()
    async with connected(nats_server.url) as conn, relaying(log, conn, look_s=3600, patience_s=3600) as relay:
        for n in range(1, 20):
            assert await save(log, 1) == n
            await caught_up(relay, n)
        await assert_mirrored(log, conn)


async def test_a_commit_larger_than_the_window_is_published(nats_server: EmbeddedServer) -> None:
    """The window bounds what is in flight, not what a commit may hold; nor do the window's bytes."""
    log = new_log()
    await save(log, 700)
    await save(log, 40, size=50_000)
    async with connected(nats_server.url) as conn, relaying(log, conn, window=8, window_bytes=100_000) as relay:
        await caught_up(relay, 740)
        await assert_mirrored(log, conn)


async def test_a_relay_that_starts_again_goes_on_where_the_stream_ends(nats_server: EmbeddedServer) -> None:
    """The stream's last sequence is the checkpoint; nothing is published twice."""
    log = new_log()
    async with connected(nats_server.url) as conn:
        for n in range(1, 6):
            await save(log, 50)
            async with relaying(log, conn) as relay:
                await caught_up(relay, n * 50)
            await assert_mirrored(log, conn)


async def test_the_relay_of_an_empty_log_waits(nats_server: EmbeddedServer) -> None:
    """It creates the stream, so that consumers find it, and has nothing to say."""
    log = new_log()
    async with connected(nats_server.url) as conn, relaying(log, conn) as relay:
        await eventually(lambda: relay.state is RelayState.PROBE, "ready to publish")
        [found] = await streams.find(conn, "users")
        assert (found.identity, found.last) == (log.identity, 0)
        assert (await check_stream(log, conn)).ok


async def test_the_check_of_a_stream_that_does_not_exist_says_so(nats_server: EmbeddedServer) -> None:
    """Rather than reporting an empty stream."""
    log = new_log()
    async with connected(nats_server.url) as conn:
        with pytest.raises(StreamGone, match="a running relay creates it"):
            await check_stream(log, conn)


async def test_a_cancelled_relay_leaves_nothing_behind(nats_server: EmbeddedServer) -> None:
    """No task, no subscription."""
    log = new_log()
    await save(log, 100)
    async with connected(nats_server.url) as conn:
        subscriptions, tasks = len(conn._handlers), asyncio.all_tasks()
        async with relaying(log, conn) as relay:
            await caught_up(relay, 100)
        assert len(conn._handlers) == subscriptions
        assert asyncio.all_tasks() == tasks


async def test_a_flight_ends_with_its_connection(nats_server: EmbeddedServer) -> None:
    """What was verified over one connection is not relied on over the next."""
    log = new_log()
    await save(log, 3)
    async with connected(nats_server.url) as conn:
        state = await streams.ensure(conn, log.identity)
        flight = Flight(conn, MessageFormat("users.main"), state.name, after=0, epoch=conn.epoch - 1)
        flight.send(await log.read(0, 3))
        assert flight.fault is not None
        assert flight.fault.kind is Kind.AWAY
        assert flight.sent == 0
        flight.close()


async def test_a_halted_relay_may_be_started_again(nats_server: EmbeddedServer) -> None:
    """Cancelled and run anew, it looks at the stream again; its error is gone with what caused it."""
    log = new_log()
    await save(log, 3)
    async with connected(nats_server.url) as conn:
        await conn.api("STREAM.CREATE.greedy", {"name": "greedy", "subjects": ["evsync.>"]})
        relay = Relay(log, conn, RelayPolicy(look_s=3600))
        for mended in (False, True):
            if mended:
                await streams.delete(conn, "greedy")
            task = asyncio.create_task(relay.run())
            if mended:
                await caught_up(relay, 3)
            else:
                assert "greedy" in str(await halted(relay))
            task.cancel()
            await asyncio.wait([task])
        assert relay.halted is None
        await assert_mirrored(log, conn)


async def test_the_relay_of_a_closed_store_waits(nats_server: EmbeddedServer) -> None:
    """A store that is away is not the stream's fault: no halt, and the reason in the status."""
    log = new_log()
    async with connected(nats_server.url) as conn, relaying(log, conn) as relay:
        await caught_up(relay, await save(log, 3))
        await log.close()
        await eventually(lambda: "is closed" in relay.status().reason, "the reason in the status")
        assert relay.halted is None
