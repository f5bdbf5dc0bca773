"""History from the archive: read first by whoever is far behind, then live at the next position, without a seam."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evsync.archive.backup import Backups
from evsync.archive.reader import ArchivedReader
from evsync.archive.targets import open_target
from evsync.errors import HistoryGone
from evsync.jetstream import streams
from evsync.jetstream.server import EmbeddedServer
from evsync.jetstream.stream_settings import stream_name
from evsync.jetstream.trimming import trim_stream
from evsync.jetstream.verification import check_stream
from evsync.ports import LogReader
from evsync.records import StoredEvent
from evsync.sources import StoreReader
from tests.archiving import MemoryTarget, archived, away, fill
from tests.integration.test_archive_restore import a_bank, pay, whole
from tests.integration.test_archive_stream import Follower, relayed
from tests.relaying import caught_up, connected, eventually, relaying

pytestmark = pytest.mark.anyio


class Counting(StoreReader):
    """A live log that counts what it was asked for, and has forgotten its beginning."""

    asked = 0
    begins = 1

    async def read(self, after: int, limit: int, timeout_s: float) -> list[StoredEvent]:
        self.asked += 1
        if after + 1 < self.begins:
            raise HistoryGone(f"it begins at {self.begins}")
        return await super().read(after, limit, timeout_s)


async def read_to(reader: LogReader, last: int, limits: Sequence[int], after: int = 0) -> list[StoredEvent]:
    """All events up to a position, in reads of these sizes."""
    found: list[StoredEvent] = []
    turn = 0
    async with asyncio.timeout(10):
        while after < last:
            events = await reader.read(after, limits[turn % len(limits)], 0.1)
            turn += 1
            if events:
                assert events[-1].remaining == 0
                found += events
                after = events[-1].position
    return found


@settings(max_examples=30, deadline=None, database=None)
@given(limits=st.lists(st.integers(1, 40), min_size=1, max_size=5), after=st.integers(0, 70))
async def test_archive_and_live_log_are_one(limits: list[int], after: int) -> None:
    """Whatever is read at a time, and wherever it begins: whole commits, no gap, nothing twice."""
    target = MemoryTarget()
    store, _ = await archived(60, target)
    events = await fill(store, 20)
    reader = ArchivedReader(Counting(store, lambda: store), [target], worth_events=1)
    begin = whole(events, after)
    assert await read_to(reader, len(events), limits, begin) == events[begin:]
    assert await reader.head() == len(events)
    assert await reader.read(len(events), 10, 0.0) == []
    assert await read_to(reader, len(events), limits) == events  # from the beginning once more
    await reader.close()


async def test_who_is_far_behind_reads_the_archive_and_others_do_not() -> None:
    """The live log is spared; who is nearly there does not even open the archive."""
    target = MemoryTarget()
    store, events = await archived(60, target)
    live = Counting(store, lambda: store)
    reader = ArchivedReader(live, [target], worth_events=30)
    assert await read_to(reader, len(events), [7]) == events
    assert live.asked == 0
    target.fail = away
    near = ArchivedReader(live, [target], worth_events=30)
    assert await read_to(near, len(events), [100], len(events)) == []
    for each in (reader, near):
        await each.close()


async def test_what_the_live_log_has_lost_comes_from_the_archive() -> None:
    """However little it is; what neither has is an error."""
    target = MemoryTarget()
    store, archived_events = await archived(60, target)
    events = await fill(store, 20)
    live = Counting(store, lambda: store)
    live.begins = 40
    reader = ArchivedReader(live, [target], worth_events=10**6)
    assert await read_to(reader, len(events), [7]) == events
    live.begins = len(archived_events) + 5
    with pytest.raises(HistoryGone):
        await read_to(reader, len(events), [7])
    await reader.close()


async def test_an_archive_that_cannot_be_read_is_done_without() -> None:
    """Away, damaged in the middle: the live log goes on in its place."""
    target = MemoryTarget()
    store, events = await archived(60, target)
    name = sorted(target.kept)[2]
    target.kept[name] = target.kept[name][:-1]
    reader = ArchivedReader(Counting(store, lambda: store), [target], worth_events=1)
    assert await read_to(reader, len(events), [7]) == events
    target.fail = away
    reader = ArchivedReader(Counting(store, lambda: store), [target], worth_events=1)
    assert await read_to(reader, len(events), [7]) == events
    await reader.close()


async def test_a_read_that_is_cancelled_loses_nothing() -> None:
    """At whatever moment; the next one gives what it would have given."""
    target = MemoryTarget()
    store, events = await archived(200, target)
    reader = ArchivedReader(Counting(store, lambda: store), [target], worth_events=1)
    found: list[StoredEvent] = []
    for turns in range(400):
        reading = asyncio.ensure_future(reader.read(len(found), 7, 0.0))
        for _ in range(turns % 5):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        if not reading.cancelled():
            found += reading.result()
    found += await read_to(reader, len(events), [7], len(found))
    assert found == events
    await reader.close()


async def test_a_stream_is_trimmed_and_its_history_read_from_the_archive(
    tmp_path: Path, nats_server: EmbeddedServer
) -> None:
    """The stream begins behind what is archived; a consumer that went on before goes on, a new one reads the archive
    first, and one that does not know of it stops."""
    bank, old = a_bank(), Follower(tmp_path / "old", nats_server.url)
    for name in ("old", "new", "lost"):
        (tmp_path / name).mkdir()
    place = str(tmp_path / "backups")
    async with bank.open(store=f"sqlite:///{tmp_path}/bank.db", nats=nats_server.url), old.opened():
        await pay(bank, 1, 2, 3, 4)
        await old.until(4)
        await relayed(bank)
        store = bank.runtime.store
        assert (await Backups(store, [open_target(place)], copies=1).run()).ok
        async with connected(nats_server.url) as connection:
            report = await trim_stream(store, connection, 6)
            assert (report.problems, report.first, report.last) == ([], 7, 8)
            await pay(bank, 5)
            await relayed(bank)
            assert (await check_stream(store, connection)).problems == []
            state = await streams.info(connection, stream_name(store.identity))
            assert state is not None
            assert (state.first, state.last, state.missing) == (7, 10, 0)
        await old.until(5)
        new, lost = Follower(tmp_path / "new", nats_server.url), Follower(tmp_path / "lost", nats_server.url)
        async with new.service.open(store=new.store, nats=new.nats, archives={"bank": [place]}):
            await new.until(5)
            await new.service.wait(store.identity.at(10))
            assert await new.total() == 15
        async with lost.opened():
            assert isinstance(await lost.halted("ledger"), HistoryGone)


async def test_a_running_relay_goes_on_behind_the_trim(tmp_path: Path, nats_server: EmbeddedServer) -> None:
    """Several times over, with everything published at its own place."""
    bank = a_bank()
    async with (
        bank.open(store=f"sqlite:///{tmp_path}/bank.db", nats=nats_server.url),
        connected(nats_server.url) as connection,
    ):
        for turn in range(1, 4):
            await pay(bank, *range(turn * 10, turn * 10 + 5))
            await relayed(bank)
            head = await bank.runtime.store.head()
            report = await trim_stream(bank.runtime.store, connection, head - 2)
            assert (report.first, report.last, report.problems) == (head - 1, head, [])
            relay = bank.runtime.relay
            assert relay is not None
            await eventually(lambda: relay.state == "pump", lambda: str(relay.status()))  # noqa: B023


async def test_a_trim_broken_off_anywhere_is_made_up_for(tmp_path: Path, nats_server: EmbeddedServer) -> None:
    """Before, between and after its steps: what the stream holds is right, and a relay brings it to the log's end."""
    bank = a_bank()
    async with connected(nats_server.url) as connection:
        async with bank.open(store=f"sqlite:///{tmp_path}/bank.db", nats=nats_server.url):
            await pay(bank, *range(300))
            await relayed(bank)
        async with bank.open(store=f"sqlite:///{tmp_path}/bank.db", run="none"):
            store = bank.runtime.store
            for turns in (0, 1, 2, 4, 8, 16, 32, 64, 128):
                trimming = asyncio.create_task(trim_stream(store, connection, 100))
                for _ in range(turns):
                    await asyncio.sleep(0.0003)
                trimming.cancel()
                await asyncio.wait([trimming])
                async with relaying(store, connection) as relay:
                    await caught_up(relay, await store.head())
                report = await check_stream(store, connection)
                assert (report.problems, report.last) == ([], 600)
                assert report.first in (1, 101)
