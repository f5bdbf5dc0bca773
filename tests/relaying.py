"""What the tests of the broker's side share: connections, relays and logs to relay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from evsync.errors import BrokerUnavailable, Conflict
from evsync.jetstream import streams
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.settings import NatsSettings
from evsync.jetstream.relay import Relay, RelayPolicy, RelayState
from evsync.jetstream.stream_settings import stream_name
from evsync.jetstream.verification import check_stream
from evsync.ports import EventLog, EventStore
from evsync.records import Append, Commit, LogIdentity, NewEvent, new_command, new_incarnation
from evsync.sharding.slots import slot_of
from evsync.stores.memory import MemoryStore

QUICK: dict[str, Any] = {"look_s": 0.2, "patience_s": 0.3, "ack_timeout_s": 1.0, "longest_wait_s": 0.3}
"""A policy for tests: the same relay, in less of a hurry to be polite."""


async def eventually(condition: Callable[[], Any], what: str | Callable[[], str], timeout_s: float = 15.0) -> Any:
    """The first true value of `condition`, which is asked again and again; fails with `what` at the deadline."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value:
            return value
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what if isinstance(what, str) else what()}")
        await asyncio.sleep(0.005)


@asynccontextmanager
async def connected(url: str, name: str = "users") -> AsyncIterator[Connection]:
    """A connection that is up, and closed afterwards."""
    async with await Connection.open(NatsSettings(url), name) as conn:
        await conn.ready(10)
        yield conn


@asynccontextmanager
async def relaying(log: EventLog, conn: Connection, **policy: Any) -> AsyncIterator[Relay]:
    """A running relay, ended afterwards."""
    relay = Relay(log, conn, RelayPolicy(**(QUICK | policy)))
    task = asyncio.create_task(relay.run())
    try:
        yield relay
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled(), f"run() ended by itself: {task}"


def new_log(incarnation: str | None = None) -> MemoryStore:
    """An empty log."""
    return MemoryStore(LogIdentity("users", "main", incarnation or new_incarnation()))


async def save(store: EventStore, count: int, *, stream: str = "ada", size: int = 20) -> int:
    """Append `count` events in one commit to a stream; the position of the last."""
    version = len(await store.read_stream(stream))
    events = [
        NewEvent("users.User.Renamed", 1_700_000_000_000_000 + i, b"%07d" % (version + i) + bytes(size), None)
        for i in range(count)
    ]
    outcome = (await store.append([Commit(new_command(), [Append(stream, slot_of(stream), version, events)])]))[0]
    assert not isinstance(outcome, Conflict)
    return outcome


async def caught_up(relay: Relay, position: int) -> None:
    """Wait until the relay says that everything up to `position` is in the stream."""
    await eventually(lambda: relay.confirmed >= position, lambda: f"position {position} published ({relay.status()})")


async def halted(relay: Relay) -> Exception:
    """The error with which the relay halts."""
    await eventually(lambda: relay.state is RelayState.HALTED and relay.halted, lambda: f"a halt ({relay.status()})")
    assert relay.halted is not None
    return relay.halted


async def mirrored_again(log: EventLog, conn: Connection) -> None:
    """Wait until the stream reaches as far as the log, after something befell it; then compare them."""

    async def reaches() -> bool:
        try:
            state = await streams.info(conn, stream_name(log.identity))
        except BrokerUnavailable:
            return False
        return state is not None and state.last >= await log.head()

    await eventually(reaches, "the stream as long as the log")
    await assert_mirrored(log, conn)


async def assert_mirrored(log: EventLog, conn: Connection) -> None:
    """The stream holds exactly the log: event n at sequence n, nothing less, nothing more."""
    report = await check_stream(log, conn)
    assert report.problems == []
    assert (report.first, report.last, report.compared) == (1, report.head, report.head)
