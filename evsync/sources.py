"""Where the logs of a service are read from when it is not JetStream: a service of this process, or its store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from evsync.errors import BEGIN_ANEW, OtherIncarnation, StoreUnavailable, WrongStore
from evsync.opening import open_store
from evsync.ports import EventLog, LogReader, ReadsShares, Share, Store, Stretch
from evsync.records import Ancestor, StoredEvent
from evsync.sharding.truth import check_all_there

logger = logging.getLogger("evsync")
_LOOK_S = 0.01


class StoreReader:
    """A log read from the store that holds it, whichever is open at the time. Implements LogReader."""

    def __init__(self, log: EventLog, log_now: Callable[[], EventLog | None]) -> None:
        self._log_now = log_now
        self.log = log.identity.name
        self._identity = log.identity

    @property
    def incarnation(self) -> str | None:
        """Of the log that was open last: a service may be opened again on a restored store."""
        return self._identity.incarnation

    @property
    def ancestry(self) -> Sequence[Ancestor]:
        """See LogIdentity."""
        return self._identity.ancestry

    async def read(self, after: int, limit: int, timeout_s: float) -> list[StoredEvent]:
        """See LogReader: the store's order is the log's. Raises OtherIncarnation for a log that has become shorter."""
        if (log := self._log_now()) is None:
            await asyncio.sleep(min(timeout_s, _LOOK_S))
            return []
        self._identity = log.identity
        events = await log.read(after, limit)
        if not events and timeout_s > 0:
            head = await log.wait(after, timeout_s)
            if head < after:
                raise OtherIncarnation(
                    f"log {self.log!r} ends at position {head}, and {after} was consumed: its store was put back to an "
                    f"older copy. Put the newer one back if there is one. {BEGIN_ANEW}",
                    log=self.log,
                    position=after,
                    head=head,
                )
            if head > after:
                events = await log.read(after, limit)
        return events

    async def read_share(self, after: int, limit: int, share: Share) -> Stretch:
        """See ReadsShares: as much as the store leaves out."""
        if not isinstance(log := self._log_now(), ReadsShares):
            return Stretch(())
        self._identity = log.identity
        return await log.read_share(after, limit, share)

    async def head(self) -> int | None:
        """The head of the log; None while it is not open."""
        log = self._log_now()
        return None if log is None else await log.head()

    async def close(self) -> None:
        """Nothing: the store belongs to whoever opened it."""


class ServiceSource:
    """The logs of a service that is open in this process, or will be (again). Implements LogSource."""

    def __init__(self, service: str, stores_of: Callable[[], Mapping[str, Store]]) -> None:
        """`stores_of` tells the stores by shard; none while the service is not open."""
        self.service = service
        self._stores_of = stores_of

    async def readers(self) -> Sequence[LogReader]:
        """A reader of each of its logs, as soon as it is open."""
        while not (stores := self._stores_of()):
            await asyncio.sleep(_LOOK_S)
        return [StoreReader(store, partial(self._now, shard)) for shard, store in stores.items()]

    def _now(self, shard: str) -> Store | None:
        return self._stores_of().get(shard)


class StoreSource:
    """The logs of another service, read from that service's own stores. Implements LogSource."""

    def __init__(self, service: str, urls: Mapping[str, str]) -> None:
        """`urls` are those of the stores, by shard."""
        self.service, self._urls = service, urls
        self._stores: dict[str, Store] = {}

    async def readers(self) -> Sequence[LogReader]:
        """A reader of each log. Raises StoreError where one is not there, or not of that service and shard.

        StoreUnavailable also where slots have gone to a shard that is not named: who reads the others already says so,
        and goes on with them.
        """
        await self._open()
        try:
            await self._check_all_there()
        except WrongStore as e:
            raise StoreUnavailable(str(e)) from e
        return [StoreReader(store, partial(self._stores.get, shard)) for shard, store in self._stores.items()]

    async def check(self) -> None:
        """Raise now what no waiting will mend: ConfigurationError for the URL, WrongStore. A store may come later."""
        try:
            await self._open()
            await self._check_all_there()
        except StoreUnavailable as e:
            logger.warning("waiting for the log of %s: %s", self.service, e)

    async def _open(self) -> None:
        for shard, url in self._urls.items():
            if shard not in self._stores:
                self._stores[shard] = await open_store(url, service=self.service, shard=shard, create=False)

    async def _check_all_there(self) -> None:
        if len(self._stores) == len(self._urls):
            await check_all_there(self._stores)

    async def close(self) -> None:
        """Close the stores that were opened for reading."""
        for store in self._stores.values():
            await store.close()
