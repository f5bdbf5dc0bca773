"""Where logs end, for those who only want to know how far behind they are."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from evsync.ports import LogReader, LogSource

PATIENCE_S = 1.0


class Heads:
    """Asks for the heads of all logs of some sources, with readers of its own: a follower's are busy reading."""

    def __init__(self, sources: Sequence[LogSource]) -> None:
        self._sources = sources
        self._readers: dict[str, Sequence[LogReader]] = {}
        self._lock = asyncio.Lock()

    async def now(self) -> dict[str, int | None]:
        """Log name → its last position, or None where it cannot be told within a second. Unknown logs are left out."""
        async with self._lock:
            await asyncio.gather(*(self._connect(s) for s in self._sources if s.service not in self._readers))
            readers = [r for found in self._readers.values() for r in found]
            return dict(zip((r.log for r in readers), await asyncio.gather(*map(_head, readers)), strict=True))

    async def close(self) -> None:
        """Let go of the readers."""
        async with self._lock:
            for found in self._readers.values():
                for reader in found:
                    await reader.close()
            self._readers.clear()

    async def _connect(self, source: LogSource) -> None:
        # Whatever goes wrong here, the follower itself meets and reports.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(PATIENCE_S):
                self._readers[source.service] = await source.readers()


async def _head(reader: LogReader) -> int | None:
    with contextlib.suppress(Exception):
        async with asyncio.timeout(PATIENCE_S):
            return await reader.head()
    return None
