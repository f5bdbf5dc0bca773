"""JetStream as the event store: commits of one event, and reading an aggregate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import nats

from benchmarks.rounds import Advance, Goal, Row, Subject, alternate, check
from benchmarks.workload import Account, orders, save_all, shop
from evsync import Service
from evsync.jetstream.server import EmbeddedServer
from evsync.jetstream.store.store import JetStreamStore

T = TypeVar("T")

TITLE = "JetStream as the event store"
NOTES = """\
A server of its own on the same machine: one replica, files, its default of acknowledging before it fsyncs (what that
promises is in the how-to about the JetStream store). A save is one event of about 200 bytes in an aggregate of its own,
and one message. bare nats-py: `js.publish` of 200 bytes with the one header that makes it an append to a new aggregate
(`Nats-Expected-Last-Subject-Sequence`), a subject each; no aggregate, nothing encoded.

`Service.get` of an aggregate of 100 events, saved in one commit, in a stream with a few hundred others; round trips are
the requests to the server for one such get.

What limits it. One by one: two thirds of the time are Python on the way of one message out and back. In flight
together: two thirds are Python on one core, of which the sending and the headers are the smaller part, the rest is the
server. A get: half is the server, which looks up the last message of each of the 100 subjects and sends them all in
answer to one request; the other half is mostly taking them and their headers apart.
"""

WARM_UP = 200
ONE_BY_ONE = 1_000
IN_FLIGHT = 12_800
STREAM, READS = 100, 200


def measure(rounds: int, advance: Advance) -> list[Row]:
    """The table."""
    alone, together = "bare nats-py, one by one", "bare nats-py, 64 in flight"
    subjects = [
        Subject(name=alone, run=partial(_bare, ONE_BY_ONE, 1), unit="saves/s"),
        Subject(name="evsync, one by one", run=partial(_saves, ONE_BY_ONE, 1), unit="saves/s", peer=alone),
        Subject(name=together, run=partial(_bare, IN_FLIGHT, 64), unit="saves/s"),
        Subject(
            name="evsync, 64 in flight",
            run=partial(_saves, IN_FLIGHT, 64),
            unit="saves/s",
            peer=together,
            goal=Goal(of="value", least=5_000),
        ),
        Subject(name=f"evsync, get of {STREAM} events", run=_get_ms, unit="ms"),
        Subject(name="evsync, round trips of such a get", run=_round_trips, unit="", goal=Goal(of="value", most=2)),
    ]
    return alternate(subjects, rounds, advance)


def _saves(count: int, in_flight: int, directory: Path) -> float:
    async def run(service: Service) -> float:
        await save_all(service, orders(WARM_UP), in_flight=1)
        new = orders(count)
        began = time.perf_counter()
        last = await save_all(service, new, in_flight=in_flight)
        seconds = time.perf_counter() - began
        check("events saved", last.number, WARM_UP + count)
        return count / seconds

    return _with_service(directory, run)


def _get_ms(directory: Path) -> float:
    return _reading(directory)[0] / READS * 1_000


def _round_trips(directory: Path) -> float:
    return _reading(directory)[1] / READS


def _reading(directory: Path) -> tuple[float, int]:
    """Seconds and round trips of all reads."""

    async def run(service: Service) -> tuple[float, int]:
        account = Account("Ada")
        for i in range(STREAM - 1):
            account.deposit(i, f"transfer {i:06} of the month, from an account of the same bank")
        await service.save(account)
        await save_all(service, orders(WARM_UP), in_flight=64)
        assert isinstance(service.store, JetStreamStore)
        reads = service.store._reads
        before, began = reads.round_trips, time.perf_counter()
        for _ in range(READS):
            check("version", (await service.get(Account, account.id)).version, STREAM)
        return time.perf_counter() - began, reads.round_trips - before

    return _with_service(directory, run)


def _with_service(directory: Path, work: Callable[[Service], Awaitable[T]]) -> T:
    async def run(url: str) -> T:
        async with shop().open(store=url) as service:
            return await work(service)

    with EmbeddedServer.start(directory) as server:
        return asyncio.run(run(server.url))


def _bare(count: int, in_flight: int, directory: Path) -> float:
    async def run(url: str) -> float:
        client = await nats.connect(url)
        stream = client.jetstream()
        await stream.add_stream(name="bare", subjects=["bare.>"])
        waiting = iter([f"bare.main.{n % 256}.Order.Placed.{uuid4()}.1" for n in range(count)])
        headers = {"Nats-Expected-Last-Subject-Sequence": "0"}

        async def publish() -> None:
            for subject in waiting:
                await stream.publish(subject, b"d" * 200, headers=headers)

        began = time.perf_counter()
        await asyncio.gather(*(publish() for _ in range(in_flight)))
        seconds = time.perf_counter() - began
        check("messages stored", (await stream.stream_info("bare")).state.messages, count)
        await client.close()
        return count / seconds

    with EmbeddedServer.start(directory) as server:
        return asyncio.run(run(server.url))
