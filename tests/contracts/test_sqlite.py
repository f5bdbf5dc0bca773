"""The SQLite store keeps the laws, whichever way it reads."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from evsync.ports import Store
from evsync.stores import sqlite as sqlite_module
from evsync.stores.sqlite import SqliteStore
from evsync.testing.contracts import EventLogContract, EventStoreContract
from evsync.testing.contracts.case import DEADLINE_S
from evsync.testing.contracts.samples import one, rows_of

pytestmark = pytest.mark.anyio


class TestSqliteStore(EventStoreContract, EventLogContract):
    read_on_loop_s = 1.0

    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self.paths = (tmp_path / f"events{n}.db" for n in itertools.count())

    async def new_store(self) -> Store:
        return await SqliteStore.open(next(self.paths), service="users", read_on_loop_s=self.read_on_loop_s)

    async def reopen(self, store: Store) -> Store:
        assert isinstance(store, SqliteStore)
        return await SqliteStore.open(store.path, service="users", create=False)

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
            assert here._poller is not None
            await here._poller  # it ends when nobody waits
            assert await here.wait(5, 0.001) == 5
            await here._poller
        await here.close()
        await there.close()


class TestSqliteStoreReadInThreads(TestSqliteStore):
    """The store of a slow disk: nothing is read on the event loop."""

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


async def test_a_slow_disk_moves_single_commits_off_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit is written on the loop as long as that is quick; one that was not sends its successors to the thread."""
    store = await SqliteStore.open(tmp_path / "events.db", service="users")
    threads: list[str] = []
    write = store._write

    def noting(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.current_thread().name)
        return write(*arguments, **options)

    monkeypatch.setattr(store, "_write", noting)
    monkeypatch.setattr(sqlite_module, "QUICK_S", 60.0)
    await store.append([one("a")])
    monkeypatch.setattr(sqlite_module, "QUICK_S", -1.0)
    for n in range(1, 3):
        await store.append([one("a", n)])
    assert threads[:2] == [threading.main_thread().name] * 2
    assert threads[2].startswith("evsync-write-users")
    await store.close()


async def test_a_file_that_another_process_holds_is_waited_for_in_the_thread(tmp_path: Path) -> None:
    """The event loop goes on meanwhile."""
    store = await SqliteStore.open(tmp_path / "events.db", service="users")
    with closing(sqlite3.connect(tmp_path / "events.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        appending = asyncio.ensure_future(store.append([one("a")]))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not appending.done()
        other.execute("ROLLBACK")
    assert await appending == [1]
    await store.close()
