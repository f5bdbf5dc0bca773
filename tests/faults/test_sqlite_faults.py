"""SQLite stores whose processes are killed, whose disk fails, and that are given what they cannot hold."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import sys
from asyncio.subprocess import PIPE
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evsync.errors import (
    EncodingError,
    OutcomeUnknown,
    StoreFull,
    StoreUnavailable,
)
from evsync.records import Append, Commit
from evsync.stores.group_commit import GroupCommit
from evsync.stores.sqlite.errors import translated
from evsync.stores.sqlite.store import SqliteStore
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
    arguments = "evsync.opening:open_store", f"sqlite:///{path}", "users", "main", name, "1000000"
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


async def test_a_cancelled_append_that_had_not_begun_is_taken_back(tmp_path: Path) -> None:
    """One that waits for the lock is carried out, and wakes those who wait; one that waits behind it is not."""
    store = await opened(tmp_path / "events.db", poll_s=3600)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waiting = asyncio.ensure_future(store.wait(0, 3600))
    begun = asyncio.ensure_future(store.append([one("begun", 0, 2)]))
    await asyncio.sleep(0)
    while not store._writer._jobs.empty():  # until the thread has taken it
        await asyncio.sleep(0)
    behind = asyncio.ensure_future(store.append([one("behind")]))
    await asyncio.sleep(0)
    begun.cancel()
    behind.cancel()
    await asyncio.gather(begun, behind, return_exceptions=True)
    other.execute("ROLLBACK")
    other.close()
    async with asyncio.timeout(DEADLINE_S):
        assert await waiting == 2
        assert await store.append([one("after")]) == [3]
    assert [e.stream for e in await whole_log(store)] == ["begun", "begun", "after"]
    await store.close()


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


async def test_a_commit_is_on_the_disk_when_it_returns(tmp_path: Path) -> None:
    """The connection that writes fsyncs the write-ahead log at each commit (2 is FULL: https://sqlite.org/pragma.html)."""
    store = await opened(tmp_path / "events.db")
    for pragma, value in (("journal_mode", "wal"), ("synchronous", 2)):
        statement = f"PRAGMA {pragma}"
        assert await store._writer.run(partial(_value_of, statement)) == value
    await store.close()


def _value_of(statement: str, connection: sqlite3.Connection) -> Any:
    return connection.execute(statement).fetchone()[0]


FAIL_IN_COMMIT = """
import asyncio, json, resource, signal, sys
from pathlib import Path
from evsync.errors import OutcomeUnknown
from evsync.records import command_of
from evsync.stores.sqlite.store import SqliteStore
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


FULL_OF_FILE = """
import asyncio, json, resource, signal, sys
from evsync.errors import EvsyncError
from evsync.stores.sqlite.store import SqliteStore
from evsync.testing.contracts.samples import event, one
from pathlib import Path

async def main() -> None:
    store = await SqliteStore.open(Path(sys.argv[1]), service="users")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    stored = 0
    try:
        while True:
            await store.append([one("ada", stored, [event(data=b"x" * 20_000)])])
            stored += 1
    except EvsyncError as e:
        print(json.dumps([type(e).__name__, str(e), stored, await store.head()]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await store.close()

asyncio.run(main())
"""


async def test_a_limit_that_looks_like_a_failing_disk_is_named(tmp_path: Path) -> None:
    """SQLite says "disk I/O error" of a quota and of a limit on files; the text says where to look."""
    kind, text, stored, head = await run_python(FULL_OF_FILE, tmp_path / "events.db")
    assert (kind, head) == ("OutcomeUnknown", stored)
    assert "a quota of it ended, in the middle of a commit (disk I/O error)" in text


def test_an_io_error_on_a_full_disk_is_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What beside the file could not grow for want of room is told as that."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMSIZE
    assert isinstance(translated(error, tmp_path / "events.db"), StoreUnavailable)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=4_096))
    assert isinstance(found := translated(error, tmp_path / "events.db"), StoreFull)
    assert "the disk" in str(found)


async def test_a_close_that_is_cancelled_leaves_no_thread(tmp_path: Path) -> None:
    """Wherever it waits: the threads carry out what they have, close their connections, and end."""
    for waits, watched in product(range(5), (False, True)):
        store = await opened(tmp_path / f"{waits}-{watched}.db")
        await store.append([one("ada")])
        await asyncio.gather(store._readers.run(lambda c: None), store._writer.run(lambda c: None))
        threads = [*store._readers._threads, *store._writer._threads]
        assert threads
        waiting = [asyncio.create_task(store.wait(1, DEADLINE_S)) for _ in range(watched)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(store.close())
        for _ in range(waits):
            await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        if waits:  # else it had not begun
            for thread in threads:
                await asyncio.to_thread(thread.join, DEADLINE_S)
            assert not any(thread.is_alive() for thread in threads)
        await store.close()
        await asyncio.gather(*waiting, return_exceptions=True)


class _FailingDisk(sqlite3.Connection):
    """A connection that can neither commit nor roll back."""

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        if arguments[0] in ("COMMIT", "ROLLBACK"):
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error
        return super().execute(*arguments)


async def test_a_disk_that_fails_a_commit_on_the_event_loop_stops_no_later_one(tmp_path: Path) -> None:
    """Its outcome is said to be unknown, it is not sent again, and the file is not left locked."""
    path = tmp_path / "events.db"
    store = await opened(path)
    assert store._writer_here is not None
    store._writer_here.close()
    store._writer_here = sqlite3.connect(path, isolation_level=None, factory=_FailingDisk, check_same_thread=False)
    queue = GroupCommit(store)
    with pytest.raises(OutcomeUnknown):
        await queue.commit(one("ada"))
    assert await queue.commit(one("bob")) == 1
    assert await queue.commit(one("ada")) == 2
    await queue.close()
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
