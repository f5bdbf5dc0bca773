"""The SQLite store keeps the laws, whichever way it reads."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from evsync.errors import Conflict
from evsync.ports import Place, Store
from evsync.records import Commit, History
from evsync.stores.group_commit import GroupCommit
from evsync.stores.sqlite import pace
from evsync.stores.sqlite.store import SqliteStore
from evsync.stores.sqlite.trimmed import TrimmableSqliteStore
from evsync.testing.contracts import EventLogContract, EventStoreContract, SlotStoreContract, SnapshotStoreContract
from evsync.testing.contracts.case import DEADLINE_S
from evsync.testing.contracts.samples import event, one, rows_of

pytestmark = pytest.mark.anyio


class OnTheLoop(TrimmableSqliteStore):
    """Appends as group commit does: on the event loop, if the store can."""

    async def append(self, commits: Sequence[Commit]) -> list[int | Conflict]:
        now = self.append_now(commits) if commits else []
        return now if now is not None else await super().append(commits)


class TestSqliteStore(EventStoreContract, EventLogContract, SnapshotStoreContract, SlotStoreContract):
    read_on_loop_s = 1.0

    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self.paths = (tmp_path / f"events{n}.db" for n in itertools.count())

    async def new_store(self) -> Store:
        return await OnTheLoop.open(next(self.paths), service="users", read_on_loop_s=self.read_on_loop_s)

    async def new_shard(self, shard: str, *, owns_slots: bool) -> Store:
        return await OnTheLoop.open(
            next(self.paths), service="users", shard=shard, owns_slots=owns_slots, read_on_loop_s=self.read_on_loop_s
        )

    async def reopen(self, store: Store) -> Store:
        assert isinstance(store, SqliteStore)
        return await OnTheLoop.open(store.path, service="users", shard=store.identity.shard, create=False)

    def url_of(self, store: Store) -> str:
        assert isinstance(store, SqliteStore)
        return f"sqlite:///{store.path}"

    async def test_own_appends_wake_those_who_wait_without_the_poll(self) -> None:
        """The poll is for the appends of other processes only."""
        store = await SqliteStore.open(next(self.paths), service="users", poll_s=3600)
        waiting = asyncio.ensure_future(store.wait(0, 3600))
        await asyncio.sleep(0)
        async with asyncio.timeout(DEADLINE_S):
            await store.append([one("ada")])
            assert await waiting == 1
        await store.close()

    async def test_appends_elsewhere_wake_those_who_wait(self) -> None:
        """A store that another connection appends to is found out by the poll, by all who wait and again and again."""
        path = next(self.paths)
        here = await SqliteStore.open(path, service="users")
        there = await SqliteStore.open(path, service="users")
        async with asyncio.timeout(DEADLINE_S):
            for n in range(5):
                waiting = [asyncio.ensure_future(here.wait(n, 3600)) for _ in range(10)]
                await there.append([one("ada", n)])
                assert await asyncio.gather(*waiting) == [n + 1] * 10
            assert here._tail._watching is not None
            await here._tail._watching  # it ends when nobody waits
            assert await here.wait(5, 0.001) == 5
            await here._tail._watching
        await here.close()
        await there.close()

    async def test_a_page_of_a_history_costs_the_same_wherever_it_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Imports are found by their place: who copies them page by page does not have all of them read each time."""
        monkeypatch.setattr("evsync.stores.sqlite.store.READ_THREADS", 1)
        source = await SqliteStore.open(next(self.paths), service="users", shard="old")
        store = await SqliteStore.open(next(self.paths), service="users", shard="new", owns_slots=False)
        await source.append([one("ada", 0, 4_000)])
        events = await source.read(0, 4_000)
        slot = events[0].slot
        await store.import_events(events, {slot: History()})

        async def steps(place: Place) -> int:
            counted = itertools.count()
            await store._in_thread(lambda c: c.set_progress_handler(lambda: next(counted) < 0, 10))
            assert len(await store.slot_events([slot], place, 50)) == 50
            return next(counted)

        beginning = await steps((0, 0))
        assert [await steps((0, n)) for n in (1_000, 3_900)] == [pytest.approx(beginning, rel=0.5)] * 2
        await source.close()
        await store.close()


class TestSqliteStoreReadInThreads(TestSqliteStore):
    """The store of a slow disk: nothing is read or written on the event loop."""

    read_on_loop_s = 0.0

    async def test_a_read_that_takes_long_is_moved_to_a_thread(self) -> None:
        """It is broken off, and done once more where it disturbs nobody; the caller sees no difference."""
        store = await SqliteStore.open(next(self.paths), service="users", read_on_loop_s=1e-9)
        wanted = one("ada", 0, 2_000)
        await store.append([wanted])
        assert not _reading_threads()
        assert await store.read_stream("ada") == rows_of(wanted, after=0, incarnation=store.identity.incarnation)
        assert _reading_threads()
        await store.close()
        assert not _reading_threads()


def _reading_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("evsync-read-users")]


async def test_a_slow_disk_moves_commits_off_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits are written on the loop while that is quick; then their successors are, for a while, in the thread."""
    store = await SqliteStore.open(tmp_path / "events.db", service="users")
    queue = GroupCommit(store)
    threads: list[str] = []
    write = store._write

    def noting(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.current_thread().name)
        return write(*arguments, **options)

    monkeypatch.setattr(store, "_write", noting)
    monkeypatch.setattr(pace, "QUICK_S", 60.0)
    await queue.commit(one("a"))
    await queue.commit(one("a", 1))
    assert threads == [threading.main_thread().name] * 2
    monkeypatch.setattr(pace, "QUICK_S", -1.0)
    for n in range(2, 4):
        await queue.commit(one("a", n))
    assert threads[2] == threading.main_thread().name
    assert threads[3].startswith("evsync-write-users")
    await queue.close()
    await store.close()


@pytest.mark.parametrize(("events", "size_bytes"), [(1, 1 << 20), (pace.EVENTS_AT_ONCE + 1, 10)])
async def test_a_large_commit_is_not_made_on_the_event_loop(
    events: int, size_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However quick the disk is: one save may hold tens of thousands of events, or many megabytes."""
    monkeypatch.setattr(pace, "QUICK_S", 60.0)
    store = await SqliteStore.open(tmp_path / "events.db", service="users")
    large = one("a", 0, [event(data=b"x" * size_bytes) for _ in range(events)])
    assert store.append_now([large]) is None
    assert await store.append([large]) == [events]
    assert store.append_now([one("b")]) == [events + 1]
    await store.close()


async def test_few_commits_of_many_bytes_are_folded_in_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write-ahead log grows by bytes, not by commits."""
    monkeypatch.setattr(pace, "QUICK_S", 60.0)
    store = await SqliteStore.open(tmp_path / "events.db", service="users")
    queue = GroupCommit(store)
    for n in range(200):
        await queue.commit(one("a", n, [event(data=b"x" * 200_000)]))
    assert (tmp_path / "events.db-wal").stat().st_size < 3 * pace.BYTES_BETWEEN_CHECKPOINTS
    await queue.close()
    await store.close()


async def test_the_write_ahead_log_is_folded_in_by_the_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits on the event loop never stop to do it, and yet the file does not grow without limit."""
    monkeypatch.setattr(pace, "QUICK_S", 60.0)
    monkeypatch.setattr(pace, "APPENDS_BETWEEN_CHECKPOINTS", 20)
    store = await SqliteStore.open(tmp_path / "events.db", service="users")
    queue = GroupCommit(store)
    sizes = []
    for n in range(400):
        await queue.commit(one("a", n))
        sizes.append((tmp_path / "events.db-wal").stat().st_size)
    assert max(sizes[200:]) == max(sizes[:200]) < 1_000_000
    await queue.close()
    await store.close()


async def test_a_file_that_another_process_holds_is_waited_for_in_the_thread(tmp_path: Path) -> None:
    """The event loop goes on meanwhile."""
    store = await SqliteStore.open(tmp_path / "events.db", service="users")
    with closing(sqlite3.connect(tmp_path / "events.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        queue = GroupCommit(store)
        appending = asyncio.ensure_future(queue.commit(one("a")))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not appending.done()
        other.execute("ROLLBACK")
    assert await appending == 1
    await store.close()
