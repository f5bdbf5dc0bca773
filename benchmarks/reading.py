"""Reading a stream: what consumers of another service do before any handler runs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig

from benchmarks.relay import relayed
from benchmarks.rounds import Advance, Goal, Row, Subject, alternate, check
from benchmarks.workload import full_log, shop, sqlite_url
from evsync.jetstream.client import quick_session
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.pulls import PullConsumer, PullPolicy, size_of
from evsync.jetstream.client.settings import NatsSettings
from evsync.jetstream.server import EmbeddedServer
from evsync.jetstream.source import JetStreamSource

TITLE = "Reading from JetStream"
NOTES = """\
100,000 events of about 200 bytes and 400 of headers, in one stream that a relay has filled; a nats-server of its own on
the same machine. Each reads all of them from the first to the last. bare nats-py: `fetch` of 500 messages at a time
from a pull subscription, and messages pulled by hand, 1,000 at a time and two pulls overlapping, into a callback; no
acknowledgements, and nothing is looked at but how many there were. evsync, pulls alone: the consumer that a reader has,
messages taken apart into subject, headers and body, and counted. evsync, verified events: what a projection is given.
Each message stands where its event's position says, its headers were read and checked, and commits are whole.

By documented calls is what evsync does with a version of nats-py that its own way of reading was not tested with: the
same reader, over nats-py's parser and its subscriptions.

What limits it. Pulls alone: the server, 2.7 µs of processor time a message, beside 2.1 µs of ours (`fetch`: 31 µs).
Verified events: Python on one core, 5 to 6 µs an event, of which the headers and what they must say take about half and
the parser a third.
"""

EVENTS = 100_000


def measure(rounds: int, advance: Advance) -> list[Row]:
    """The table."""
    fetch = "bare nats-py, fetch"
    with TemporaryDirectory(prefix="evsync-bench-") as directory:
        advance("filling a stream")
        with EmbeddedServer.start(Path(directory) / "nats") as server:
            stream = asyncio.run(_fill(Path(directory) / "shop.db", server.url))

            def subject(name: str, read: Callable[[str, str], Awaitable[int]], goal: Goal | None = None) -> Subject:
                run = partial(_timed, read, server.url, stream)
                return Subject(name=name, run=run, peer=None if name == fetch else fetch, goal=goal)

            subjects = [
                subject(fetch, _fetched),
                subject("bare nats-py, pulls into a callback", _called_back),
                subject("evsync, pulls alone", _pulled, Goal(of="ratio", least=7)),
                subject("evsync, verified events", _verified, Goal(of="value", least=100_000)),
                subject("evsync, verified events, by documented calls", _verified_plainly),
            ]
            return alternate(subjects, rounds, advance)


async def _fill(log: Path, url: str) -> str:
    """The name of a stream that holds the events."""
    await full_log(log, EVENTS)
    async with shop().open(store=sqlite_url(log), nats=url) as service:
        await relayed(service)
    client = await nats.connect(url)
    (stream,) = await client.jetstream().streams_info()
    await client.close()
    return str(stream.config.name)


def _timed(read: Callable[[str, str], Awaitable[int]], url: str, stream: str, _: Path) -> float:
    async def run() -> float:
        began = time.perf_counter()
        check("messages", await read(url, stream), EVENTS)
        return EVENTS / (time.perf_counter() - began)

    return asyncio.run(run())


async def _fetched(url: str, stream: str) -> int:
    client = await nats.connect(url)
    pulls = await client.jetstream().pull_subscribe(
        "", stream=stream, config=ConsumerConfig(ack_policy=AckPolicy.NONE, mem_storage=True)
    )
    count = 0
    while count < EVENTS:
        count += len(await pulls.fetch(500, timeout=5))
    await client.close()
    return count


async def _called_back(url: str, stream: str) -> int:
    client = await nats.connect(url)
    config = ConsumerConfig(name="bare", ack_policy=AckPolicy.NONE, mem_storage=True)
    await client.jetstream().add_consumer(stream, config)
    count, batch, all_here, inbox = 0, 1_000, asyncio.Event(), client.new_inbox()

    async def received(message: Msg) -> None:
        nonlocal count
        if not message.reply:
            return  # a pull's end
        count += 1
        if count % batch == 0:
            await _ask(client, stream, inbox, batch)
        if count == EVENTS:
            all_here.set()

    await client.subscribe(inbox, cb=received, pending_msgs_limit=0, pending_bytes_limit=0)
    await _ask(client, stream, inbox, batch)
    await _ask(client, stream, inbox, batch)
    await all_here.wait()
    await client.jetstream().delete_consumer(stream, "bare")
    await client.close()
    return count


async def _ask(client: Client, stream: str, inbox: str, batch: int) -> None:
    request = json.dumps({"batch": batch, "expires": 30_000_000_000}).encode()
    await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.bare", request, reply=inbox)


async def _pulled(url: str, stream: str) -> int:
    connection = await Connection.open(NatsSettings(url=url), "bench")
    await connection.ready(5)
    consumer = await PullConsumer.create(connection, stream, 1, PullPolicy())
    count = 0
    while count < EVENTS and not consumer.broken:
        await consumer.wait(5)
        size_bytes = 0
        while consumer.messages:
            subject, _, headers, body = consumer.messages.popleft()
            size_bytes += size_of(subject, headers, body)
            count += 1
        consumer.taken(size_bytes)
    consumer.close()
    await connection.close()
    return count


async def _verified(url: str, _: str) -> int:
    connection = await Connection.open(NatsSettings(url=url), "bench")
    (reader,) = await JetStreamSource(connection, "shop").readers()
    last = 0
    while last < EVENTS:
        events = await reader.read(last, 1_000, 5)
        last = events[-1].position
    await reader.close()
    await connection.close()
    return last


async def _verified_plainly(url: str, stream: str) -> int:
    with patch.object(quick_session, "INSTALLED", "another"):
        return await _verified(url, stream)
