"""JetStream as the event store: the stream is the log, the position of an event its sequence."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

from evsync.errors import (
    BrokerError,
    Conflict,
    EvsyncError,
    OutcomeUnknown,
    StoreError,
    StoreUnavailable,
)
from evsync.inspection import StoreFacts, Unreadable
from evsync.jetstream.client.backoff import Backoff
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.settings import NatsSettings
from evsync.jetstream.faults import passes
from evsync.jetstream.messages import MessageFormat
from evsync.jetstream.store import checkpoints, inspection
from evsync.jetstream.store.append import LONGEST_PAUSE_S, SHORTEST_PAUSE_S, Appending, Ends
from evsync.jetstream.store.imports import ImportStream
from evsync.jetstream.store.movable import MovableSlots
from evsync.jetstream.store.parts import parts_of
from evsync.jetstream.store.reads import Seen, StreamReads, Top
from evsync.jetstream.store.sends import Sender
from evsync.jetstream.store.slots import Slots
from evsync.jetstream.store.snapshots import SnapshotStream
from evsync.jetstream.store.stream import MAX_COMMIT_EVENTS, StoreUrl, open_stream
from evsync.jetstream.stream_settings import WITHOUT_SLOTS_KEY, StreamState
from evsync.ports import Capabilities
from evsync.records import Change, Checkpoint, Commit, LogIdentity, Snapshot, StoredEvent, change_of, check_name
from evsync.sharding.slots import SLOTS
from evsync.stores.tail import Tail

T = TypeVar("T")

PATIENCE_S = 10.0
"""How long a call waits for a broker that is away, or elects a leader, before it fails."""
_POLL_S = 0.05


class JetStreamStore(MovableSlots):
    """A Store in a JetStream stream: one event a message, one atomic batch for a commit of several.

    There is no relay: whoever follows the service reads this stream. Commits of one event are published all at once
    and judged one by one; where any commit of a call has several events, all of the call are one batch, which is taken
    apart again when one of them conflicts. Waits up to `patience_s` for a broker that does not answer.

    What an acknowledgement promises depends on the stream's replicas and the server's `sync_interval`: see
    docs/howto/jetstream-store.md.
    """

    capabilities = Capabilities(
        given_versions=True,
        any_text=False,
        checkpoints_are_events=True,
        max_commit_events=MAX_COMMIT_EVENTS,
        slots_leave=False,
    )

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        service: str,
        shard: str = "main",
        create: bool = True,
        owns_slots: bool = True,
        slots: int = SLOTS,
        files: Mapping[str, Path] | None = None,
        patience_s: float = PATIENCE_S,
        poll_s: float = _POLL_S,
    ) -> JetStreamStore:
        """The store at `nats://host:4222/?stream=NAME&replicas=3`, made if there is none and `create` is set.

        Of one that is made: `owns_slots`, whether all slots are open in it, as in the first shard of a service, or
        none; `slots`, how many there are.
        `files` are paths for NatsSettings: credentials, ca, certificate, key. Raises ConfigurationError for the URL,
        WrongStore for a stream that is not this log's store, StoreUnavailable when no server answers in time, or when
        there is no store.
        """
        check_name("service", service)
        check_name("shard", shard)
        parsed = StoreUrl.parse(url)
        conn = await Connection.open(NatsSettings(parsed.servers, **(files or {})), service)

        async def find() -> StreamState:
            await conn.ready(patience_s)
            return await open_stream(conn, service, shard, parsed, create=create, owns_slots=owns_slots, slots=slots)

        try:
            state = await _patiently(patience_s, find, "nothing was touched")
        except BaseException:
            await conn.close()
            raise
        return cls(conn, state, patience_s, poll_s)

    def __init__(self, conn: Connection, state: StreamState, patience_s: float, poll_s: float) -> None:
        """For `open`, which everybody else uses."""
        assert state.identity is not None
        self.identity: LogIdentity = state.identity
        self.stream = state.name
        self._conn, self._patience_s, self._poll_s = conn, patience_s, poll_s
        replicas = int(state.config.get("num_replicas") or 1)
        self._replicated = replicas > 1
        self._form = MessageFormat(self.identity.name)
        self._reads = StreamReads(conn, state.name, self.identity, self._form)
        self._sender = Sender(conn, state.name)
        self._ends = Ends()
        self._snapshots = SnapshotStream(conn, self.identity, replicas)
        self._slots = Slots(
            self.identity,
            self._form,
            self._reads,
            self._sender,
            ImportStream(conn, self.identity, replicas),
            owns_slots=WITHOUT_SLOTS_KEY not in state.metadata,
        )
        self._seen: Seen | None = None
        self._tail = Tail(state.last, self._poll)
        self._appending = asyncio.Lock()
        self._closed = False

    # ---- EventStore

    async def append(self, commits: Sequence[Commit]) -> list[int | Conflict]:
        """Append each commit, all of it or none; see `EventStore.append`.

        Raises EncodingError or EventTooLarge for a commit that no message or batch can hold, StoreFull or
        StoreUnavailable; then nothing of the whole call was stored. OutcomeUnknown when the broker was away for longer
        than the store's patience, and it cannot be told what it had taken before.
        """
        self._check_open()
        if not commits:
            return []
        parts = parts_of(commits, self.identity, self._form)
        # Not stopped in the middle when the caller is cancelled: an append is carried out, or not begun.
        return await asyncio.shield(asyncio.create_task(self._append_in_turn(parts)))

    async def read_stream(
        self, stream: str, *, after_version: int = 0, to_version: int | None = None
    ) -> list[StoredEvent]:
        """The events of a stream with `after_version < version <= to_version`, in order; [] if there are none.

        One round trip for a stream of up to 1,024 events; one more for a longer one, and for each 1,023 of it.
        """
        seen = self._seen if self._replicated else None
        events = own = await self._ask(lambda: self._reads.stream(stream, after_version, to_version, seen))
        if copies := await self._ask(lambda: self._slots.imports_of(stream, after_version, to_version)):
            events = sorted([*copies, *own], key=attrgetter("version"))
        if own and to_version is None:
            # A gap may have been filled: then the last message is not the one of the greatest version.
            self._ends.learn(stream, Top(events[-1].version, max(e.position for e in own)))
        return events

    async def read_changes(
        self, stream: str, *, after_version: int = 0, to_version: int | None = None
    ) -> AsyncIterator[Sequence[Change]]:
        """The same events in slices, as little of them as a fold needs."""
        if events := await self.read_stream(stream, after_version=after_version, to_version=to_version):
            yield list(map(change_of, events))

    async def checkpoints(self, follower: str) -> list[Checkpoint]:
        """The checkpoints that commits have stored under this name."""
        found = await self._ask(lambda: self._reads.last(checkpoints.stream_of(follower)))
        return list(checkpoints.read(found[0]).values()) if found is not None else []

    async def put_snapshot(self, snapshot: Snapshot) -> None:
        """Keep it in place of an older one, or one of another shape. Raises EventTooLarge if no message can hold it."""
        await self._ask(lambda: self._snapshots.put(snapshot))

    async def snapshot(self, stream: str) -> Snapshot | None:
        """The snapshot of a stream, if one is kept."""
        return await self._ask(lambda: self._snapshots.get(stream))

    async def close(self) -> None:
        """Carry out what was begun, then release everything. Calling twice is fine."""
        if self._closed:
            return
        self._closed = True
        await self._tail.close(self._closed_error())
        async with self._appending:
            self._sender.close()
            self._slots.imports.close()
            self._reads.close()
            await self._conn.close()

    # ---- EventLog

    async def head(self) -> int:
        """The position of the last event: 0 for an empty log."""
        head = await self._ask(self._reads.head)
        self._tail.moved(head)
        return head

    async def read(self, after: int, limit: int) -> list[StoredEvent]:
        """The events at positions after + 1, after + 2, …, about `limit` of them, whole commits only; [] at the end.

        Raises StreamHole or ForeignMessage where the stream was tampered with, or the server's files are damaged.
        """
        rows: list[StoredEvent] = []
        loop, backoff = asyncio.get_running_loop(), Backoff(SHORTEST_PAUSE_S, LONGEST_PAUSE_S)
        deadline = loop.time() + self._patience_s
        while True:
            place = rows[-1].position if rows else max(after, 0)
            needed = max(max(limit, 1) - len(rows), rows[-1].remaining if rows else 0)
            if needed <= 0:
                return rows
            more, goes_on = await self._ask(lambda: self._reads.log(place, min(needed, 10_000)))  # noqa: B023
            rows += more
            if goes_on:
                continue
            at_end = rows[-1].position if rows else place
            if not (rows and rows[-1].remaining) and at_end >= (self._tail.head if self._replicated else 0):
                return rows
            if loop.time() > deadline:
                raise self._unavailable(f"position {at_end + 1} cannot be read")
            if not more:  # the replica that answers lags behind
                await backoff.pause()

    async def wait(self, after: int, timeout_s: float) -> int:
        """The head, as soon as it is beyond `after`, or when the time has run out.

        Woken at once by appends of this store, by those of others within a poll.
        """
        self._check_open()
        await self._tail.beyond(after, timeout_s)
        return self._tail.head

    # ---- Inspectable

    async def facts(self) -> StoreFacts:
        """How much it holds. A stream counts if it has a version 1, as all have but some of other libraries."""
        return await self._ask(lambda: inspection.facts(self._conn, self.stream, self._snapshots.name, self))

    async def scan(self, after: int, limit: int) -> Sequence[StoredEvent | Unreadable]:
        """What is stored at up to `limit` positions after `after`, as the stream's leader knows it."""
        return await self._ask(lambda: inspection.scan(self._conn, self.stream, self._form, after, limit))

    async def self_check(self) -> Sequence[str]:
        """What the server says is missing, or wrong with its files."""
        return await self._ask(lambda: inspection.self_check(self._conn, self.stream))

    async def _poll(self) -> None:
        """Tell the tail what others append, while anybody waits for it."""
        try:
            while self._tail.awaited:
                with contextlib.suppress(BrokerError):
                    self._tail.moved(await self._reads.head())
                await asyncio.sleep(self._poll_s)
        except StoreError as e:
            self._tail.failed(e)

    # ---- appending

    async def _append_in_turn(self, parts: Sequence[Sequence[Commit]]) -> list[int | Conflict]:
        async with self._appending:
            self._check_open()
            nothing = any(not c.size and c.checkpoint is None for part in parts for c in part)
            head = await self.head() if nothing else 0
            appending = Appending(
                self.identity,
                self._form,
                self._reads,
                self._sender,
                self._ends,
                self._slots,
                deadline=asyncio.get_running_loop().time() + self._patience_s,
            )
            outcomes: list[int | Conflict] = []
            try:
                for part in parts:
                    for outcome in await appending.part(part):
                        if isinstance(outcome, int):
                            head = max(head, outcome)
                        outcomes.append(head if outcome is None else outcome)
            except OutcomeUnknown:
                raise
            except EvsyncError as e:
                if not appending.touched:
                    raise  # nothing of the whole call is stored
                raise OutcomeUnknown(
                    f"an append to stream {self.stream} was stored in part: {e}. Look for the command's id in its "
                    "streams before you save again; execute() does."
                ) from e
            finally:
                if appending.last is not None:
                    row, position = appending.last
                    self._seen = Seen(self._form.encode_unplaced(row)[0], position)
                    self._tail.moved(position)
            return outcomes

    # ---- the broker

    async def _ask(self, question: Callable[[], Awaitable[T]]) -> T:
        self._check_open()
        try:
            return await _patiently(self._patience_s, question, "reading is safe to try again")
        except StoreUnavailable:
            self._check_open()
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise self._closed_error()

    def _closed_error(self) -> StoreUnavailable:
        return StoreUnavailable(f"the store in stream {self.stream} is closed; nothing was stored")

    def _unavailable(self, what: str) -> StoreUnavailable:
        return StoreUnavailable(f"the store in stream {self.stream} at {self._conn.settings.shown}: {what}")


async def _patiently(patience_s: float, question: Callable[[], Awaitable[T]], aside: str) -> T:
    """The answer, asked for again while the broker does not give one. Raises StoreUnavailable in the end."""
    loop, backoff = asyncio.get_running_loop(), Backoff(SHORTEST_PAUSE_S, LONGEST_PAUSE_S)
    deadline = loop.time() + patience_s
    while True:
        try:
            return await question()
        except BrokerError as e:
            if not passes(e) or loop.time() > deadline:
                raise StoreUnavailable(f"{e} ({aside})") from e
        await backoff.pause()
