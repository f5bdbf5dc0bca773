"""Which logs a follower reads: those that its sources have when it begins, and those of shards that join later.

A log may be named (by another log that a slot has left for it, by somebody who waits for a position in it) long before
it can be read: its relay has not run yet. So a name is a hint, which makes the next look at the source come soon; a
look every now and then stands behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

from evsync.ports import LogReader, LogSource
from evsync.projections.running.feed import Report, connect
from evsync.records import service_of

L = TypeVar("L")

SEEK_S = 0.25
"""How long after one look at a source the next one comes at the earliest: soon after a hint, then ever later."""
LOOK_S = 5.0
"""How long after one look the next one comes at the latest."""


class Discovery(Generic[L]):
    """Finds the logs of some sources, and keeps finding."""

    def __init__(
        self,
        sources: Sequence[LogSource],
        logs: Mapping[str, L],
        begin: Callable[[Sequence[LogReader]], Awaitable[None]],
        report: Report,
    ) -> None:
        """`logs` are those that are followed, by name; `begin` adds to them those that these new readers read, which
        are of one source. `report` is told what stands in the way."""
        self._sources, self._logs, self._begin, self._report = sources, logs, begin, report
        self._hints = {source.service: asyncio.Event() for source in sources}

    def named(self, logs: Iterable[str]) -> None:
        """Somebody has spoken of these: if one is not followed yet, it is looked for soon."""
        for log in logs:
            if log not in self._logs and (hint := self._hints.get(service_of(log))) is not None:
                hint.set()

    async def find(self) -> None:
        """Look for logs of each source that none is known of, or where a hint says that there are more.

        Waits until one is found. Raises what is FATAL.
        """
        for source in self._sources:
            if not self._known(source) or self._hints[source.service].is_set():
                await self._look(source)

    async def logs_of(self, source: LogSource) -> AsyncIterator[L]:
        """Each log of a source once, those that are known at once: for ever. Raises what is FATAL."""
        hint, given = self._hints[source.service], set[str]()
        pause_s = LOOK_S
        if not self._known(source):
            await self._look(source)
        while True:
            for name in self._known(source):
                if name not in given:
                    given.add(name)
                    yield self._logs[name]
            await asyncio.sleep(SEEK_S)
            try:
                async with asyncio.timeout(pause_s - SEEK_S):
                    await hint.wait()
                pause_s = SEEK_S
            except TimeoutError:
                pass
            pause_s = min(2 * pause_s, LOOK_S)
            await self._look(source)

    async def _look(self, source: LogSource) -> None:
        self._hints[source.service].clear()
        readers = await connect(source, self._report)
        new = [reader for reader in readers if reader.log not in self._logs]
        for reader in readers:
            if reader not in new:
                await reader.close()
        if new:
            await self._begin(new)

    def _known(self, source: LogSource) -> list[str]:
        return [name for name in self._logs if service_of(name) == source.service]
