"""The relay: a log that is full, published to a stream that is empty."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import nats
from nats.aio.msg import Msg

from benchmarks.rounds import Advance, Goal, Row, Subject, alternate
from benchmarks.workload import full_log, shop, sqlite_url
from evsync import Service
from evsync.jetstream.relay import RelayPolicy
from evsync.jetstream.server import EmbeddedServer

TITLE = "Relay from SQLite to JetStream"
NOTES = """\
30,000 events of about 200 bytes; a nats-server of its own on the same machine (one replica, files, its default of
acknowledging before it fsyncs). evsync: a service opened with a log that is full and a stream that does not exist,
timed until the last event is acknowledged, so reading the log, making sure of the stream, writing the headers and
checking each acknowledgement are in it. bare nats-py: `nc.publish` of 200 bytes with a reply subject on one inbox, as
many in flight as the relay has (1,000), acknowledgements counted and not looked at. The requirement is against that
without any headers. With headers like the relay's (CloudEvents, and the expected last sequence, which is what makes an
event land at its position or nowhere) the server and nats-py both have more to do.

What limits it: about 11 µs of Python an event here, a third of it writing the headers, and 14 µs in the server, which
takes 400 bytes of headers apart; the two run beside each other where there are two cores to run on.
"""

EVENTS = 30_000
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
        status = await service.status()
        if status.relay is None or status.relay.state == "halted":
            raise RuntimeError(f"the relay does not run: {status.relay}")
        if status.relay.confirmed >= status.head:
            return
        await asyncio.sleep(0.005)


def _bare(headers: dict[str, str] | None, directory: Path) -> float:
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
            await client.publish("bare.event", PAYLOAD, reply=inbox, headers=own)
        await until(EVENTS)
        seconds = time.perf_counter() - began
        await client.close()
        return EVENTS / seconds

    with EmbeddedServer.start(directory) as server:
        return asyncio.run(run(server.url))
