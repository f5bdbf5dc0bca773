"""What is wrong with the stream itself is said, with the mend; what stands before it is read, and nothing beyond."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from evsync.errors import ForeignMessage, HistoryGone, OtherIncarnation, RelayError, StreamHole, StreamUnreadable
from evsync.jetstream import streams
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.consumer import JetStreamReader
from evsync.jetstream.rebuild import rebuild_stream
from evsync.jetstream.server import EmbeddedServer
from evsync.jetstream.stream_settings import stream_config, stream_name
from evsync.records import StoredEvent
from evsync.stores.memory import MemoryStore
from tests.reading import batched, create, everything, publish, read_on, reading
from tests.relaying import caught_up, connected, eventually, new_log, relaying, save

pytestmark = pytest.mark.anyio

DELETABLE = {"deny_delete": False, "deny_purge": False}


async def log_of(commits: int, *, size: int = 20) -> tuple[MemoryStore, list[StoredEvent]]:
    """A log of so many commits of two events each."""
    log = new_log()
    for _ in range(commits):
        await save(log, 2, size=size)
    return log, await everything(log)


@asynccontextmanager
async def relayed(server: EmbeddedServer, log: MemoryStore) -> AsyncIterator[Connection]:
    """A connection to a server whose stream mirrors the log; no relay runs any more."""
    async with connected(server.url) as conn:
        async with relaying(log, conn) as relay:
            await caught_up(relay, await log.head())
        yield conn


class ReadAll(Exception):
    """There was nothing that could not be read."""


async def read_to_the_end(
    reader: JetStreamReader, *, after: int = 0, end: int | None = None
) -> tuple[list[StoredEvent], RelayError]:
    """All that can be read, and the error that ends it. Raises ReadAll when it comes to the end of the log."""
    events: list[StoredEvent] = []
    deadline = asyncio.get_running_loop().time() + 15
    while asyncio.get_running_loop().time() < deadline:
        try:
            events += await reader.read(after + len(events), 30, 0.5)
        except RelayError as error:
            return events, error
        if after + len(events) == end:
            raise ReadAll
    raise AssertionError(f"no error after position {after + len(events)}; {reader.waiting_for}")


async def stops(reader: JetStreamReader, kind: type[RelayError], events: list[StoredEvent]) -> RelayError:
    """Read from the beginning: exactly `events` come, then an error of this kind, also when asked again. Returns it."""
    read, error = await read_to_the_end(reader)
    assert read == events
    again = await read_to_the_end(reader, after=len(events))
    assert (again[0], type(again[1]), str(again[1])) == ([], kind, str(error))
    return error


async def mended(log: MemoryStore, conn: Connection, reader: JetStreamReader, events: list[StoredEvent]) -> None:
    """`evsync stream rebuild` while the reader stays where it is: it goes on, and has then read the whole log."""
    await rebuild_stream(log, conn, allow_loss=True)
    assert events + await read_on(reader, len(events), await log.head()) == await everything(log)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, b"hello"),
        ({"evsync": "nonsense"}, b""),
        ({"ce-id": "1", "ce-type": "users.User.Renamed"}, b"{}"),
    ],
)
async def test_a_message_of_a_stranger_stops_the_reader(
    nats_server: EmbeddedServer, headers: dict[str, str], body: bytes
) -> None:
    """On a subject of the log, but not ours: everything before it is read, it is named, and a rebuild mends it."""
    log, events = await log_of(20)
    async with relayed(nats_server, log) as conn, reading(conn, log.identity, batched(7)) as reader:
        await conn.request("evsync.users.main.17.User.Renamed.ada", body, headers=headers, timeout_s=5)
        error = await stops(reader, ForeignMessage, events)
        assert error.values["position"] == 41
        assert "take that permission away" in str(error)
        await save(log, 2)
        await mended(log, conn, reader, events)


async def test_an_event_at_another_sequence_stops_the_reader(nats_server: EmbeddedServer) -> None:
    """Ours in every byte, but doubled: event 40 stands at 41 too."""
    log, events = await log_of(20)
    async with relayed(nats_server, log) as conn, reading(conn, log.identity) as reader:
        await publish(conn, events[39:], after=40)
        error = await stops(reader, ForeignMessage, events)
        assert f"an event of position 40 (id {events[39].id.hex()}, users.User.Renamed)" in str(error)
        await save(log, 2)
        await mended(log, conn, reader, events)


async def test_an_event_of_another_incarnation_stops_the_reader(nats_server: EmbeddedServer) -> None:
    """The right position of a log with another history: both positions are named."""
    log, events = await log_of(20)
    async with relayed(nats_server, log) as conn, reading(conn, log.identity) as reader:
        await publish(conn, [events[39]._replace(position=41, incarnation="other")])
        error = await stops(reader, OtherIncarnation, events)
        assert error.values["position"] == 40
        assert error.values["other_incarnation"] == "other"
        assert "begin anew: `evsync reset module:service NAME`" in str(error)


async def test_a_log_that_was_replaced_stops_the_reader(nats_server: EmbeddedServer) -> None:
    """The stream is gone, and one of another incarnation has its subjects: what was read is not its history."""
    log, events = await log_of(20)
    other, _ = await log_of(3)
    async with relayed(nats_server, log) as conn, reading(conn, log.identity) as reader:
        assert await read_on(reader, 0, 40) == events
        await streams.delete(conn, stream_name(log.identity))
        async with relaying(other, conn) as relay:
            await caught_up(relay, 6)
        _, error = await read_to_the_end(reader, after=40)
        assert isinstance(error, OtherIncarnation)
        assert error.values == {
            "log": "users.main",
            "incarnation": log.identity.incarnation,
            "position": 40,
            "other_incarnation": other.identity.incarnation,
            "other_position": 6,
        }
        await mended(log, conn, reader, events)


async def test_a_deleted_message_stops_the_reader(nats_server: EmbeddedServer) -> None:
    """An operator deleted one in the middle: what stands before it is read, whole commits only."""
    log, events = await log_of(20)
    async with connected(nats_server.url) as conn, reading(conn, log.identity, batched(7)) as reader:
        name = await create(conn, log.identity, **DELETABLE)
        await publish(conn, events)
        for sequence in (22, 23, 24):
            await conn.api(f"STREAM.MSG.DELETE.{name}", {"seq": sequence})
        error = await stops(reader, StreamHole, events[:20])
        assert (error.values["position"], error.values["found"]) == (22, 25)
        assert "3 messages up to 24 are missing" in str(error)
        await mended(log, conn, reader, events[:20])


async def test_a_deleted_end_stops_the_reader(nats_server: EmbeddedServer) -> None:
    """Nothing comes after it that could show it; the stream's own count does."""
    log, events = await log_of(20)
    async with connected(nats_server.url) as conn, reading(conn, log.identity) as reader:
        name = await create(conn, log.identity, **DELETABLE)
        await publish(conn, events)
        for sequence in (39, 40):
            await conn.api(f"STREAM.MSG.DELETE.{name}", {"seq": sequence})
        error = await stops(reader, StreamHole, events[:38])
        assert error.values["position"] == 39
        await mended(log, conn, reader, events[:38])


async def test_a_trimmed_stream_is_not_read_from_its_middle(nats_server: EmbeddedServer) -> None:
    """Limits took the beginning: the reader says which positions it needs from elsewhere."""
    log, events = await log_of(20)
    async with connected(nats_server.url) as conn, reading(conn, log.identity) as reader:
        await create(conn, log.identity, max_msgs=15, discard="old")
        await publish(conn, events)
        error = await stops(reader, HistoryGone, [])
        assert (error.values["position"], error.values["first"]) == (1, 26)
        assert "Read positions 1 to 25 from the archive" in str(error)
        assert await reader.read(26, 100, 5) == events[26:]
        await mended(log, conn, reader, [])


async def test_a_stream_that_is_trimmed_while_it_is_read(nats_server: EmbeddedServer) -> None:
    """The jump in the sequence is not called a hole: the history is gone, not damaged."""
    log, events = await log_of(100)
    async with connected(nats_server.url) as conn, reading(conn, log.identity, batched(5)) as reader:
        name = await create(conn, log.identity, discard="old")
        await publish(conn, events)
        assert await reader.read(0, 2, 5) == events[:2]
        config = stream_config(log.identity) | {"discard": "old", "max_msgs": 10}
        await conn.api(f"STREAM.UPDATE.{name}", config)
        read, error = await read_to_the_end(reader, after=2)
        assert isinstance(error, HistoryGone)
        assert read == events[2 : 2 + len(read)]
        assert len(read) <= 15
        assert error.values["first"] == 191
        assert error.values["position"] in {len(read) + 3, len(read) + 4}


async def test_a_damaged_block_stops_the_reader(tmp_path: Path) -> None:
    """Bytes overwritten on the disk, found when the server starts: it drops messages, the reader does not skip them."""
    log, events = await log_of(100, size=100_000)  # the server writes files of 8 MB
    with EmbeddedServer.start(tmp_path) as server:
        async with connected(server.url) as conn, reading(conn, log.identity) as reader:
            await create(conn, log.identity)
            await publish(conn, events)
            server.kill()
            with blocks(tmp_path)[1].open("r+b") as file:
                file.seek(1_000_000)
                file.write(os.urandom(2_000_000))
            server.restart()
            await eventually(lambda: conn.connected and conn.epoch == 2, "connected again")
            state = await streams.info(conn, stream_name(log.identity))
            assert state is not None
            assert (state.last, state.missing > 0) == (200, True)
            read, error = await read_to_the_end(reader)
            assert isinstance(error, StreamHole)
            assert read == events[: len(read)]
            due = error.values["position"]
            assert isinstance(due, int)
            assert len(read) == (due - 1) // 2 * 2  # whole commits
            await mended(log, conn, reader, read)


async def test_a_block_that_cannot_be_read_stops_the_reader(tmp_path: Path) -> None:
    """The server counts messages that it cannot deliver, and says nothing: the reader does not wait for ever."""
    log, events = await log_of(100, size=100_000)  # the server writes files of 8 MB
    with EmbeddedServer.start(tmp_path / "nats") as server:
        async with connected(server.url) as conn, asyncio.timeout(60):
            await create(conn, log.identity)
            await publish(conn, events)
            while not await _stops_where_a_block_is_away(server, conn, log, events):
                pass


async def _stops_where_a_block_is_away(
    server: EmbeddedServer, conn: Connection, log: MemoryStore, events: list[StoredEvent]
) -> bool:
    """Whether the reader had to do without the block: a server that has been restarted may hold it in memory again."""
    epoch = conn.epoch
    server.restart()
    block = blocks(server.store_dir)[1]
    block.rename(aside := server.store_dir.with_name("aside"))
    await eventually(lambda: conn.connected and conn.epoch > epoch, "connected again")
    async with reading(conn, log.identity) as reader:
        try:
            read, error = await read_to_the_end(reader, end=len(events))
        except ReadAll:
            aside.rename(block)
            return False
        assert isinstance(error, StreamUnreadable)
        assert read == events[: len(read)]
        assert 0 < len(read) < 200
        assert error.values["last"] == 200
        assert "Look at the server's disk" in str(error)
        await mended(log, conn, reader, read)
        return True


def blocks(directory: Path) -> list[Path]:
    """The files of the only stream's messages, in order."""
    found = sorted(directory.glob("jetstream/**/msgs/*.blk"), key=lambda p: int(p.stem))
    assert len(found) > 2
    return found
