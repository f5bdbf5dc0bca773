"""SQLite stores whose processes are killed, whose disk fails, and whose files are not what they should be."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sqlite3
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evsync.errors import (
    ConfigurationError,
    EncodingError,
    EvsyncError,
    StoreFull,
    StoreUnavailable,
    WrongStore,
)
from evsync.records import Append, Commit
from evsync.stores.group_commit import GroupCommit
from evsync.stores.sqlite import SqliteStore
from evsync.testing.contracts.appender import SHARED
from evsync.testing.contracts.case import DEADLINE_S
from evsync.testing.contracts.samples import append, check_log, commit, event, one, reaction, whole_log

pytestmark = pytest.mark.anyio


async def opened(path: Path, **options: Any) -> SqliteStore:
    return await SqliteStore.open(path, service="users", **options)


async def run_python(code: str, *arguments: object) -> Any:
    """Run a script in a process of its own; returns the JSON of its last line."""
    words = [sys.executable, "-c", code, *map(str, arguments)]
    process = await asyncio.create_subprocess_exec(*words, stdout=PIPE, stderr=PIPE)
    try:
        async with asyncio.timeout(DEADLINE_S):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    return json.loads(output.splitlines()[-1])


# ---- processes


async def test_acknowledged_commits_survive_kill_9(tmp_path: Path) -> None:
    """Two processes append to one file and are killed in the middle, again and again: every acknowledged commit is
    there at its position, none is there in part, none twice, and the log has no gap."""
    path = tmp_path / "events.db"
    acknowledged: dict[str, int] = {}
    for kill_after in (1, 40, 12, 70):
        processes = [await _appender(path, name) for name in ("ann", "ben")]
        try:
            async with asyncio.timeout(DEADLINE_S):
                await _lines(processes[0], kill_after, acknowledged)
        finally:
            for process in processes:
                process.send_signal(signal.SIGKILL)
        for process in processes:
            await _lines(process, None, acknowledged)
            assert await process.wait() == -signal.SIGKILL
    store = await opened(path)
    found = check_log(await whole_log(store))
    for command, position in acknowledged.items():
        rows = found[bytes.fromhex(command)]
        assert [e.stream for e in rows[1:]] == [SHARED, SHARED]
        assert rows[-1].position == position
    assert len(acknowledged) >= 123
    # A commit whose acknowledgement the kill took with it may be there; one per process and kill at most.
    assert len(found) <= len(acknowledged) + 8
    assert await store.append([one("after")]) == [await store.head()]
    await store.close()


async def _appender(path: Path, name: str) -> asyncio.subprocess.Process:
    arguments = "evsync.stores:open_store", f"sqlite:///{path}", "users", "main", name, "1000000"
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "evsync.testing.contracts.appender", *arguments, stdout=PIPE
    )


async def _lines(process: asyncio.subprocess.Process, count: int | None, acknowledged: dict[str, int]) -> None:
    """Take so many acknowledgements, or all that there are."""
    assert process.stdout is not None
    while (count is None or count > 0) and (line := await process.stdout.readline()).endswith(b"\n"):
        command, position = line.decode().split()
        acknowledged[command] = int(position)
        count = None if count is None else count - 1
    assert not count, "the process ended early"


OPEN_AND_APPEND = """
import asyncio, sys
from evsync.stores.sqlite import SqliteStore
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


async def test_another_process_that_holds_the_file_is_waited_for(tmp_path: Path) -> None:
    """An append waits until the lock is free; when its patience is at an end nothing is stored, and it says so."""
    path = tmp_path / "events.db"
    patient, hasty = await opened(path), await opened(path, patience_s=0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match=r"locked by another connection.*nothing was stored"):
        await hasty.append([one("ada")])
    waiting = asyncio.ensure_future(patient.append([one("bob")]))
    assert await hasty.head() == 0  # reading goes on meanwhile
    other.execute("ROLLBACK")
    other.close()
    assert await waiting == [1]
    assert await hasty.append([one("ada")]) == [2]
    await patient.close()
    await hasty.close()


# ---- the disk


async def test_a_full_disk_loses_nothing_and_passes(tmp_path: Path) -> None:
    """StoreFull: nothing of the whole call is stored, reading works, and appending does as soon as there is room."""
    store = await opened(tmp_path / "events.db")
    big = event(data=b"x" * 50_000)
    await store.append([one("ada", 0, [big])])

    async def limit(pages: int) -> None:
        await store._writer.run(lambda c: c.execute(f"PRAGMA max_page_count = {pages}").fetchone())

    await limit(30)
    stored = 1

    async def fill() -> None:
        nonlocal stored
        while True:
            await store.append([one("ada", stored, [big])])
            stored += 1

    with pytest.raises(StoreFull, match=r"full.*nothing was stored.*room"):
        await fill()
    for _ in range(3):
        with pytest.raises(StoreFull):
            await store.append([reaction("billing", 7, append("bob")), one("cy"), one("ada", stored, [big, big])])
    assert [e.version for e in await store.read_stream("ada")] == list(range(1, stored + 1))
    assert await store.head() == stored
    assert await store.read_stream("bob") == []
    assert await store.checkpoints("billing") == []
    await limit(1_000_000)
    assert await store.append([one("ada", stored, [big, big])]) == [stored + 2]
    check_log(await whole_log(store))
    await store.close()


FAIL_IN_COMMIT = """
import asyncio, json, resource, signal, sys
from pathlib import Path
from evsync.errors import OutcomeUnknown
from evsync.records import command_of
from evsync.stores.sqlite import SqliteStore
from evsync.testing.contracts.samples import event, one

async def main(path):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store = await SqliteStore.open(path, service="users")
    await store.append([one("ada")])
    wal = Path(path + "-wal").stat().st_size
    # From here on a file may not grow by more than a few pages: writing the commit fails half way.
    resource.setrlimit(resource.RLIMIT_FSIZE, (wal + 10_000, resource.RLIM_INFINITY))
    failing = one("ada", 1, [event(data=b"x" * 30_000)])
    try:
        await store.append([failing])
        outcome = "stored"
    except OutcomeUnknown as e:
        outcome = str(e)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    found = any(command_of(e.id) == failing.command for e in await store.read_stream("ada"))
    again = (await store.append([failing]))[0]
    await store.close()
    print(json.dumps([outcome, found, again]))

asyncio.run(main(sys.argv[1]))
"""


async def test_a_disk_that_fails_within_a_commit_leaves_its_outcome_unknown(tmp_path: Path) -> None:
    """The error says to look for the command; what is found is the truth, and the store goes on."""
    path = tmp_path / "events.db"
    outcome, found, again = await run_python(FAIL_IN_COMMIT, path)
    assert "may or may not be stored" in outcome
    assert "command's id" in outcome
    assert (found, again) == (False, 2)
    store = await opened(path)
    assert [e.version for e in await store.read_stream("ada")] == [1, 2]
    await store.close()


async def test_a_file_that_is_replaced_while_open_is_noticed(tmp_path: Path) -> None:
    """Commits to a file that no longer has its name would be lost with it; none is accepted."""
    path = tmp_path / "events.db"
    store = await opened(path)
    await store.append([one("ada")])
    path.rename(tmp_path / "moved.db")
    with pytest.raises(StoreUnavailable, match="moved or replaced"):
        await store.append([one("ada", 1)])
    (tmp_path / "moved.db").rename(path)
    assert await store.append([one("ada", 1)]) == [2]
    await store.close()


# ---- values


@pytest.mark.parametrize(
    "broken",
    [
        commit(Append("ada\ud800", 3, 0, [event()])),
        one("ada", 0, [event(type="a.B.\udfff")]),
        one("ada", 0, [event()._replace(time_us=2**63)]),
        one("ada", 0, [event()._replace(meta={"not": "text"})]),  # type: ignore[arg-type]  # which is the point
    ],
    ids=["stream", "type", "time", "meta"],
)
async def test_a_value_that_cannot_be_stored_fails_its_own_commit(tmp_path: Path, broken: Commit) -> None:
    """The others of its group are stored, and the one that is not says why."""
    store = await opened(tmp_path / "events.db")
    queue = GroupCommit(store)
    outcomes = await asyncio.gather(
        *(queue.commit(c) for c in (one("bob"), broken, one("cy"), one("dora"))), return_exceptions=True
    )
    assert [type(o) for o in outcomes] == [int, EncodingError, int, int]
    assert "nothing was stored" in str(outcomes[1])
    assert [e.stream for e in await whole_log(store)] == ["bob", "cy", "dora"]
    await queue.close()
    await store.close()


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
        for page in range(5, size // 4096):
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
    await store.append([commit(append("ada"))])
    await store.close()
    assert not path.with_name("events.db-wal").exists(), "closing folds the write-ahead log into the file"
