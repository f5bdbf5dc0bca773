"""The aggregates of one service in one store: load, save, and decide again when another writer was first."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from itertools import takewhile
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from evsync.aggregates.cache import AggregateCache
from evsync.aggregates.replay import Fold
from evsync.aggregates.snapshots import Snapshots
from evsync.aggregates.stream_locks import StreamLocks
from evsync.codec.events import EventCodec
from evsync.domain import AnyAggregate, BaseAggregate, invoke, stream_of
from evsync.errors import ConfigurationError, Conflict, DecodingError, EvsyncError, NotFound, OutcomeUnknown
from evsync.homes import Home
from evsync.records import (
    Append,
    Checkpoint,
    Commit,
    Position,
    StoredEvent,
    command_of,
    new_command,
    to_datetime,
    to_time_us,
)
from evsync.sharding.slots import slot_of

A = TypeVar("A", bound=BaseAggregate[Any])

ATTEMPTS = 30
"""How often `execute` decides before it gives up."""

SizeCheck = Callable[[Append], None]
"""Raises EventTooLarge for an append that some broker could not carry."""


class _Unsettled(NamedTuple):
    """Appends of the same events whose outcome is not known: what to look for before they are sent again."""

    expected_version: int
    commands: frozenset[bytes]


class Repository:
    """Loads and saves aggregates. In this process, one save per stream is in flight at a time."""

    def __init__(
        self,
        codec: EventCodec,
        home: Home,
        check_size: SizeCheck,
        snapshots: Snapshots | None = None,
        cache: AggregateCache | None = None,
    ) -> None:
        self._codec, self._home, self._check_size = codec, home, check_size
        self._snapshots, self._cache = snapshots, cache
        self._locks = StreamLocks()
        self._unsettled: OrderedDict[str, _Unsettled] = OrderedDict()

    # ---- load

    async def get(self, cls: type[A], id: UUID | str, *, version: int | None = None, at: datetime | None = None) -> A:
        """The aggregate as it is, or as it was at a version, or at a time (events of that very microsecond included).

        Raises NotFound for a stream that does not exist, has not come to that version, or began later.
        """
        stream = stream_of(id)
        if at is not None and at.tzinfo is None:
            raise ConfigurationError(f"at={at!r} has no time zone: use an aware datetime, such as datetime.now(UTC)")
        until = to_time_us(at) if at is not None else None
        return await self._load(cls, stream, version=version, until=until)

    async def history(self, cls: type[AnyAggregate], id: UUID | str) -> list[StoredEvent]:
        """All events of the aggregate's stream. Raises NotFound if there are none."""
        stream = stream_of(id)
        self._check_class(cls)
        events = await self._home.read_stream(stream)
        self._check_stream(cls, stream, events[0].type if events else None)
        return events

    async def _kept(self, stream: str, version: int | None, until: int | None) -> AnyAggregate | None:
        """The aggregate as the cache has it, or else its snapshot, unless that is later than what is asked for.

        The snapshot may be the newer one, after other processes have written much; but to look would cost every load
        a question to the store, and the one load that folds all of that leaves the cache as new as itself.
        """
        if self._cache is not None and until is None and (cached := self._cache.get(stream, version)) is not None:
            return cached
        base = await self._snapshots.load(stream) if self._snapshots is not None else None
        if base is None or (version is not None and version < base.snapshot.version):
            return None
        return base.aggregate if until is None or base.snapshot.latest_us <= until else None

    async def _load(self, cls: type[A], stream: str, *, version: int | None = None, until: int | None = None) -> A:
        """The aggregate after the events behind what is kept, or all, up to a version or a time. Raises NotFound."""
        self._check_class(cls)
        if version is not None and version < 1:
            raise NotFound(f"there is no version {version} of {cls.__name__} {stream!r}: versions begin at 1")
        base = await self._kept(stream, version, until)
        if base is not None:
            self._check_kind(cls, stream, type(base))
        folding = Fold(self._codec, stream, base)
        exists = base is not None
        async for changes in self._home.read_changes(stream, after_version=folding.version, to_version=version):
            if not exists:
                self._check_stream(cls, stream, changes[0][2])
                exists = True
            if until is not None:
                # Clocks may step back between two commits, versions do not: the prefix before the first later event.
                past = list(takewhile(lambda change: change[3] <= until, changes))
                folding.add(past)
                if len(past) < len(changes):
                    break
            else:
                folding.add(changes)
        if not exists:
            self._check_stream(cls, stream, None)
        if version is not None and folding.version < version:
            raise NotFound(f"{cls.__name__} {stream!r} is at version {folding.version}; there is no version {version}")
        if folding.version == 0:
            raise NotFound(f"{cls.__name__} {stream!r} did not exist at {to_datetime(until or 0)}")
        if not isinstance(folding.aggregate, cls):
            raise NotFound(f"{cls.__name__} {stream!r} was discarded by one of its own events")
        if self._cache is not None and version is None and until is None:
            self._cache.put(stream, folding.aggregate)
        return folding.aggregate

    def _check_class(self, cls: type[AnyAggregate]) -> None:
        if not any(issubclass(known, cls) for known in self._codec.aggregates):
            raise self._unregistered(cls)

    def _check_stream(self, cls: type[AnyAggregate], stream: str, first: str | None) -> None:
        """Raise NotFound for a stream without events (`first` is the type of its first one), or of another class."""
        if first is None:
            raise NotFound(f"there is no {cls.__name__} {stream!r} in service {self._codec.service!r}")
        with contextlib.suppress(DecodingError):  # an unknown type: whoever reads the event says so, and where
            self._check_kind(cls, stream, self._codec.coding_of(first).event.aggregate)

    def _check_kind(self, cls: type[AnyAggregate], stream: str, found: type[Any]) -> None:
        if not issubclass(found, cls):
            raise NotFound(f"stream {stream!r} is a {found.__name__}, not a {cls.__name__}")

    def _unregistered(self, cls: type[Any]) -> ConfigurationError:
        known = ", ".join(c.__name__ for c in self._codec.aggregates) or "none"
        return ConfigurationError(
            f"{cls.__qualname__} is not an aggregate of service {self._codec.service!r} (it has: {known}). "
            f"Add it: Service({self._codec.service!r}, aggregates=[…, {cls.__name__}])"
        )

    # ---- save

    async def save(
        self,
        aggregates: Iterable[AnyAggregate],
        tags: Mapping[str, str],
        *,
        follower: str | None = None,
        checkpoint: Checkpoint | None = None,
        after: int | None = None,
    ) -> Position:
        """Append the pending events of all these aggregates, and a follower's checkpoint, in one commit.

        Returns the position of its last event, or the log's head where there was nothing to save. Whatever is raised,
        the aggregates keep their pending events, so that saving again cannot silently do nothing.
        """
        streams = self._streams(aggregates)
        names = sorted(streams)
        if not self._locks.acquire_now(names):
            await self._locks.acquire(names)
        try:
            settled = await self._settle(streams) if self._unsettled else None
            changed = {stream: a for stream, a in streams.items() if a.pending_events}
            if not changed and checkpoint is None:
                return settled or await self._home.head(names[0])
            commit = self._decided(changed, tags, new_command(), follower, checkpoint, after)
            try:
                return await self._commit(commit, changed)
            except Conflict:
                # The other writer may have been an earlier try of these very events, late on its way to the store.
                settled = await self._settle(changed)
                if settled is None or any(a.pending_events for a in changed.values()):
                    raise
                return settled
        finally:
            self._locks.release(names)

    async def execute(
        self, cls: type[A], id: UUID | str, decide: Callable[..., None], args: Any, kwargs: Any, tags: Mapping[str, str]
    ) -> Position:
        """Load, decide, save: again after a conflict, and after an unknown outcome unless the command is found stored.

        Raises what `decide` raises, NotFound, and the last Conflict or OutcomeUnknown when patience has run out.
        """
        stream, command = stream_of(id), new_command()
        failed: EvsyncError | None = None
        decided_at: int | None = None
        """The version at which the first try decided: if the command is stored, its events are behind it."""
        for attempt in range(ATTEMPTS):
            if failed is not None:  # outside of the lock: others of this process may go first
                await asyncio.sleep(random.uniform(0, min(1.0, 0.002 * 2**attempt)))
            await self._locks.acquire((stream,))
            try:
                if decided_at is not None and (stored := await self._find(stream, command, decided_at)) is not None:
                    return stored
                aggregate = await self._load(cls, stream)
                if decided_at is None:
                    decided_at = aggregate.version
                invoke(decide, aggregate, *args, **kwargs)
                if not aggregate.pending_events:
                    return await self._home.head(stream)
                changed = {stream: aggregate}
                return await self._commit(self._decided(changed, tags, command), changed)
            except (Conflict, OutcomeUnknown) as e:
                failed = e
            finally:
                self._locks.release((stream,))
        assert failed is not None
        failed.add_note(f"execute() tried {ATTEMPTS} times.")
        raise failed

    async def _find(self, stream: str, command: bytes, after_version: int) -> Position | None:
        """The position at which the command's commit ends, if it is stored behind that version."""
        events = await self._home.read_stream(stream, after_version=after_version)
        mine = [e for e in events if command_of(e.id) == command]
        return self._home.end_of(mine[-1]) if mine else None

    def _decided(
        self, changed: Mapping[str, AnyAggregate], tags: Mapping[str, str], command: bytes, *reaction: Any
    ) -> Commit:
        appends = [self._append(stream, a, tags) for stream, a in changed.items()]
        return Commit(command, appends, *reaction)

    async def _commit(self, commit: Commit, changed: Mapping[str, AnyAggregate]) -> Position:
        try:
            position = await self._home.commit(commit)
        except (OutcomeUnknown, asyncio.CancelledError):
            for append in commit.appends:
                self._remember(append, commit.command)
            raise
        for append in commit.appends:
            # What was decided while the save was under way stays pending.
            del changed[append.stream].pending_events[: len(append.events)]
            if self._unsettled:
                self._unsettled.pop(append.stream, None)
            if self._snapshots is not None:
                before = append.expected_version
                self._snapshots.saved(append.stream, before, before + len(append.events))
        return position

    def _append(self, stream: str, aggregate: AnyAggregate, tags: Mapping[str, str]) -> Append:
        pending = aggregate.pending_events
        new = self._codec.encode(aggregate, pending, tags)
        append = Append(stream, slot_of(stream, self._home.slots), pending[0].originator_version - 1, new)
        self._check_size(append)
        return append

    def _streams(self, aggregates: Iterable[AnyAggregate]) -> dict[str, AnyAggregate]:
        streams: dict[str, AnyAggregate] = {}
        known = self._codec.aggregates
        for a in aggregates:
            if not isinstance(a, BaseAggregate):
                hint = ": give them one by one, as in save(a, b)" if isinstance(a, (list, tuple)) else ""
                raise ConfigurationError(f"{a!r} is not an aggregate and cannot be saved{hint}")
            if type(a) not in known:
                raise self._unregistered(type(a))
            stream = stream_of(a.id)
            if streams.setdefault(stream, a) is not a:
                raise ConfigurationError(
                    f"two objects of stream {stream!r} in one save: change one object, or save them one after the other"
                )
        return streams

    # ---- unknown outcomes

    def _remember(self, append: Append, command: bytes) -> None:
        before = self._unsettled.pop(append.stream, None)
        same = before is not None and before.expected_version == append.expected_version
        commands = before.commands | {command} if before is not None and same else frozenset((command,))
        self._unsettled[append.stream] = _Unsettled(append.expected_version, commands)
        while len(self._unsettled) > 10_000:  # an older one is then an ordinary conflict
            self._unsettled.popitem(last=False)

    async def _settle(self, streams: Mapping[str, AnyAggregate]) -> Position | None:
        """Find out what became of earlier saves of these very events whose reply was lost.

        Events that turn out to be stored are no longer pending. Returns the position of the last of them.
        """
        position: Position | None = None
        for stream, aggregate in streams.items():
            unsettled = self._unsettled.get(stream)
            if unsettled is None:
                continue
            pending = aggregate.pending_events
            if pending and pending[0].originator_version == unsettled.expected_version + 1:
                stored = await self._home.read_stream(stream, after_version=unsettled.expected_version)
                mine = [e for e in stored if command_of(e.id) in unsettled.commands]
                if not mine:
                    continue  # not yet, or never: they are sent again, and if that conflicts, looked for again
                del pending[: len(mine)]
                end = self._home.end_of(mine[-1])
                position = end if position is None or position.number < end.number else position
            self._unsettled.pop(stream, None)
        return position
