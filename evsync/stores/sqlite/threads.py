"""Threads that own SQLite connections, and the hand-over between them and an event loop.

A queue and `call_soon_threadsafe` are all there is to it. `run_in_executor` puts a second future with its lock between
them, and takes half as long again.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

from evsync.errors import StoreUnavailable
from evsync.stores.sqlite.errors import FAILURES, translated

T = TypeVar("T")


class _Job(NamedTuple):
    work: Callable[[sqlite3.Connection], Any]
    future: asyncio.Future[Any]
    then: Callable[[Any], None] | None


class ConnectionThreads:
    """A few threads, each with a connection of its own to a file, that take jobs from one queue in order."""

    def __init__(self, connect: Callable[[], sqlite3.Connection], path: Path, *, threads: int, name: str) -> None:
        self._connect, self._path = connect, path
        self._jobs: SimpleQueue[_Job | asyncio.Future[None]] = SimpleQueue()
        self._size, self._name = threads, name
        self._threads: list[threading.Thread] = []
        self._closed = False

    async def run(self, work: Callable[[sqlite3.Connection], T], *, then: Callable[[T], None] | None = None) -> T:
        """Run `work` with a connection in one of the threads; what it raises is raised here, the driver's errors
        translated.

        A caller that is cancelled before the job began takes it back; after that the job is carried out all the same.
        `then` gets the result on the event loop in either case, before the caller goes on.
        """
        if self._closed:
            raise StoreUnavailable(f"{self._name} is closed; nothing was stored")
        if not self._threads:  # made when first needed: many a store never reads in a thread
            # Daemons: a store that nobody closed must not keep the interpreter from ending; a commit is atomic anyway.
            names = [f"{self._name}-{i}" for i in range(self._size)]
            self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for name in names]
            for thread in self._threads:
                thread.start()
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put(_Job(work, future, then))
        try:
            return await future
        except FAILURES as e:
            raise translated(e, self._path) from e

    def end(self) -> list[asyncio.Future[None]]:
        """Have the threads end by themselves once they have carried out what was handed over. Twice is fine."""
        ends: list[asyncio.Future[None]] = []
        if not self._closed:
            self._closed = True
            ends = [asyncio.get_running_loop().create_future() for _ in self._threads]
            for end in ends:
                self._jobs.put(end)
        return ends

    async def close(self) -> None:
        """Carry out what was handed over, close the connections, end the threads. Calling twice is fine."""
        if not (ends := self.end()):
            return
        await asyncio.gather(*ends)
        for thread in self._threads:
            thread.join()  # it has nothing left to do but return

    def _work(self) -> None:
        connection: sqlite3.Connection | None = None
        while isinstance(job := self._jobs.get(), _Job):
            if job.future.cancelled():
                continue
            result, error = None, None
            try:
                if connection is None:
                    connection = self._connect()
                result = job.work(connection)
            except BaseException as e:  # whatever it is, it is the caller's to handle
                error = e
            if connection is not None and connection.in_transaction:
                connection = rolled_back(connection)
            _tell(job.future, _settle, job, result, error)
            del job, result, error  # nothing of a job may outlive it while the thread waits for the next one
        try:
            if connection is not None:
                connection.close()
        finally:
            _tell(job, _end, job)


def rolled_back(connection: sqlite3.Connection) -> sqlite3.Connection | None:
    """The connection without its open transaction; None if not even that could be done, and a new one is needed."""
    try:
        connection.execute("ROLLBACK")
    except sqlite3.Error:
        connection.close()
        return None
    return connection


def _tell(future: asyncio.Future[Any], callback: Callable[..., None], *args: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear of it
        future.get_loop().call_soon_threadsafe(callback, *args)


def _settle(job: _Job, result: Any, error: BaseException | None) -> None:
    if error is None and job.then is not None:
        job.then(result)
    if job.future.done():  # its caller was cancelled
        return
    if error is None:
        job.future.set_result(result)
    else:
        job.future.set_exception(error)


def _end(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
