"""Backups and restores in processes that are killed: `python -m tests.archive_process`, one JSON object a line.

Each line is carried out by a process of its own, a fork of this one, and answered with how it ended. With `step`, the
process sends itself SIGKILL before the step of that number: whatever it is about to do to a file below its directory,
to bring to the disk, or to ask of a server; or a transaction of the store that it trims. With `most_bytes` no file may
grow beyond that, as on a disk that is full.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg

from evsync.archive.backup import Backups
from evsync.archive.copies import Archive
from evsync.archive.policy import Keep
from evsync.archive.restore import Until
from evsync.archive.targets import open_target
from evsync.errors import EvsyncError
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.store.sends import Sender
from evsync.operations.recovery import restore_log
from evsync.stores import trimmed
from evsync.stores.sqlite import schema as sqlite_schema
from evsync.stores.sqlite.store import SqliteStore
from tests.vault import a_vault, trim

SEGMENT_EVENTS = 10
STEPS = {"open", "os.rename", "os.remove", "os.link", "os.mkdir", "sqlite3.connect"}
MERGE_ALL = Keep(hourly=timedelta(0), daily=timedelta(0), weekly=timedelta(0))
YEARS_S = 4e9
"""A clock that makes all segments old, and of one week."""


async def backup(directory: Path, *, merge: bool) -> None:
    """Archive the bank's log in two places; with `merge`, as if much time had gone by."""
    store = await SqliteStore.open(directory / "bank.db", service="bank", create=False)
    targets = [open_target(str(directory / name)) for name in ("one", "two")]
    options: dict[str, Any] = {"keep": MERGE_ALL, "clock": lambda: YEARS_S} if merge else {}
    report = await Backups(store, targets, copies=2, segment_events=SEGMENT_EVENTS, **options).run()
    await store.close()
    for target in report.targets:
        if target.error is not None:
            raise EvsyncError(target.error)


async def restore(directory: Path, to: str) -> None:
    """Restore the log, beside the store if no other place is named."""
    targets = [open_target(str(directory / name)) for name in ("one", "two")]
    await restore_log(await Archive.find(targets, "bank.main"), to or f"sqlite:///{directory}/restored.db", Until())


async def trim_all(directory: Path) -> None:
    """Trim the vault's store up to its head, a few events in a transaction."""
    trimmed.ROWS_PER_TRANSACTION = 50
    async with (vault := a_vault(directory)).inspect():
        await trim(vault, await vault.runtime.store.head())


def counting(owner: Any, name: str, another: Callable[[], None]) -> None:
    """Take calls of a function for steps."""
    function = getattr(owner, name)

    def counted(*arguments: Any, **options: Any) -> Any:
        another()
        return function(*arguments, **options)

    setattr(owner, name, counted)


def carry_out(directory: Path, work: str, step: int | None, most_bytes: int | None, to: str) -> None:
    """In a process of its own."""
    steps = 0
    fsync = os.fsync

    def another() -> None:
        nonlocal steps
        if steps == step:
            os.kill(os.getpid(), signal.SIGKILL)
        steps += 1

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        if name in STEPS and str(directory) in str(arguments[0]):
            another()

    def counted(descriptor: int) -> None:
        another()
        fsync(descriptor)

    os.fsync = counted  # type: ignore[assignment]
    sys.addaudithook(hook)
    for owner, name in (
        (Connection, "api"),
        (Sender, "batch"),
        (psycopg.AsyncConnection, "execute"),
        (psycopg.AsyncCursor, "copy"),
        (psycopg.AsyncTransaction, "__aexit__"),
        *(((sqlite_schema, "begin"), (SqliteStore, "_commit")) if work == "trim" else ()),
    ):
        counting(owner, name, another)
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    try:
        if work == "restore":
            asyncio.run(restore(directory, to))
        elif work == "trim":
            asyncio.run(trim_all(directory))
        else:
            asyncio.run(backup(directory, merge=work == "merge"))
    except EvsyncError as e:
        (directory / "error").write_text(f"{type(e).__name__}: {e}"[:900])
        os._exit(1)
    os._exit(0)


def main() -> None:
    """Fork and tell, until there is no more to do."""
    for line in sys.stdin:
        wanted = json.loads(line)
        if (pid := os.fork()) == 0:
            carry_out(Path(wanted["directory"]), wanted["work"], wanted["step"], wanted["most_bytes"], wanted["to"])
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


class Workers:
    """Runs work in such processes, one after the other."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(
        self, directory: Path, work: str, *, step: int | None = None, most_bytes: int | None = None, to: str = ""
    ) -> int:
        """The exit code; -9 for one that was killed."""
        wanted = {"directory": str(directory), "work": work, "step": step, "most_bytes": most_bytes, "to": to}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@contextmanager
def workers() -> Iterator[Workers]:
    """The process that forks, until the block ends."""
    command = [sys.executable, "-m", "tests.archive_process"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    )
    try:
        yield Workers(process)
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    main()
