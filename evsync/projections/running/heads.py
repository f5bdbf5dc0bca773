"""Where logs end, for those who only want to know how far behind they are."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence

from evsync.ports import LogReader, LogSource
from evsync.records import service_of

PATIENCE_S = 1.0


class Heads:
    """Asks for the heads of all logs of some sources, with readers of its own: a follower's are busy reading."""

    def __init__(self, sources: Sequence[LogSource]) -> None:
        self._sources = sources
        self._readers: dict[str, LogReader] = {}
        self._lock = asyncio.Lock()

    async def now(self, followed: Iterable[str]) -> dict[str, int | None]:
        """Log name → its last position, or None where it cannot be told within a second. Unknown logs are left out.

        `followed` are the logs that somebody has found by now: for one that is new, its source is asked again.
        """
        async with self._lock:
            known = set(map(service_of, self._readers))
            more = {service_of(log) for log in followed if log not in self._readers}
            await asyncio.gather(
                *(self._connect(s) for s in self._sources if s.service not in known or s.service in more)
            )
            heads = await asyncio.gather(*map(_head, self._readers.values()))
            return dict(zip(self._readers, heads, strict=True))

    async def close(self) -> None:
        """Let go of the readers."""
        async with self._lock:
            for reader in self._readers.values():
                await reader.close()
            self._readers.clear()

    async def _connect(self, source: LogSource) -> None:
        # Whatever goes wrong here, the follower itself meets and reports.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(PATIENCE_S):
                for reader in await source.readers():
                    if self._readers.setdefault(reader.log, reader) is not reader:
                        await reader.close()


async def _head(reader: LogReader) -> int | None:
    with contextlib.suppress(Exception):
        async with asyncio.timeout(PATIENCE_S):
            return await reader.head()
    return None
