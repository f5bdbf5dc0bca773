"""Group commit: saves that arrive while others are being written share the next transaction."""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from evsync.errors import Conflict, OutcomeUnknown, StoreError, StoreUnavailable
from evsync.ports import EventStore
from evsync.records import Commit

_Waiting = tuple[Commit, "asyncio.Future[int]"]


@runtime_checkable
class Quick(Protocol):
    """What a store may offer beside EventStore, if its commits take less time than the way to a thread and back."""

    def append_now(self, commits: Sequence[Commit]) -> list[int | Conflict] | None:
        """`append` without yielding to the event loop; None, and nothing stored, where it had better be `append`."""
        ...


class GroupCommit:
    """The queue in front of a store: one append in flight at a time, and what arrives meanwhile is the next one.

    A save that finds nothing in flight is sent at once: no time is spent waiting for company. Commits are stored in the
    order in which `commit` was called.

    `max_events` and `max_bytes` (of event data) bound one append, so that no save waits behind a transaction without
    end; a single commit may be larger, and then goes alone.
    """

    def __init__(self, store: EventStore, *, max_events: int = 1024, max_bytes: int = 4 << 20) -> None:
        self._store, self._quick = store, store if isinstance(store, Quick) else None
        self._max_events, self._max_bytes = max_events, max_bytes
        self._queue: deque[_Waiting] = deque()
        self._gathering = False
        """Somebody lets the event loop turn once, and sees to what is queued by then."""
        self._writer: asyncio.Task[None] | None = None
        self._closed = False

    async def commit(self, commit: Commit) -> int:
        """Store the commit, all of it or none; returns the position of its last event (without events the head).

        Raises Conflict, OutcomeUnknown, or what the store says when nothing was stored. A caller that is cancelled in
        the queue takes its commit back; once it is under way it is carried out all the same.
        """
        if self._closed:
            raise StoreUnavailable(f"the service of log {self._store.identity.name!r} is closing; nothing was stored")
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._queue.append((commit, future))
        if self._writer is None and not self._gathering:
            self._gathering = True
            try:
                # Whoever calls in this turn of the loop, as all do whom the last append has woken, is in the group.
                await asyncio.sleep(0)
            except BaseException:
                future.cancel()
                raise
            finally:
                self._gathering = False
                self._send()
        return await future

    async def close(self) -> None:
        """Refuse new commits, and return when all that were accepted are answered. The store stays open."""
        self._closed = True
        self._send()
        if self._writer is not None:
            await asyncio.wait([self._writer])

    def _send(self) -> None:
        """See to what is queued: here and now while the store can, else in a task."""
        while self._queue and self._writer is None:
            group = self._next_group()
            if group and not self._append_now(group):
                self._writer = asyncio.get_running_loop().create_task(self._write(group))

    def _append_now(self, group: Sequence[_Waiting]) -> bool:
        """Append without yielding to the event loop, if the store can: no task, no thread, no turn of the loop."""
        if self._quick is None:
            return False
        try:
            outcomes = self._quick.append_now([commit for commit, _ in group])
        except (StoreError, OutcomeUnknown) as e:
            _fail(group, e)
            return True
        except Exception:  # the reason may lie in a single commit: see _append
            return False
        if outcomes is None:
            return False
        _settle(group, outcomes)
        return True

    async def _write(self, group: Sequence[_Waiting]) -> None:
        try:
            while group:
                await self._append(group)
                group = self._next_group()
        except BaseException as e:  # this task was cancelled: the event loop is ending
            _fail(group, OutcomeUnknown(f"interrupted ({type(e).__name__}) while the store was writing: look first"))
            _fail(self._queue, StoreUnavailable("interrupted before it was sent to the store; nothing was stored"))
            self._queue.clear()
            raise
        finally:
            self._writer = None

    def _next_group(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        queue = self._queue
        events = size_bytes = 0
        while queue:
            commit, future = waiting = queue[0]
            if future.cancelled():
                queue.popleft()
                continue
            for append in commit.appends:
                events += len(append.events)
                for event in append.events:
                    size_bytes += len(event.data)
            if group and (events > self._max_events or size_bytes > self._max_bytes):
                break
            group.append(waiting)
            queue.popleft()
        return group

    async def _append(self, group: Sequence[_Waiting]) -> None:
        try:
            outcomes = await self._store.append([commit for commit, _ in group])
        except (StoreError, OutcomeUnknown) as e:
            _fail(group, e)
        except Exception as e:
            # Nothing was stored, and the reason may lie in a single commit, such as a value that cannot be written.
            if len(group) == 1:
                _fail(group, e)
                return
            for waiting in group:
                await self._append([waiting])
        else:
            _settle(group, outcomes)


def _settle(group: Sequence[_Waiting], outcomes: Sequence[int | Conflict]) -> None:
    for (_, future), outcome in zip(group, outcomes, strict=True):
        if future.done():  # its caller was cancelled
            continue
        if isinstance(outcome, Conflict):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


def _fail(group: Sequence[_Waiting] | deque[_Waiting], error: Exception) -> None:
    for _, future in group:
        if not future.done():
            future.set_exception(_own(error))


def _own(error: Exception) -> Exception:
    """A copy for each caller: an exception collects the traceback, and the notes, of whoever raises it."""
    try:
        own = copy.copy(error)
    except TypeError:  # an adapter's own error whose constructor takes more than its args
        return error
    own.__cause__ = error.__cause__
    return own
