"""The relay: a log that is full, published to a stream that is empty."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import nats
from nats.aio.msg import Msg

from benchmarks.rounds import Advance, Goal, Row, Subject, alternate
from benchmarks.workload import full_log, shop, sqlite_url
from evsync import Service
from evsync.jetstream.relay import RelayPolicy
from evsync.jetstream.server import EmbeddedServer

TITLE = "Relay from SQLite to JetStream"
NOTES = """\
100,000 events of about 200 bytes; a nats-server of its own on the same machine (one replica, files, its default of
acknowledging before it fsyncs). evsync: a service opened with a log that is full and a stream that does not exist,
timed until the last event is acknowledged, so reading the log, making sure of the stream, writing the headers and
checking each acknowledgement are in it. bare nats-py: `nc.publish` of 200 bytes with a reply subject on one inbox, as
many in flight as the relay has (1,000), acknowledgements counted and not looked at.

Every stream has a subject of its own, which the server indexes: that is what lets consumers filter by aggregate. So the
requirement is against bare publishing to such subjects, without any headers. To a single subject the server alone is
half as fast again. With headers like the relay's (CloudEvents, and the expected last sequence, which is what makes an
event land at its position or nowhere) the server and nats-py both have more to do.

What limits it: the server, which takes 8 µs for a message with a subject of its own and 400 bytes of headers, whoever
publishes it; beside it run 5 µs of Python an event: reading the row, writing the headers, and 0.4 for acknowledgements,
which are compared in runs with what they must be.
"""

EVENTS = 100_000
PAYLOAD = b"p" * 200
WINDOW = RelayPolicy().window
HEADERS = {
    "ce-specversion": "1.0",
    "ce-id": "3f9a2b1c-7d5e-4a1b-8c2d-0123456789ab",
    "ce-time": "2026-01-01T00:00:00.000000Z",
    "ce-source": "/shop/main",
    "ce-type": "shop.Order.Placed",
    "ce-datacontenttype": "application/msgpack",
    "evsync": "1 3f9a2b1c7d5e 12345 1 0",
    "Nats-Expected-Stream": "bare",
}


def measure(rounds: int, advance: Advance) -> list[Row]:
    """The table."""
    bare = "bare nats-py, no headers"
    with TemporaryDirectory(prefix="evsync-bench-") as directory:
        log = Path(directory) / "shop.db"
        advance("filling a log")
        asyncio.run(full_log(log, EVENTS))
        subjects = [
            Subject(
                name="bare nats-py, one subject, no headers", run=partial(_bare, None, one_subject=True), peer=bare
            ),
            Subject(name=bare, run=partial(_bare, None)),
            Subject(name="bare nats-py, with headers", run=partial(_bare, HEADERS), peer=bare),
            Subject(name="evsync, relay", run=partial(_relay, log), peer=bare, goal=Goal(of="ratio", least=0.8)),
        ]
        return alternate(subjects, rounds, advance)


def _relay(log: Path, directory: Path) -> float:
    async def run(url: str) -> float:
        async with shop().open(store=sqlite_url(log), nats=url) as service:
            began = time.perf_counter()
            await relayed(service)
            return EVENTS / (time.perf_counter() - began)

    with EmbeddedServer.start(directory) as server:
        return asyncio.run(run(server.url))


async def relayed(service: Service) -> None:
    """Return when everything the service has saved is in its stream. Raises what the relay halted with."""
    while True:
        (log,) = (await service.status()).logs.values()
        if log.relay is None or log.relay.state == "halted":
            raise RuntimeError(f"the relay does not run: {log.relay}")
        if log.relay.confirmed >= log.head:
            return
        await asyncio.sleep(0.005)


def _bare(headers: dict[str, str] | None, directory: Path, *, one_subject: bool = False) -> float:
    subjects = ["bare.event"] if one_subject else [f"bare.main.{n % 256}.Order.Placed.{uuid4()}" for n in range(EVENTS)]

    async def run(url: str) -> float:
        client = await nats.connect(url)
        await client.jetstream().add_stream(name="bare", subjects=["bare.>"])
        acknowledged, moved, inbox = 0, asyncio.Event(), client.new_inbox()

        async def count(_: Msg) -> None:
            nonlocal acknowledged
            acknowledged += 1
            moved.set()

        async def until(number: int) -> None:
            while acknowledged < number:
                moved.clear()
                await moved.wait()

        await client.subscribe(inbox, cb=count)
        began = time.perf_counter()
        for number in range(EVENTS):
            await until(number + 1 - WINDOW)
            own = headers and headers | {"Nats-Expected-Last-Sequence": str(number)}
            await client.publish(subjects[number % len(subjects)], PAYLOAD, reply=inbox, headers=own)
        await until(EVENTS)
        seconds = time.perf_counter() - began
        await client.close()
        return EVENTS / seconds

    with EmbeddedServer.start(directory) as server:
        return asyncio.run(run(server.url))
