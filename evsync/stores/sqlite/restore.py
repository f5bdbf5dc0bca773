"""Filling an SQLite store from a backup: under another name, until it is complete."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from evsync.errors import ConfigurationError, StoreUnavailable
from evsync.ports import Arrived
from evsync.records import Checkpoint, LogIdentity, SlotRows, StoredEvent, check_name
from evsync.stores.plan import check_follows
from evsync.stores.sqlite import schema, statements
from evsync.stores.sqlite import slots as slots_of
from evsync.stores.sqlite.threads import ConnectionThreads

SUFFIX = ".restoring"


class SqliteRestore:
    """Fills the file of an SqliteStore. Implements StoreRestore. Made by `begin`.

    The file has another name while it is filled, is brought to the disk, and only then gets its own. So nothing needs
    to be durable before, and what is broken off is no store.
    """

    @classmethod
    async def begin(cls, path: str | os.PathLike[str], *, service: str, shard: str, slots: int) -> SqliteRestore:
        """Begin to fill the file at `path`, which must not be there yet.

        Raises ConfigurationError for a path that cannot be right, or a file that is there; StoreUnavailable.
        """
        check_name("service", service)
        check_name("shard", shard)
        file = schema.check_path(path, create=True)
        found = [f for suffix in ("", "-wal", "-journal") if (f := file.with_name(file.name + suffix)).exists()]
        if found:  # a write-ahead log that stayed behind would be applied to whatever file has the name then
            raise ConfigurationError(
                f"{found[0]} is there already, and a restore makes a new store: nothing was touched. Restore to "
                "another path, then let the service use that; or move the old file away first, with its -wal file."
            )
        part = file.with_name(file.name + SUFFIX)
        claim = _claim(part)
        threads = ConnectionThreads(lambda: _connect(part), part, threads=1, name=f"evsync-restore-{service}")
        restore = cls(file, part, claim, threads)
        try:
            await threads.run(lambda c: schema.make_tables(c, LogIdentity(service, shard, "restoring", slots)))
        except BaseException:
            await restore.close()
            raise
        return restore

    def __init__(self, path: Path, part: Path, claim: int, threads: ConnectionThreads) -> None:
        """For `begin`, which everybody else uses."""
        self.path, self._part, self._threads = path, part, threads
        self._claim: int | None = claim
        self._head = 0

    async def load(self, events: Sequence[StoredEvent]) -> None:
        """Store events behind those that were loaded before."""
        check_follows(self._head, events)
        await self._write(lambda c: statements.insert(c, events))
        self._head += len(events)

    async def import_events(self, arrived: Sequence[Arrived]) -> None:
        """Store imports, each in its place."""
        await self._write(lambda c: slots_of.import_at(c, arrived))

    async def _write(self, write: Callable[[sqlite3.Connection], None]) -> None:
        def transaction(c: sqlite3.Connection) -> None:
            c.execute("BEGIN")
            write(c)
            c.execute("COMMIT")

        await self._threads.run(transaction)

    async def complete(
        self, identity: LogIdentity, checkpoints: Mapping[str, Sequence[Checkpoint]], slots: SlotRows | None = None
    ) -> None:
        """Store the checkpoints, bring the file to the disk, and give it its name."""

        def complete(c: sqlite3.Connection) -> None:
            for follower, kept in checkpoints.items():
                for checkpoint in kept:
                    statements.store_checkpoint(c, follower, checkpoint)
            c.execute(
                "UPDATE log SET incarnation = ?, slots = ?, moves = ?",
                (identity.incarnation, identity.slots, 0 if slots is None else 1),
            )
            if slots is not None:
                slots_of.put(c, slots)

        await self._write(complete)
        await self._threads.close()
        try:
            _finish(self._part, self.path)
            self._let_go()  # before anybody opens the store: that would take SQLite's own locks off the file
        except FileExistsError as e:
            raise ConfigurationError(f"{self.path} was made by somebody else meanwhile; it was not touched") from e
        except OSError as e:
            raise StoreUnavailable(f"{self.path} could not be completed: {e}") from e

    async def close(self) -> None:
        """Release everything, and take away what is not complete."""
        await self._threads.close()
        if self._claim is not None:
            _clear(self._part)
            self._let_go()

    def _let_go(self) -> None:
        claim, self._claim = self._claim, None
        if claim is not None:
            os.close(claim)


def _connect(part: Path) -> sqlite3.Connection:
    connection = schema.connect(part, create=True, timeout_s=0)
    for pragma in ("journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE", "cache_size = -65536"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _finish(part: Path, path: Path) -> None:
    """Bring the file to the disk and give it its name, unless another has it."""
    with part.open("rb") as f:
        os.fsync(f.fileno())
    os.link(part, path)
    part.unlink()
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _claim(part: Path) -> int:
    """A new, empty file for this restore alone: its descriptor, which holds the claim while it is open.

    Raises ConfigurationError where another restore is filling it; what one that was killed has left is taken away.
    """
    try:
        with part.open("rb") as f:
            _lock(f.fileno(), part)
            if not os.path.samestat(os.fstat(f.fileno()), part.stat()):  # somebody was between the two lines above
                raise _busy(part)
            _clear(part)
    except FileNotFoundError:
        pass
    try:
        descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
    except FileExistsError as e:
        raise _busy(part) from e
    except OSError as e:
        raise StoreUnavailable(f"{part} cannot be made: {e}") from e
    try:
        _lock(descriptor, part)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _lock(descriptor: int, part: Path) -> None:
    try:
        import fcntl  # noqa: PLC0415  (not on Windows, where a file that is open cannot be taken away)
    except ImportError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        raise _busy(part) from e


def _busy(part: Path) -> ConfigurationError:
    return ConfigurationError(
        f"another restore is filling {part}, and nothing of it was touched: wait for it, or end it, then begin again"
    )


def _clear(part: Path) -> None:
    for suffix in ("", "-journal", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            part.with_name(part.name + suffix).unlink()
