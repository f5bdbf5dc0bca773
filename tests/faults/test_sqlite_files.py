"""Opening SQLite stores: many at once, and files that are not what they should be."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evsync.errors import ConfigurationError, EvsyncError, StoreUnavailable, WrongStore
from evsync.records import LogIdentity, new_incarnation
from evsync.stores.sqlite import schema as sqlite_schema
from evsync.stores.sqlite.errors import is_busy
from evsync.stores.sqlite.store import SqliteStore
from evsync.testing.contracts.case import DEADLINE_S
from evsync.testing.contracts.samples import event, one, whole_log

pytestmark = pytest.mark.anyio


async def opened(path: Path, **options: Any) -> SqliteStore:
    return await SqliteStore.open(path, service="users", **options)


# ---- several at once


class _Interrupted(sqlite3.Connection):
    """A connection before whose n-th statement something else happens."""

    statements = 0
    before: tuple[int, Callable[[], object]] = 0, lambda: None

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        self.statements += 1
        if self.statements == self.before[0]:
            self.before[1]()
        return super().execute(*arguments)


def _prepared(connection: sqlite3.Connection, path: Path) -> LogIdentity:
    new = LogIdentity("users", "main", new_incarnation())
    return sqlite_schema.prepare(connection, path, new, create=True, owns_slots=True, patience_s=0.0)


def _opened_elsewhere(path: Path) -> LogIdentity | None:
    """The store as another process opens it, or None while it is locked."""
    with contextlib.closing(sqlite_schema.connect(path, create=True, timeout_s=0)) as connection:
        try:
            return _prepared(connection, path)
        except sqlite3.OperationalError as e:
            if is_busy(e):
                return None
            raise


def test_another_process_may_open_the_store_between_any_two_steps(tmp_path: Path) -> None:
    """Whatever the moment at which the other one makes the tables or finds them: both have the same log."""
    at, statements = 0, 1
    while at < statements:
        at += 1
        here, elsewhere, statements = _opened_around(tmp_path / f"events{at}.db", at)
        assert elsewhere in (None, here)
    assert at > 8, "the steps were not counted"


def _opened_around(path: Path, at: int) -> tuple[LogIdentity, LogIdentity | None, int]:
    """The store as opened here, as another process opened it before statement `at`, and how many statements it took."""
    elsewhere: list[LogIdentity | None] = []
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, factory=_Interrupted)) as connection:
        connection.before = at, lambda: elsewhere.append(_opened_elsewhere(path))
        here = _prepared(connection, path)
    assert len(elsewhere) == 1
    assert _opened_elsewhere(path) == here
    return here, elsewhere[0], connection.statements


OPEN_AND_APPEND = """
import asyncio, sys
from evsync.stores.sqlite.store import SqliteStore
from evsync.stores.sqlite.errors import is_busy
from evsync.testing.contracts.samples import one

async def main(name):
    print("ready", flush=True)
    for line in sys.stdin:
        store = await SqliteStore.open(line.rstrip(), service="users")
        (position,) = await store.append([one(name)])
        await store.close()
        print(store.identity.incarnation, position, flush=True)

asyncio.run(main(sys.argv[1]))
"""


async def test_processes_that_start_at_once_make_one_store(tmp_path: Path) -> None:
    """One makes the tables, the others find them: all of them have the same log."""
    words = [sys.executable, "-c", OPEN_AND_APPEND]
    processes = [
        await asyncio.create_subprocess_exec(*words, name, stdin=PIPE, stdout=PIPE) for name in ("a", "b", "c", "d")
    ]

    async def answers() -> list[list[str]]:
        lines = [await p.stdout.readline() for p in processes if p.stdout is not None]
        return [line.decode().split() for line in lines]

    try:
        async with asyncio.timeout(DEADLINE_S):
            assert await answers() == [["ready"]] * 4
            for turn in range(10):
                for process in processes:
                    assert process.stdin is not None
                    process.stdin.write(f"{tmp_path}/events{turn}.db\n".encode())
                results = await answers()
                assert len({incarnation for incarnation, _ in results}) == 1
                assert sorted(position for _, position in results) == ["1", "2", "3", "4"]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


# ---- files that are not what they should be


async def _refused(path: Path, error: type[EvsyncError], match: str, **options: Any) -> None:
    """Opening the file raises the error and leaves the file as it is."""
    before = _content(path)
    with pytest.raises(error, match=match):
        await SqliteStore.open(path, **{"service": "users", **options})
    assert _content(path) == before


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


async def test_a_store_of_another_service_or_shard_is_refused(tmp_path: Path) -> None:
    """The error names both, and the file is untouched."""
    path = tmp_path / "events.db"
    await (await opened(path)).close()
    await _refused(path, WrongStore, "service 'users'.*opened for service 'orders'", service="orders")
    await _refused(path, WrongStore, "shard 'main'.*opened for service 'users', shard 'east'", shard="east")


async def test_a_store_of_a_newer_evsync_is_refused(tmp_path: Path) -> None:
    """Even if nothing is left of the columns that this one knows but the number of the schema."""
    path = tmp_path / "events.db"
    await (await opened(path)).close()
    with sqlite3.connect(path) as c:
        c.execute("UPDATE log SET schema = 2")
        c.execute("ALTER TABLE log RENAME COLUMN service TO owner")
    c.close()
    await _refused(path, WrongStore, "newer evsync.*Install")


def _text(path: Path) -> None:
    path.write_text("this is not a database, but it is longer than the header of one" * 50)


def _other_database(path: Path) -> None:
    with sqlite3.connect(path) as c:
        c.execute("CREATE TABLE customers (id INTEGER)")
    c.close()


@pytest.mark.parametrize(("make", "match"), [(_text, "not an SQLite database"), (_other_database, "something else")])
async def test_a_file_that_is_no_store_is_refused(tmp_path: Path, make: Callable[[Path], None], match: str) -> None:
    """Text, or the database of somebody else: refused, and not a byte of it changed."""
    path = tmp_path / "events.db"
    make(path)
    await _refused(path, WrongStore, match)
    await _refused(path, WrongStore, match, create=False)


async def test_a_damaged_file_is_reported_where_it_is_met(tmp_path: Path) -> None:
    """Reading and appending say that the file is damaged, which one it is, and that a backup is needed."""
    path = tmp_path / "events.db"
    store = await opened(path)
    await store.append([one(f"user{i}", 0, [event(data=b"x" * 500)]) for i in range(200)])
    await store.close()
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        for page in range(16, size // 4096):  # behind the first page of every table
            file.seek(page * 4096)
            file.write(b"\xde\xad\xbe\xef" * 1024)
    for read_on_loop_s in (1.0, 0.0):
        store = await opened(path, read_on_loop_s=read_on_loop_s)
        with pytest.raises(WrongStore, match=r"events\.db is damaged.*backup"):
            await whole_log(store)
        with pytest.raises(WrongStore, match=r"events\.db is damaged.*backup"):
            await store.append([one(f"user{i}", 1) for i in range(200)])
        await store.close()


async def test_a_path_that_cannot_be_is_explained(tmp_path: Path) -> None:
    """A missing directory, a directory, a file in a file, a NUL: what to do is in the error."""
    await _refused(tmp_path, ConfigurationError, "is a directory")
    await _refused(tmp_path / "missing" / "events.db", ConfigurationError, "no directory.*Create it first")
    (tmp_path / "file").touch()
    await _refused(tmp_path / "file" / "events.db", ConfigurationError, "no directory")
    with pytest.raises(ConfigurationError, match="NUL"):
        await SqliteStore.open(str(tmp_path / "a\0b"), service="users")
    with pytest.raises(ConfigurationError, match="service"):
        await SqliteStore.open(tmp_path / "events.db", service="Not A Name")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a directory that even root cannot write to")
async def test_a_directory_that_cannot_be_written_is_explained() -> None:
    """SQLite's 'unable to open database file' becomes the reason and the remedy."""
    with pytest.raises(StoreUnavailable, match="right to write both the file and its directory"):
        await SqliteStore.open("/proc/evsync.db", service="users")


async def test_only_a_store_that_exists_is_opened_without_create(tmp_path: Path) -> None:
    """A reader of another service's store does not make one: it is told that there is none yet."""
    path = tmp_path / "events.db"
    await _refused(path, StoreUnavailable, "no store at", create=False)
    assert not path.exists()
    path.touch()
    await _refused(path, StoreUnavailable, "still empty", create=False)
    await (await opened(path)).close()  # an empty file is a new database
    await (await opened(path, create=False)).close()


async def test_the_number_of_slots_is_chosen_once(tmp_path: Path) -> None:
    """An existing store keeps the slots it was made with, whatever it is opened with."""
    path = tmp_path / "events.db"
    store = await opened(path, slots=64)
    incarnation = store.identity.incarnation
    await store.close()
    store = await opened(path)
    assert (store.identity.slots, store.identity.incarnation) == (64, incarnation)
    await store.append([one("ada")])
    await store.close()
    assert not path.with_name("events.db-wal").exists(), "closing folds the write-ahead log into the file"
