"""Where the logs of a service are read from when it is not JetStream: a service of this process, or its store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from evsync.ports import EventLog, LogReader, Store
from evsync.records import StoredEvent
from evsync.stores import open_store


class StoreReader:
    """A log read from the store that holds it. Implements LogReader."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self.log = log.identity.name
        self.incarnation: str | None = log.identity.incarnation

    async def read(self, after: int, limit: int, timeout_s: float) -> list[StoredEvent]:
        """See LogReader: the store's own order is the log's, there is nothing to verify."""
        events = await self._log.read(after, limit)
        if not events and timeout_s > 0 and await self._log.wait(after, timeout_s) > after:
            events = await self._log.read(after, limit)
        return events

    async def head(self) -> int | None:
        """The head of the log."""
        return await self._log.head()

    async def close(self) -> None:
        """Nothing: the store belongs to whoever opened it."""


class ServiceSource:
    """The logs of a service that is open in this process, or will be. Implements LogSource."""

    def __init__(self, service: str, store_of: Callable[[], Store | None]) -> None:
        self.service = service
        self._store_of = store_of

    async def readers(self) -> Sequence[LogReader]:
        """A reader of its log, as soon as it is open."""
        while (store := self._store_of()) is None:
            await asyncio.sleep(0.01)
        return [StoreReader(store)]


class StoreSource:
    """The log of another service, read from that service's own store. Implements LogSource."""

    def __init__(self, service: str, url: str) -> None:
        self.service, self._url = service, url
        self._store: Store | None = None

    async def readers(self) -> Sequence[LogReader]:
        """A reader of its log. Raises StoreError where there is no store of that service."""
        if self._store is None:
            self._store = await open_store(self._url, service=self.service, create=False)
        return [StoreReader(self._store)]

    async def close(self) -> None:
        """Close the store that was opened for reading."""
        if self._store is not None:
            await self._store.close()
