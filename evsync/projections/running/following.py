"""Following the logs of some sources, each in a task of its own: what a projection's runner and a reaction's share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Generic, Protocol, TypeVar

from evsync.errors import EvsyncError
from evsync.ports import LogReader, LogSource
from evsync.projections.running.discovery import Discovery
from evsync.projections.running.feed import FATAL, Feed
from evsync.projections.running.heads import Heads


class Log(Protocol):
    """What is needed here of a log that is followed."""

    feed: Feed


L = TypeVar("L", bound=Log)


class Stop(Exception):
    """Ends all tasks of a `run`: there is nothing to be done any more, or not from where it was begun."""


class Following(Generic[L]):
    """Finds logs, has them followed, and lets go of them."""

    def __init__(
        self,
        sources: Sequence[LogSource],
        logs: dict[str, L],
        *,
        begin: Callable[[Sequence[LogReader]], Awaitable[None]],
        follow: Callable[[L], Awaitable[None]],
        halt: Callable[[L | None, EvsyncError], Awaitable[None]],
    ) -> None:
        """`begin` adds new logs of one source to `logs`. `follow` goes on for ever with one of them. `halt` is called
        for what is FATAL, with the log if it came from one."""
        self._sources, self._logs, self._follow, self._halt = tuple(sources), logs, follow, halt
        self.reason: str | None = None
        """What stands in the way of finding logs, if anything does."""
        self._discovery = Discovery(self._sources, logs, begin, self._report)
        self._heads = Heads(self._sources)
        self.named = self._discovery.named

    async def run(self, *others: Callable[[], Awaitable[None]]) -> None:
        """Follow all logs, and do these other things beside it, until one of them raises Stop."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for other in others:
                    tasks.create_task(self._guarded(other))
                for source in self._sources:
                    tasks.create_task(self._guarded(partial(self._follow_source, source, tasks)))
        except* Stop:
            pass

    async def step(self, log: str | None, work: Callable[[L], Awaitable[bool]]) -> bool:
        """Do the work once, with this log or with the first that it does something for; whether it did anything.

        To have halted is something, and to have been stopped.
        """
        found: L | None = None
        try:
            await self._discovery.find()
            for found in [self._logs[log]] if log is not None else self._logs.values():
                if await work(found):
                    return True
        except FATAL as e:
            await self._halt(found, e)
            return True
        except Stop:
            return True
        return False

    async def heads(self, others: Mapping[str, object]) -> dict[str, int | None]:
        """Where the logs end, these others too (see Heads)."""
        return await self._heads.now({*others, *self._logs})

    async def close(self) -> None:
        """Let go of the logs."""
        for log in self._logs.values():
            await log.feed.close()
        self._logs.clear()
        await self._heads.close()

    async def _follow_source(self, source: LogSource, tasks: asyncio.TaskGroup) -> None:
        async for log in self._discovery.logs_of(source):
            tasks.create_task(self._follow_log(log))

    async def _follow_log(self, log: L) -> None:
        try:
            await self._guarded(partial(self._follow, log), log)
        finally:
            await log.feed.drop()

    async def _guarded(self, work: Callable[[], Awaitable[None]], log: L | None = None) -> None:
        try:
            await work()
        except FATAL as e:
            await self._halt(log, e)
            raise Stop from e

    def _report(self, reason: str | None) -> None:
        self.reason = reason
