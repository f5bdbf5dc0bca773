"""What SQLite's errors mean here."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

from evsync.errors import EncodingError, EvsyncError, StoreFull, StoreUnavailable, WrongStore

# PROTOCOL: somebody was in the midst of opening the write-ahead log each time SQLite tried.
BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_ROOM_BYTES = 65_536
"""Less than SQLite needs for the -shm file and a page of the log."""
FAILURES = (sqlite3.Error, OverflowError, UnicodeEncodeError)
"""What the driver raises: `translated` says what to do."""
UNWRITABLE_VALUE = (OverflowError, UnicodeEncodeError, sqlite3.DataError, sqlite3.InterfaceError)
"""What the driver raises for a parameter that SQLite cannot hold, before anything is written."""


def primary_code(error: BaseException) -> int:
    """SQLite's primary result code (https://sqlite.org/rescode.html); 0 where the error is the driver's own."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def is_busy(error: BaseException) -> bool:
    """Whether another connection held a lock: nothing was done, and trying again is all there is to do."""
    return isinstance(error, sqlite3.OperationalError) and primary_code(error) in BUSY


def translated(error: Exception, path: Path) -> EvsyncError:
    """The error for the person who must act. Nothing of the transaction that raised it is stored."""
    code = primary_code(error)
    if isinstance(error, UNWRITABLE_VALUE) or (isinstance(error, sqlite3.ProgrammingError) and not code):
        return EncodingError(f"{path}: SQLite cannot hold a value that it was given ({error}); nothing was stored")
    if code in BUSY:
        return StoreUnavailable(
            f"{path} stayed locked by another connection for as long as this one was told to be patient; nothing was "
            "stored. Look for a process that keeps a transaction open on this file (a backup, a database shell), "
            "then try again."
        )
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _is_full(path)):
        return StoreFull(
            f"{path}: the disk, or the file's max_page_count, is full ({error}); nothing was stored. Make room and "
            "save again: the store goes on by itself, and can be read meanwhile."
        )
    if code == sqlite3.SQLITE_IOERR:
        kind = getattr(error, "sqlite_errorname", "SQLITE_IOERR")
        return StoreUnavailable(
            f"{path}: the system did not read or write the file, or those beside it ({error}, {kind}); nothing was "
            "stored. A quota or a limit on the size of files shows in this way too: see `quota` and `ulimit -f`. If "
            "neither is reached, look for errors of the disk in the system's log."
        )
    if code == sqlite3.SQLITE_NOTADB:
        return WrongStore(
            f"{path} is not an SQLite database; nothing was touched. Correct the store's URL, or put the file back "
            "from a backup."
        )
    if code == sqlite3.SQLITE_CORRUPT or isinstance(error, sqlite3.IntegrityError):
        return WrongStore(
            f"{path} is damaged: {error}. Nothing was stored. Stop writing to it, keep a copy of the file with its "
            "-wal file, and restore the store from a backup ('PRAGMA integrity_check' says what is wrong)."
        )
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return StoreUnavailable(
            f"{path} cannot be opened for writing: {error}; nothing was stored. The process needs the right to write "
            "both the file and its directory (SQLite keeps the -wal and -shm files beside it)."
        )
    return StoreUnavailable(f"{path}: {error}; nothing was stored. Try again.")


def _is_full(path: Path) -> bool:
    """Whether the disk has no room: SQLite calls it an I/O error where the shared memory beside a file cannot grow."""
    try:
        return shutil.disk_usage(path.parent).free < _ROOM_BYTES
    except OSError:
        return False
