"""A store that threads share: evsync's stores are asynchronous, and the eventsourcing library is not.

One event loop in a thread of its own serves every thread of the application. Saves of many threads meet in one group
commit there, which is where their throughput comes from.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from eventsourcing.persistence import DataError, IntegrityError, OperationalError, PersistenceError

from evsync.errors import CodecError, Conflict, EventTooLarge, EvsyncError
from evsync.ports import Store
from evsync.records import Append, Checkpoint, Commit, StoredEvent
from evsync.stores.group_commit import GroupCommit

T = TypeVar("T")


class LoopThread:
    """An event loop in a daemon thread, for as long as it is not closed."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._process = os.getpid()
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine on the loop. Raises OperationalError when that cannot be."""
        with self._lock:  # nothing may be submitted behind the end: nobody would ever answer it
            if not self._closed and self._process == os.getpid():
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        if self._process != os.getpid():
            raise OperationalError(
                "this process is a fork of the one that made the application, and threads do not come along: make the "
                "application in each process, after the fork"
            )
        raise OperationalError("the application's stores are closed; nothing was stored")

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine on the loop. What evsync raises, it raises as the library's errors."""
        future = self.submit(work)
        try:
            return future.result()
        except EvsyncError as e:
            raise translated(e) from e
        except CancelledError as e:
            raise OperationalError("the application was closed meanwhile: look before you save again") from e

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Run `last`, break off what still runs, and end the thread. Calling twice is fine."""
        with self._lock:
            closed, self._closed = self._closed, True
        # When the interpreter ends, daemon threads stand still: nobody would answer. What was saved is saved.
        if closed or self._process != os.getpid() or sys.is_finalizing():
            last.close()
            return
        ending = asyncio.run_coroutine_threadsafe(_end(last), self._loop)
        ending.add_done_callback(lambda _: self._loop.call_soon_threadsafe(self._loop.stop))
        if threading.current_thread() is self._thread:
            return  # an application that is garbage closes itself, in whatever thread finds it
        try:
            ending.result()
        finally:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()


async def _end(last: Coroutine[Any, Any, None]) -> None:
    try:
        await last
    finally:
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)


class SharedStore:
    """A store and its group commit, for any thread. Raises the library's errors: see `translated`."""

    def __init__(self, thread: LoopThread, store: Store, check_size: Callable[[Append], None] | None = None) -> None:
        self.thread, self.store, self._check_size = thread, store, check_size
        self.commits = GroupCommit(store)

    def commit(self, commit: Commit) -> int:
        """See GroupCommit.commit. An event that no broker's message could carry is refused before."""
        try:
            if self._check_size is not None:
                for append in commit.appends:
                    self._check_size(append)
        except EvsyncError as e:
            raise translated(e) from e
        return self.thread.run(self.commits.commit(commit))

    def read_stream(self, stream: str, after_version: int, to_version: int | None) -> list[StoredEvent]:
        """See EventStore.read_stream."""
        return self.thread.run(self.store.read_stream(stream, after_version=after_version, to_version=to_version))

    def read(self, after: int, limit: int) -> list[StoredEvent]:
        """See EventLog.read."""
        return self.thread.run(self.store.read(after, limit))

    def head(self) -> int:
        """See EventLog.head."""
        return self.thread.run(self.store.head())

    def checkpoints(self, follower: str) -> list[Checkpoint]:
        """See EventStore.checkpoints."""
        return self.thread.run(self.store.checkpoints(follower))

    async def close(self) -> None:
        """Answer the commits under way, then close the store. On the loop."""
        with contextlib.suppress(EvsyncError):
            await self.commits.close()
        await self.store.close()


def translated(error: EvsyncError) -> PersistenceError:
    """The error as the library's users expect it; the text, and the cause, are evsync's.

    Conflict is an IntegrityError; what is too large, or cannot be kept or read, a DataError; all else an
    OperationalError (OutcomeUnknown too: saving again is then safe, for a version can be taken once only).
    """
    if isinstance(error, Conflict):
        return IntegrityError(str(error))
    if isinstance(error, (CodecError, EventTooLarge)):
        return DataError(str(error))
    return OperationalError(str(error))
