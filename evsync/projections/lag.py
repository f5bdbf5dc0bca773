"""How long events have been waiting for a follower: the time of the first one that it has not dealt with."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import replace

from evsync.ports import LogReader, LogSource
from evsync.projections.status import FollowerStatus, LogStatus
from evsync.records import service_of

PATIENCE_S = 1.0


class Lags:
    """Asks the logs for the times of events, with readers of its own; only of those that somebody is behind with."""

    def __init__(self, sources: Mapping[str, LogSource]) -> None:
        self._sources = sources
        self._readers: dict[str, LogReader] = {}
        self._times: dict[tuple[str, int], float] = {}
        """Of the event behind a position, in seconds since 1970. They never change; a few are kept."""
        self._lock = asyncio.Lock()

    async def of(self, status: FollowerStatus) -> FollowerStatus:
        """The status with the lag of each log and group in seconds."""
        async with self._lock:
            return replace(status, logs=[await self._log(log) for log in status.logs])

    async def close(self) -> None:
        """Let go of the logs."""
        async with self._lock:
            for reader in self._readers.values():
                await reader.close()
            self._readers.clear()

    async def _log(self, log: LogStatus) -> LogStatus:
        groups = [replace(group, lag_s=await self._lag_s(log, group.position)) for group in log.groups]
        return replace(log, lag_s=await self._lag_s(log, log.position), groups=groups)

    async def _lag_s(self, log: LogStatus, position: int) -> float | None:
        if log.head is None:
            return None
        if log.head <= position:
            return 0.0
        when = await self._time(log.log, position)
        return None if when is None else max(0.0, time.time() - when)

    async def _time(self, log: str, position: int) -> float | None:
        known = self._times.get((log, position))
        if known is None:
            with contextlib.suppress(Exception):  # whatever is wrong there, the follower itself meets and reports
                async with asyncio.timeout(PATIENCE_S):
                    reader = await self._reader(log)
                    events = await reader.read(position, 1, PATIENCE_S / 2)
                    await reader.close()  # reading again makes what it needs; nothing is left with the server meanwhile
                    known = events[0].time_us / 1e6
            if known is not None:
                if len(self._times) > 1_000:
                    self._times.clear()
                self._times[log, position] = known
        return known

    async def _reader(self, log: str) -> LogReader:
        if log not in self._readers:
            for reader in await self._sources[service_of(log)].readers():
                self._readers.setdefault(reader.log, reader)
        return self._readers[log]
