"""What PostgreSQL's errors mean here."""

from __future__ import annotations

import psycopg

from evsync.errors import EncodingError, EvsyncError, StoreFull, StoreUnavailable, WrongStore
from evsync.records import LogIdentity

OTHER_STORE = "EV001"
"""The SQLSTATE of an append by a process that opened the store that had this name before: a restored one has it now."""
_FULL = ("53100", "53400")  # disk_full, configuration_limit_exceeded
_REFUSED = ("22", "23")  # classes: data that the columns cannot hold


def words(error: Exception) -> str:
    """What the driver says, on one line that can be gone on with: without the end of its last sentence."""
    return " ".join(str(error).split()).rstrip(".?! ") or type(error).__name__


def translated(where: str, error: psycopg.Error, undone: str = "nothing was stored") -> EvsyncError:
    """The error for the person who must act; `undone` says what the transaction that raised it did not do."""
    state = error.sqlstate or ""
    if state in _FULL:
        return StoreFull(f"{where}: {words(error)}; {undone}. Make room, then try again.")
    if state[:2] in _REFUSED or is_unwritable(error):
        return EncodingError(f"{where} cannot hold this: {words(error)}; {undone}")
    return StoreUnavailable(f"{where}: {words(error)} ({state or 'no answer'}); {undone}")


def is_unwritable(error: psycopg.Error) -> bool:
    """Whether the driver itself found a value that PostgreSQL has no place for, such as a NUL in a text."""
    return isinstance(error, psycopg.DataError) and not error.sqlstate


def replaced(where: str, identity: LogIdentity) -> WrongStore:
    """Of a process that goes on after its store was restored in its place."""
    return WrongStore(
        f"{where} holds another store by now than when this process opened it (incarnation {identity.incarnation}): "
        "it was restored from a backup. Nothing was stored. Start the process again."
    )
