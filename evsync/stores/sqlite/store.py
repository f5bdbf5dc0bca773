"""An event store in an SQLite file: durable, for as many processes as share the file on one machine.

Appends run in a thread of their own, which waits for locks and for the disk; small ones are written on the event loop
while the disk is quick. A write is a handful of statements, whatever the number of events,
because each statement lets go of the GIL and must get it back: beside an event loop that is busy, a statement per row
would wait its 5 ms (sys.getswitchinterval) for every row.

For the same reason reads run on the event loop itself, in slices of a millisecond or so: fetching rows in a thread
hands the GIL over once per row. A read that does not come back in time (a cold file on a slow disk) is broken off and
done in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from evsync.errors import Conflict, OutcomeUnknown, StoreError, StoreUnavailable
from evsync.ports import Capabilities, Share
from evsync.records import (
    Change,
    Commit,
    LogIdentity,
    Snapshot,
    StoredEvent,
    as_stored_event,
    check_name,
    new_incarnation,
)
from evsync.sharding.slots import SLOTS
from evsync.stores.database import OWN_RANGE
from evsync.stores.plan import Place, doubtful, keys_of, plan, streams_of
from evsync.stores.sqlite import schema, statements
from evsync.stores.sqlite.errors import BUSY, FAILURES, is_busy, primary_code, translated
from evsync.stores.sqlite.pace import Pace
from evsync.stores.sqlite.slots import MovableSlots
from evsync.stores.sqlite.threads import ConnectionThreads, rolled_back

T = TypeVar("T")

ROWS_PER_READ = 512
"""Rows that are read without a pause for the event loop: about a millisecond."""
READ_THREADS = 2


class SqliteStore(MovableSlots):
    """An EventStore and EventLog in one SQLite file (write-ahead log, fsync at each commit).

    Made by `open`. Belongs to the event loop it was opened in. Any number of processes of one machine may have the
    same file open and append to it; a network share will not do, SQLite's locks and shared memory do not work there.
    """

    capabilities = Capabilities(given_versions=True)
    reads, kind = statements.READS, "SQLite"

    @classmethod
    async def open(
        cls,
        path: str | os.PathLike[str],
        *,
        service: str,
        shard: str = "main",
        slots: int = SLOTS,
        create: bool = True,
        owns_slots: bool = True,
        patience_s: float = 10.0,
        poll_s: float = 0.025,
        read_on_loop_s: float = 0.005,
    ) -> SqliteStore:
        """The store in the file at `path`, which is made if `create` allows it.

        `slots` counts for a new store only: an existing one keeps what it was made with (see `identity`); so does
        `owns_slots`: whether all slots are open in it, as in the first shard of a service, or none.
        `patience_s` is how long an append waits for another process to release the file before StoreUnavailable;
        `poll_s` how often `wait` looks for the appends of other processes; `read_on_loop_s` after how long a read is
        taken off the event loop (0: everything in threads, appends too).

        Raises ConfigurationError for a path or name that cannot be right, WrongStore for a file that is another
        service's or shard's store, was written by a newer evsync, is damaged, or is not a store at all,
        StoreUnavailable if it cannot be opened, or is not there and `create` is False.
        """
        check_name("service", service)
        check_name("shard", shard)
        file = schema.check_path(path, create=create)
        new = LogIdentity(service, shard, new_incarnation(), slots)

        def connect() -> sqlite3.Connection:
            return schema.patiently(lambda: schema.connect(file, create=create, timeout_s=0), patience_s)

        def prepare(c: sqlite3.Connection) -> tuple[LogIdentity, int, sqlite3.Connection, sqlite3.Connection]:
            identity = schema.prepare(c, file, new, create=create, owns_slots=owns_slots, patience_s=patience_s)
            (moves,) = c.execute(statements.READS.moves).fetchone()
            reader = schema.patiently(lambda: schema.connect_to_read(file, timeout_s=0), patience_s)
            return identity, moves, reader, schema.patiently(lambda: schema.connect_to_write(file), patience_s)

        writer = ConnectionThreads(connect, file, threads=1, name=f"evsync-write-{service}")
        try:
            identity, moves, reader, here = await writer.run(prepare)
        except BaseException:
            await writer.close()
            raise
        return cls(file, identity, moves, writer, here, reader, patience_s, poll_s, read_on_loop_s)

    def __init__(
        self,
        path: Path,
        identity: LogIdentity,
        moves: int,
        writer: ConnectionThreads,
        writer_here: sqlite3.Connection,
        reader: sqlite3.Connection,
        patience_s: float,
        poll_s: float,
        read_on_loop_s: float,
    ) -> None:
        """For `open`, which everybody else uses."""
        super().__init__(identity, str(path), moves)
        self.path, self._file = path, _file_id(str(path))
        self._patience_s, self._poll_s, self._read_on_loop_s = patience_s, poll_s, read_on_loop_s
        self._writer, self._reader = writer, reader
        self._writer_here: sqlite3.Connection | None = writer_here
        self._pace = Pace(on_loop=read_on_loop_s > 0)
        self._checkpointing: asyncio.Task[None] | None = None
        self._readers = ConnectionThreads(
            lambda: schema.connect_to_read(path, timeout_s=patience_s),
            path,
            threads=READ_THREADS,
            name=f"evsync-read-{identity.service}",
        )

    # ---- EventStore

    async def append(self, commits: Sequence[Commit]) -> list[int | Conflict]:
        """Append each commit, all of it or none, in one transaction; see `EventStore.append`.

        When it returns, the events are on the disk. A caller that is cancelled leaves the append carried out, or not
        begun. Raises StoreFull, StoreUnavailable, WrongStore (a damaged file) or EncodingError (a value that SQLite
        cannot hold) when nothing of the whole call was stored, OutcomeUnknown when that cannot be told.
        """
        self._check_open()
        if not commits:
            return []
        written = await self._writer.run(partial(self._write, commits), then=lambda w: self._tail.moved(w.head))
        return written.outcomes

    def append_now(self, commits: Sequence[Commit]) -> list[int | Conflict] | None:
        """`append` on the event loop, or None, and nothing stored, where it is better done in the writer's thread.

        The way to a thread and back takes as long as the fsync of a good disk. So a few commits are written here as
        long as the disk is quick and nobody holds the file; many events, or large ones, go to the thread.
        """
        self._check_open()
        c, began = self._writer_here, time.monotonic()
        if c is None:  # the one before could not let go of its transaction
            return None
        if self._checkpointing is not None or not self._pace.allows(commits, began):
            return None
        try:
            written = self._write(commits, c, patience_s=0)
        except FAILURES as e:
            if is_busy(e):
                return None
            raise translated(e, self.path) from e
        finally:
            if c.in_transaction:
                self._writer_here = rolled_back(c)
            self._pace.took(began, time.monotonic())
        if self._pace.checkpoint_due():
            self._checkpointing = asyncio.get_running_loop().create_task(self._checkpoint())
        self._tail.moved(written.head)
        return written.outcomes

    async def _checkpoint(self) -> None:
        """Fold the write-ahead log into the database, in the writer's thread; appends wait in line there meanwhile.

        Left to SQLite, it would be done by whoever makes the commit that is one too many, on the event loop.
        """
        try:
            with contextlib.suppress(StoreError):  # a commit in the thread will try again
                await self._writer.run(lambda c: c.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall())
        finally:
            self._checkpointing = None

    async def read_stream(
        self, stream: str, *, after_version: int = 0, to_version: int | None = None
    ) -> list[StoredEvent]:
        """The events of a stream with `after_version < version <= to_version`, in order; [] if there are none."""
        until = statements.MANY if to_version is None else to_version
        text = statements.READ_STREAM[self._moved]
        return list(map(as_stored_event, await self._rows(text, 2, after_version, statements.MANY, stream, until)))

    async def read_changes(
        self, stream: str, *, after_version: int = 0, to_version: int | None = None
    ) -> AsyncIterator[Sequence[Change]]:
        """The same events in slices, as little of them as a fold needs."""
        until = statements.MANY if to_version is None else to_version
        text = statements.READ_CHANGES[self._moved]
        while changes := await self._fetch(text, (after_version, ROWS_PER_READ, stream, until)):
            yield changes
            if len(changes) < ROWS_PER_READ:
                return
            after_version = changes[-1][1]
            await asyncio.sleep(0)

    async def put_snapshot(self, snapshot: Snapshot) -> None:
        """Keep it in place of an older one, or one of another shape. Waits in line with appends."""
        self._check_open()
        await self._writer.run(partial(self._keep, snapshot))

    async def close(self) -> None:
        """Carry out what was begun, then release everything. Calling twice is fine."""
        if self._closed:
            return
        self._closed = True
        for here in filter(None, (self._reader, self._writer_here)):
            here.close()
        try:
            await self._tail.close(self._closed_error())
            await self._readers.close()
            if self._checkpointing is not None:
                await asyncio.wait([self._checkpointing])
            await self._writer.close()  # last: the last connection to a file folds the write-ahead log into it
        finally:
            for threads in (self._readers, self._writer):  # whoever is cancelled here leaves none behind
                threads.end()

    # ---- EventLog

    async def _log(self, after: int, limit: int) -> list[StoredEvent]:
        return list(map(as_stored_event, await self._rows(statements.READ_LOG, 0, after, limit)))

    async def _of_share(self, after: int, limit: int, share: Share) -> list[StoredEvent]:
        end = await self._fetch(statements.END_OF_STRETCH, (after, after + limit, *OWN_RANGE))
        read = statements.read_share(share)
        return list(map(as_stored_event, await self._rows(read, 0, after, statements.MANY, *end[0]))) if end else []

    async def _others(self, after: int, end: int, share: Share) -> int:
        ((count,),) = await self._fetch(statements.count_others(share), (after, end))
        return int(count)

    async def _watch(self) -> None:
        """One poll for all who wait, which ends when nobody does."""
        try:
            while self._tail.awaited:
                self._tail.moved(await self.head())
                await asyncio.sleep(self._poll_s)
        except StoreError as e:
            self._tail.failed(e)

    # ---- Inspectable

    async def _size_bytes(self) -> int:
        files = (self.path, self.path.with_name(f"{self.path.name}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    async def self_check(self) -> Sequence[str]:
        """What SQLite finds wrong with the file, its indexes included; the first few things. Reads all of it."""
        found = await self._in_thread(lambda c: c.execute("PRAGMA integrity_check(5)").fetchall())
        return [text for (text,) in found if text != "ok"]

    # ---- reading

    async def _rows(self, sql: str, key: int, after: int, limit: int, *where: Any) -> list[Any]:
        """Up to `limit` rows whose column number `key` is beyond `after`.

        In slices, each a query of its own: a cursor that stayed open while the event loop runs would keep later reads
        of the same connection from seeing what was appended since.
        """
        rows: list[Any] = []
        while True:
            asked = min(limit - len(rows), ROWS_PER_READ)
            part = await self._fetch(sql, (after, asked, *where))
            rows += part
            if len(part) < asked or len(rows) == limit:
                return rows
            after = part[-1][key]
            await asyncio.sleep(0)

    async def _fetch(self, text: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
        """All rows of a query: read here and now if that goes quickly, else in a thread."""
        self._check_open()
        try:
            if self._read_on_loop_s > 0 and (rows := self._fetch_now(text, parameters)) is not None:
                return rows
        except FAILURES as e:
            raise translated(e, self.path) from e
        return await self._in_thread(lambda c: c.execute(text, parameters).fetchall())

    async def _in_thread(self, read: Callable[[sqlite3.Connection], T]) -> T:
        self._check_open()
        return await self._readers.run(read)

    def _fetch_now(self, sql: str, parameters: tuple[Any, ...]) -> list[Any] | None:
        """The rows, or None if they did not come in time or a lock was in the way."""
        deadline = time.monotonic() + self._read_on_loop_s
        # Asked every 1,000 steps of SQLite's machine, which is about every fiftieth row.
        self._reader.set_progress_handler(lambda: time.monotonic() > deadline, 1_000)
        try:
            return self._reader.execute(sql, parameters).fetchall()
        except sqlite3.OperationalError as e:
            if primary_code(e) in BUSY or primary_code(e) == sqlite3.SQLITE_INTERRUPT:
                return None
            raise

    # ---- writing

    def _write(self, commits: Sequence[Commit], c: sqlite3.Connection, *, patience_s: float | None = None) -> _Written:
        self._begin(c, self._patience_s if patience_s is None else patience_s)
        streams, keys = streams_of(commits), keys_of(commits)
        head, moves, versions = self._versions(c, streams)
        slots = self._states(c, moves) if moves else None
        positions = statements.look_up(c, statements.CHECKPOINT, keys)[2] if keys else []
        known = dict(zip(streams, versions, strict=True)), dict(zip(keys, positions, strict=True))
        taken: Collection[Place] = ()
        if doubts := doubtful(commits, known[0]):
            if moves:
                found = statements.look_up(c, statements.TAKEN_MOVED, [place * 2 for place in doubts])[2]
            else:
                found = statements.look_up(c, statements.TAKEN, doubts)[2]
            taken = {place for place, is_taken in zip(doubts, found, strict=True) if is_taken}
        planned = plan(self.identity, head, *known, commits, taken, slots)
        if planned.rows or planned.checkpoints:
            statements.insert(c, planned.rows)
            for (follower, _, _), checkpoint in planned.checkpoints.items():
                statements.store_checkpoint(c, follower, checkpoint)
            self._commit(c)
        return _Written(planned.outcomes, planned.head)  # a transaction that wrote nothing is rolled back behind us

    def _keep(self, snapshot: Snapshot, c: sqlite3.Connection) -> None:
        schema.patiently(lambda: c.execute(statements.PUT_SNAPSHOT, snapshot), self._patience_s)

    async def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do this in the writer's thread, in line with appends; committed if it returns something."""

        def transaction(c: sqlite3.Connection) -> T:
            self._begin(c, self._patience_s)
            if done := work(c):
                self._commit(c)
            return done  # a transaction that wrote nothing is rolled back behind us

        self._check_open()
        return await self._writer.run(transaction)

    def _begin(self, c: sqlite3.Connection, patience_s: float) -> None:
        # A file that is deleted or replaced under an open connection goes on taking commits, and they vanish with it.
        if _file_id(self._where) != self._file:
            raise StoreUnavailable(
                f"{self.path} was deleted, moved or replaced while this process had it open; nothing was stored. Put "
                "the file back, or start the process again to use the one that is there now."
            )
        schema.begin(c, patience_s)

    def _commit(self, c: sqlite3.Connection) -> None:
        try:
            c.execute("COMMIT")
        except sqlite3.Error as e:
            # The frame that makes a commit is the last to be written, so a full disk leaves none. After a failed
            # write or fsync it may stand in the write-ahead log, to be found by whoever recovers the file.
            if primary_code(e) in BUSY or primary_code(e) == sqlite3.SQLITE_FULL:
                raise
            raise OutcomeUnknown(
                f"{self.path}: the disk failed, or a quota of it ended, in the middle of a commit ({e}), which may or "
                "may not be stored. Look for the command's id in its streams before you save again; execute() does."
            ) from e


class _Written(NamedTuple):
    outcomes: list[int | Conflict]
    head: int


def _file_id(path: str) -> tuple[int, int] | None:
    """Which file is at the path now; None where there is none."""
    try:
        status = os.stat(path)  # in a third of the time of Path.stat
    except OSError:
        return None
    return status.st_dev, status.st_ino
