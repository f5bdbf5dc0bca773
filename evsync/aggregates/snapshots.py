"""Snapshots: the state of an aggregate, kept so that a long stream need not be read from its beginning.

A snapshot is taken behind a save that crossed a boundary of the policy, by folding what the stream holds, never from
the object in the caller's hands: that may have been changed by other means than events, and a fold of one interval
costs less than a copy of the state. Before it is kept it is read back and compared, so that loading with and without
gives the same aggregate; where it does not, there is no snapshot, and loading takes the long way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from evsync.aggregates.replay import fold
from evsync.aggregates.shapes import shape_of
from evsync.codec.events import EventCodec
from evsync.codec.state import freeze_aggregate, thaw_aggregate
from evsync.domain import AnyAggregate
from evsync.errors import CodecError, ConfigurationError, EvsyncError
from evsync.ports import SnapshotStore
from evsync.records import Snapshot, StoredEvent, change_of, command_of

logger = logging.getLogger("evsync")

COMMANDS = 256
"""How many command ids a snapshot carries, for those who look for theirs after an unknown outcome."""
_COMMAND_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotPolicy:
    """When snapshots are taken: each time a save takes an aggregate over a multiple of `every_events` versions."""

    every_events: int = 100

    def __post_init__(self) -> None:
        if self.every_events < 1:
            raise ConfigurationError(f"SnapshotPolicy(every_events={self.every_events}): use 1 or more")

    def crossed(self, before: int, after: int) -> bool:
        """Whether the versions from `before` to `after` pass a multiple; a save of several events steps over none."""
        return after // self.every_events > before // self.every_events


class Loaded(NamedTuple):
    """An aggregate made from a snapshot, to be folded further."""

    aggregate: AnyAggregate
    snapshot: Snapshot


class Streams(SnapshotStore, Protocol):
    """Where the events of a stream are read, and its snapshot is kept."""

    async def read_stream(
        self, stream: str, *, after_version: int = 0, to_version: int | None = None
    ) -> list[StoredEvent]:
        """See EventStore.read_stream."""


class Snapshots:
    """Takes and loads the snapshots of one service. Whatever goes wrong costs time only, and is logged."""

    def __init__(self, policy: SnapshotPolicy, codec: EventCodec, store: Streams) -> None:
        self._policy, self._codec, self._store = policy, codec, store
        self._due: dict[str, None] = {}
        self._taking: asyncio.Task[None] | None = None
        self._refused: set[str] = set()

    def saved(self, stream: str, before: int, after: int) -> None:
        """A save took the stream from one version to another: take a snapshot, later, if it is time for one."""
        if self._policy.crossed(before, after):
            self._due[stream] = None
            if self._taking is None or self._taking.done():
                self._taking = asyncio.create_task(self._take_due(), name=f"evsync snapshots of {self._codec.service}")

    async def load(self, stream: str) -> Loaded | None:
        """The aggregate as the stream's snapshot has it, or None if there is none, or none that still fits."""
        try:
            snapshot = await self._store.snapshot(stream)
            return self._restored(snapshot) if snapshot is not None else None
        except EvsyncError as e:
            logger.warning("the snapshot of stream %r cannot be used: %s", stream, e)
            return None

    async def close(self) -> None:
        """Finish the snapshots that are due."""
        if self._taking is not None:
            await self._taking  # which has logged what went wrong; whoever is cancelled here must hear of that

    async def _take_due(self) -> None:
        while self._due:
            stream = next(iter(self._due))
            del self._due[stream]
            try:
                await self._take(stream)
            except EvsyncError as e:
                logger.warning("no snapshot of stream %r this time: %s", stream, e)
            except Exception:
                logger.exception("no snapshot of stream %r this time", stream)

    async def _take(self, stream: str) -> None:
        base = await self.load(stream)
        events = await self._store.read_stream(stream, after_version=base.snapshot.version if base else 0)
        if not events:
            return
        aggregate = fold(self._codec, stream, map(change_of, events), base.aggregate if base else None)
        if aggregate is None:
            return
        kind = f"{self._codec.service}.{type(aggregate).__name__}"
        try:
            snapshot = Snapshot(
                stream=stream,
                version=events[-1].version,
                type=kind,
                shape=shape_of(type(aggregate)),
                latest_us=max([base.snapshot.latest_us if base else 0, *(e.time_us for e in events)]),
                commands=b"".join(_last_commands(base.snapshot.commands if base else b"", events)),
                state=freeze_aggregate(aggregate),
            )
        except CodecError as e:
            if kind not in self._refused:
                self._refused.add(kind)
                logger.warning("no snapshots of %s, whose state cannot be kept: %s", kind, e)
            return
        await self._store.put_snapshot(snapshot)

    def _restored(self, snapshot: Snapshot) -> Loaded | None:
        cls = next((c for c in self._codec.aggregates if snapshot.type == f"{self._codec.service}.{c.__name__}"), None)
        if cls is None or snapshot.shape != shape_of(cls):
            return None
        return Loaded(thaw_aggregate(cls, snapshot.state), snapshot)


def _last_commands(before: bytes, events: Iterable[StoredEvent]) -> list[bytes]:
    earlier = (before[i : i + _COMMAND_BYTES] for i in range(0, len(before), _COMMAND_BYTES))
    return list(dict.fromkeys([*earlier, *(command_of(e.id) for e in events)]))[-COMMANDS:]
