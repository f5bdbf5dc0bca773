"""Whole services in one process, without servers and files, run until nothing is left to do."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from evsync.codec.fields import plain
from evsync.codec.values import pack
from evsync.definition import services_read_by, tell_of_unknown
from evsync.errors import ConfigurationError
from evsync.ports import LogReader, LogSource, ReadsShares, Share, Store, Stretch
from evsync.projections import Contract
from evsync.records import (
    Ancestor,
    Append,
    Commit,
    LogIdentity,
    NewEvent,
    Position,
    StoredEvent,
    encode_meta,
    new_command,
    new_incarnation,
    service_of,
    to_time_us,
)
from evsync.service import Service
from evsync.sharding.slots import slot_of
from evsync.sources import ServiceSource
from evsync.stores.memory import MemoryStore


@asynccontextmanager
async def world(*services: Service, shuffle: int | None = None) -> AsyncIterator[World]:
    """These services, open in this process: stores and read models in memory, no broker, every part running.

    A service with a router has a store for each of its shards.

    Without `shuffle` each step takes the first part that has something to do. With a seed, a random one does a little
    of it: batches are cut anywhere, events are delivered again, and projections, reactions and services overtake one
    another in every way that is legal. The same seed makes the same choices.
    """
    for service in services:
        if not isinstance(service, Service):
            raise ConfigurationError(f"world() takes services, not {service!r}")
    if len(names := [service.name for service in services]) > len(set(names)):
        raise ConfigurationError(f"world() takes services of different names, not {', '.join(names)}")
    made = World(services, shuffle)
    async with made.running():
        yield made


class World:
    """Services that are open together. Made by `world()`."""

    def __init__(self, services: Sequence[Service], shuffle: int | None) -> None:
        self._services = {service.name: service for service in services}
        self._random = None if shuffle is None else random.Random(shuffle)
        self._absent: dict[str, MemoryStore] = {}
        self._turn = asyncio.Lock()

    async def emit(self, fact: Contract, *, stream_id: str, type: str | None = None, **tags: str) -> Position:
        """Publish an event of a service that is not here, as one of its aggregates would: `emit(UserRegistered(…))`.

        `type` is needed where the contract catches several types (`users.*`). `tags` become the event's metadata.
        Raises ConfigurationError for a service that is here, or that nobody here listens to.
        """
        type = type or fact.__event_type__
        store = self._absent.get(service_of(type))
        if store is None:
            raise ConfigurationError(
                f"emit() speaks for services that are not in this world and that somebody here listens to: "
                f"{', '.join(self._absent) or 'there are none'}; not {type.split('.')[0]!r}"
            )
        if "*" in type:
            raise ConfigurationError(f"{type!r} is no event type: say which with emit(…, type='users.User.Registered')")
        version = len(await store.read_stream(stream_id))
        event = NewEvent(type, to_time_us(datetime.now(UTC)), pack(plain(fact.model_dump())), encode_meta(tags))
        commit = Commit(new_command(), [Append(stream_id, slot_of(stream_id), version, [event])])
        [outcome] = await store.append([commit])
        if not isinstance(outcome, int):
            raise outcome
        return store.identity.at(outcome)

    async def settled(self, *, timeout_s: float = 10.0) -> None:
        """Let every projection and reaction run until nothing is left to do. Raises what halted one of them."""
        async with asyncio.timeout(timeout_s):
            while await self._step():
                pass
        for service in self._services.values():
            if (failure := service.runtime.failure()) is not None:
                raise failure

    # ---- the parts, one step at a time

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open everything, and keep stepping in the background for whoever waits instead of calling `settled()`."""
        wanted = {name for service in self._services.values() for name in services_read_by(service)}
        for name in wanted - self._services.keys():
            self._absent[name] = MemoryStore(LogIdentity(name, "main", new_incarnation()))
        async with AsyncExitStack() as stack:
            for service in self._services.values():
                for other in self._services.values():
                    tell_of_unknown(service, other)
                sources: Any = {name: self._source(name) for name in services_read_by(service)}
                store: Any = "memory://"
                if service.router is not None:
                    store = dict.fromkeys(service.router.shards, store)
                await stack.enter_async_context(
                    service.open(store=store, views="sqlite://", nats="", run="none", sources=sources)
                )
            await self.settled()  # so that "now", for a reaction, is before anything that a test does
            stepping = asyncio.create_task(self._keep_stepping())
            try:
                yield
            finally:
                stepping.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await stepping

    def _source(self, name: str) -> LogSource:
        if (absent := self._absent.get(name)) is not None:
            source: LogSource = ServiceSource(name, lambda: {absent.identity.shard: absent})
        else:
            source = ServiceSource(name, lambda: self._services[name].stores)
        return source if self._random is None else _Redelivering(source, self._random)

    async def _keep_stepping(self) -> None:
        while True:
            heads = [(store, await store.head()) for store in self._stores()]
            while await self._step():
                await asyncio.sleep(0)
            waiting = [asyncio.create_task(store.wait(head, 60.0)) for store, head in heads]
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in waiting:
                    task.cancel()

    async def _step(self) -> bool:
        """One part does a little. False when none has anything to do."""
        async with self._turn:
            parts = [p for s in self._services.values() for p in s.runtime.followers()]
            if self._random is not None:
                self._random.shuffle(parts)
            for part in parts:
                logs: list[str | None] = [None]
                if self._random is not None and part.logs:
                    logs = self._random.sample(part.logs, len(part.logs))
                limit = None if self._random is None else self._random.randint(1, 4)
                for log in logs:
                    if await (part.step(log) if limit is None else part.step(log, limit)):
                        return True
        return False

    def _stores(self) -> Iterable[Store]:
        yield from self._absent.values()
        for service in self._services.values():
            yield from service.stores.values()


class _Redelivering:
    """A source whose readers now and then give again what was given before. Implements LogSource."""

    def __init__(self, source: LogSource, random: random.Random) -> None:
        self.service = source.service
        self._source, self._random = source, random

    async def readers(self) -> Sequence[LogReader]:
        return [_RedeliveringReader(reader, self._random) for reader in await self._source.readers()]


class _RedeliveringReader:
    """Implements LogReader: what it gives may begin before the position asked for, as a broker's redeliveries do."""

    def __init__(self, reader: LogReader, random: random.Random) -> None:
        self._reader, self._random = reader, random
        self.log = reader.log

    @property
    def incarnation(self) -> str | None:
        return self._reader.incarnation

    @property
    def ancestry(self) -> Sequence[Ancestor]:
        return self._reader.ancestry

    async def read(self, after: int, limit: int, timeout_s: float) -> list[StoredEvent]:
        again = self._random.choice((0, 0, 1, 5))
        events = await self._reader.read(after, limit, timeout_s)
        if events and again and after:
            before = await self._reader.read(max(0, after - again), again, 0.0)
            events = [e for e in before if e.position <= after] + events
        return events

    async def read_share(self, after: int, limit: int, share: Share) -> Stretch:
        reader = self._reader
        if not isinstance(reader, ReadsShares) or self._random.choice((True, False)):
            return Stretch(())
        return await reader.read_share(after, limit, share)

    async def head(self) -> int | None:
        return await self._reader.head()

    async def close(self) -> None:
        await self._reader.close()
