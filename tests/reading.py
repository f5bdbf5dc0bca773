"""What the tests of the reading side share: readers, streams filled by hand, and faults to read through."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from evsync.jetstream.client.connection import Connection, Subscription
from evsync.jetstream.client.frames import Handler, parse_headers
from evsync.jetstream.client.pulls import PullPolicy
from evsync.jetstream.client.settings import NatsSettings
from evsync.jetstream.consumer import JetStreamReader, ReaderPolicy
from evsync.jetstream.messages import END_OF_HEADERS, FIRST_LINE, MessageFormat
from evsync.jetstream.stream_settings import stream_config, stream_name
from evsync.ports import EventLog
from evsync.records import LogIdentity, StoredEvent
from tests.relaying import eventually

QUICK = ReaderPolicy(pulls=PullPolicy(heartbeat_s=0.1, expires_s=0.5), idle_check_s=0.2, longest_wait_s=0.2)
"""Looks after itself every moment, so that the tests need not wait."""

PATIENT = replace(QUICK, pulls=PullPolicy(heartbeat_s=600, expires_s=3600), idle_check_s=3600)
"""Never looks: what it notices it was told."""


@asynccontextmanager
async def reading(
    conn: Connection, identity: LogIdentity, policy: ReaderPolicy = QUICK
) -> AsyncIterator[JetStreamReader]:
    """A reader of the log's stream, closed afterwards."""
    reader = JetStreamReader(conn, stream_name(identity), identity.name, identity.incarnation, policy)
    try:
        yield reader
    finally:
        await reader.close()


def batched(batch: int, policy: ReaderPolicy = QUICK, *, inactive_s: float = 120.0) -> ReaderPolicy:
    """A policy with another batch size."""
    return replace(policy, pulls=replace(policy.pulls, batch=batch, inactive_s=inactive_s))


async def everything(log: EventLog) -> list[StoredEvent]:
    """All events of a log."""
    return await log.read(0, 10**9)


async def read_on(reader: JetStreamReader, after: int, to: int, *, limit: int = 100) -> list[StoredEvent]:
    """Read from `after` until `to` is reached. Each read must give whole commits and begin where the last one ended."""
    events: list[StoredEvent] = []

    async def more() -> bool:
        place = after + len(events)
        got = await reader.read(place, limit, 0.5)
        assert [e.position for e in got] == list(range(place + 1, place + 1 + len(got)))
        assert not got or got[-1].remaining == 0
        events.extend(got)
        return after + len(events) >= to

    await eventually(more, lambda: f"position {to} read (at {after + len(events)}; {reader.waiting_for})")
    return events


async def create(conn: Connection, identity: LogIdentity, **changes: Any) -> str:
    """The log's stream with other settings than evsync's; its name."""
    name = stream_name(identity)
    await conn.api(f"STREAM.CREATE.{name}", stream_config(identity) | changes)
    return name


async def publish(conn: Connection, events: Sequence[StoredEvent], *, after: int | None = None) -> None:
    """Publish events as the relay does, without its care. `after` is the stream's last sequence, if it is not the
    position before the first event."""
    for n, event in enumerate(events, events[0].position if after is None else after + 1):
        subject, lines, body = MessageFormat("users.main").encode(event)
        headers = parse_headers(FIRST_LINE + lines + END_OF_HEADERS) | {"Nats-Expected-Last-Sequence": str(n - 1)}
        answer = json.loads((await conn.request(subject, body, headers=headers, timeout_s=5)).body)
        assert answer.get("seq") == n, answer


async def consumers(conn: Connection, identity: LogIdentity) -> list[str]:
    """Names of the consumers that the server has of the log's stream."""
    return (await conn.api(f"CONSUMER.NAMES.{stream_name(identity)}")).get("consumers") or []


class FaultyConnection(Connection):
    """A connection on which some messages do not arrive: those that `loses` says, by inbox and reply subject."""

    loses: Callable[[str, bytes], bool] = staticmethod(lambda inbox, reply: False)

    def subscribe(self, subject: str, handler: Handler) -> Subscription:
        """As a Connection, through the fault."""

        def through(received: bytes, reply: bytes, headers: bytes, body: bytes) -> None:
            if not self.loses(subject, reply):
                handler(received, reply, headers, body)

        self.inboxes.append(subject)
        return super().subscribe(subject, through)

    @property
    def inboxes(self) -> list[str]:
        """What was subscribed to so far; first of all the inbox for answers to requests."""
        inboxes: list[str] = self.__dict__.setdefault("_inboxes", [])  # there before Connection's own attributes
        return inboxes

    @classmethod
    @asynccontextmanager
    async def to(cls, url: str) -> AsyncIterator[FaultyConnection]:
        """One that is up, closed afterwards."""
        conn = await cls.open(NatsSettings(url), "orders")
        assert isinstance(conn, cls)
        async with conn:
            await conn.ready(10)
            yield conn
