"""An event store in PostgreSQL: durable, for any number of processes on any number of machines."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from functools import partial
from itertools import starmap
from typing import Any

import psycopg
from psycopg import AsyncConnection, sql

from evsync.errors import (
    Conflict,
    EncodingError,
    EvsyncError,
    OutcomeUnknown,
    SlotMoved,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from evsync.inspection import StoreFacts, Unreadable
from evsync.ports import Capabilities, Share
from evsync.records import Change, Checkpoint, Commit, LogIdentity, Snapshot, StoredEvent, as_stored_event, check_name
from evsync.sharding.slots import SLOTS
from evsync.stores.checkpoint_rows import COLUMNS, from_row
from evsync.stores.plan import CheckpointKey, key_of, plan
from evsync.stores.postgres import inspection
from evsync.stores.postgres import schema as tables
from evsync.stores.postgres import slots as slots_of
from evsync.stores.postgres.append import PARAMETERS, arguments_of, parts_of
from evsync.stores.postgres.connections import FULL, REFUSED, Connections, replaced, settings_of, words
from evsync.stores.postgres.schema import OTHER_STORE
from evsync.stores.postgres.slots import MovableSlots
from evsync.stores.shares import OWN_RANGE, ReadsByShare
from evsync.stores.tail import Tail
from evsync.tasks import end_task

logger = logging.getLogger("evsync.stores")

_READ_SHARE = f"""
    WITH stretch AS (
        SELECT position + remaining AS until FROM {{schema}}.events
        WHERE position > %(after)s AND position <= %(until)s AND position + remaining < coalesce((
            SELECT min(position + 0) FROM {{schema}}.events
            WHERE stream >= %(own)s AND stream < %(beyond)s AND position > %(after)s
        ), {2**63 - 1})
        ORDER BY position DESC LIMIT 1
    )
    SELECT {tables.COLUMNS} FROM {{schema}}.events
    WHERE position > %(after)s AND position <= (SELECT until FROM stretch)
        AND (slot %% %(of)s = ANY (%(groups)s) OR position = (SELECT until FROM stretch))
    ORDER BY position
"""
"""Up to evsync's own events, which are few: `+ 0` keeps the server from looking for the first of them by position."""
_COUNT_OTHERS = """
    SELECT count(*) FROM {schema}.events
    WHERE position > %(after)s AND position < %(end)s AND NOT slot %% %(of)s = ANY (%(groups)s)
"""
_GOING_DOWN = "57P"  # class of admin_shutdown, crash_shutdown: the connection ends, perhaps after the commit


class PostgresStore(ReadsByShare, MovableSlots):
    """An EventStore and EventLog in one schema of a PostgreSQL database. Made by `open`.

    One connection appends, a group of commits in one round trip; a few others read; one listens. Connections that break
    are made anew. What was being appended then raises OutcomeUnknown; reads are tried again by themselves.
    """

    capabilities = Capabilities(given_versions=True)

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        service: str,
        shard: str = "main",
        slots: int = SLOTS,
        create: bool = True,
        owns_slots: bool = True,
        patience_s: float = 10.0,
        poll_s: float = 0.25,
    ) -> PostgresStore:
        """The store at `postgresql://user@host/database?schema=…`, made if `create` allows it.

        Without `schema` it is the service's name (`service_shard` for a shard other than main). `slots` and
        `owns_slots` (whether all slots are open in it, or none) count for a new store only. `patience_s` is how
        long a database that is away is waited for before StoreUnavailable; `poll_s` how often `wait` looks for appends
        of other processes when no notification came. Raises ConfigurationError, WrongStore, StoreUnavailable.
        """
        check_name("service", service)
        check_name("shard", shard)
        settings, schema = settings_of(url, service, shard)
        database = Connections(settings, schema, patience_s)
        try:
            async with database.connection() as c:
                identity, moves = await tables.prepare(
                    c, schema, service=service, shard=shard, slots=slots, create=create, owns_slots=owns_slots
                )
            await database.readers()  # so that the first read need not wait for a connection
        except psycopg.Error as e:
            await database.close()
            raise StoreUnavailable(f"the store in {database.where} cannot be opened: {words(e)}") from e
        except BaseException:
            await database.close()
            raise
        return cls(database, identity, schema, poll_s, moves)

    def __init__(self, database: Connections, identity: LogIdentity, schema: str, poll_s: float, moves: int) -> None:
        """For `open`, which everybody else uses."""
        self.identity, self.schema = identity, schema
        self._database, self._poll_s = database, poll_s
        self._schema_name = name = sql.Identifier(schema)
        self._composed: dict[str, sql.Composed] = {}
        self._known_slots = (moves, {})
        events, log = sql.SQL("{}.events").format(name), sql.SQL("{}.log").format(name)
        columns = sql.SQL(tables.COLUMNS)
        self._read_log = sql.SQL("SELECT {} FROM {} WHERE position > %s ORDER BY position LIMIT %s").format(
            columns, events
        )
        self._read_head = sql.SQL("SELECT head FROM {}").format(log)
        self._read_checkpoints = sql.SQL("SELECT {} FROM {}.checkpoints WHERE follower = %s ORDER BY 1, 2").format(
            sql.SQL(COLUMNS), name
        )
        self._read_snapshot = sql.SQL("SELECT {} FROM {}.snapshots WHERE stream = %s").format(
            sql.SQL(", ".join(Snapshot._fields)), name
        )
        self._put_snapshot = sql.SQL(
            "INSERT INTO {}.snapshots AS kept ({}) VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (stream) DO UPDATE "
            "SET {} WHERE kept.shape <> excluded.shape OR kept.version < excluded.version"
        ).format(
            name,
            sql.SQL(", ".join(Snapshot._fields)),
            sql.SQL(", ".join(f"{field} = excluded.{field}" for field in Snapshot._fields)),
        )
        self._append = sql.SQL("SELECT * FROM {}.append_commits({})").format(name, sql.SQL(", ".join(PARAMETERS)))
        self._channel = f"evsync_{schema}"[:63]
        self._tail = Tail()
        self._watcher: asyncio.Task[None] | None = None
        self._appending = asyncio.Lock()
        self._writer: AsyncConnection[Any] | None = None
        self._closed = False

    # ---- EventStore

    async def append(self, commits: Sequence[Commit]) -> list[int | Conflict]:
        """Append each commit, all of it or none, in one transaction; see `EventStore.append`.

        Raises StoreUnavailable, StoreFull or EncodingError when nothing of the whole call was stored, OutcomeUnknown
        when the connection broke before the answer.
        """
        self._check_open()
        if not commits:
            return []
        # Not stopped in the middle when the caller is cancelled: an append is carried out, or not begun.
        return await asyncio.shield(asyncio.create_task(self._append_in_turn(commits)))

    async def read_stream(
        self, stream: str, *, after_version: int = 0, to_version: int | None = None
    ) -> list[StoredEvent]:
        """The events of a stream with `after_version < version <= to_version`, in order; [] if there are none."""
        rows = await self._of_stream(slots_of.READ_STREAM, stream, after_version, to_version, slots_of.MANY)
        return list(map(as_stored_event, rows))

    async def read_changes(
        self, stream: str, *, after_version: int = 0, to_version: int | None = None
    ) -> AsyncIterator[Sequence[Change]]:
        """The same events in slices, as little of them as a fold needs. A slice is a round trip."""
        first = await self._of_stream(slots_of.READ_CHANGES, stream, after_version, to_version)
        async for changes in self._slices(first, stream, to_version):
            yield changes

    async def checkpoints(self, follower: str) -> list[Checkpoint]:
        """The checkpoints that commits have stored under this name, by log and group."""
        return list(starmap(from_row, await self._fetch(self._read_checkpoints, (follower,))))

    async def put_snapshot(self, snapshot: Snapshot) -> None:
        """Keep it in place of an older one, or one of another shape."""

        async def put(c: AsyncConnection[Any]) -> list[tuple[Any, ...]]:
            await c.execute(self._put_snapshot, snapshot)
            return []

        self._check_open()
        await self._database.patiently(put)  # doing it twice changes nothing

    async def snapshot(self, stream: str) -> Snapshot | None:
        """The snapshot of a stream, if one is kept."""
        rows = await self._fetch(self._read_snapshot, (stream,))
        return Snapshot(*rows[0]) if rows else None

    async def close(self) -> None:
        """Carry out what was begun, then release everything. Calling twice is fine."""
        if self._closed:
            return
        self._closed = True
        self._tail.failed(self._closed_error())
        if self._watcher is not None:
            await end_task(self._watcher)
        async with self._appending:
            if self._writer is not None:
                await self._writer.close()
        await self._database.close()

    # ---- EventLog

    async def head(self) -> int:
        """The position of the last event: 0 for an empty log."""
        ((head,),) = await self._fetch(self._read_head, ())
        return int(head)

    async def read(self, after: int, limit: int) -> list[StoredEvent]:
        """The events at positions after + 1, after + 2, …, about `limit` of them, whole commits only; [] at the end."""
        rows = await self._rows(self._read_log, (after, max(limit, 1)))
        if rows and (remaining := rows[-1].remaining):
            rows += await self._rows(self._read_log, (rows[-1].position, remaining))
        return rows

    async def _of_share(self, after: int, limit: int, share: Share) -> list[StoredEvent]:
        first, beyond = OWN_RANGE
        bounds = {"after": after, "until": after + limit, "own": first, "beyond": beyond, **_terms(share)}
        return await self._rows(self._sql(_READ_SHARE), bounds)

    async def _others(self, after: int, end: int, share: Share) -> int:
        ((count,),) = await self._fetch(self._sql(_COUNT_OTHERS), {"after": after, "end": end, **_terms(share)})
        return int(count)

    async def wait(self, after: int, timeout_s: float) -> int:
        """The head, as soon as it is beyond `after`, or when the time has run out.

        Woken at once by appends of this store and by notifications of others; a poll stands behind them.
        """
        self._check_open()
        if self._tail.head <= after and timeout_s > 0:
            if self._watcher is None or self._watcher.done():
                self._watcher = asyncio.create_task(self._watch(), name=f"evsync listener of {self.identity.name}")
            await self._tail.beyond(after, timeout_s)
        return self._tail.head if self._tail.head > after else await self.head()

    # ---- Inspectable

    async def facts(self) -> StoreFacts:
        """How much it holds."""
        self._check_open()
        return await self._database.patiently(partial(inspection.facts, self._database.where, self.schema))

    async def scan(self, after: int, limit: int) -> list[StoredEvent | Unreadable]:
        """What is stored at up to `limit` positions after `after`, gaps and cut commits included."""
        return [*await self._rows(self._read_log, (after, limit))]

    async def self_check(self) -> Sequence[str]:
        """Nothing: what PostgreSQL has for this (amcheck) is for its administrators."""
        return ()

    async def _watch(self) -> None:
        """Tell the tail what others append, from the first call of `wait` until the store is closed.

        A notification is a hint that saves time. That it may be missed (a listener that was killed, a failover) costs
        no more than the poll's interval.
        """
        listen = sql.SQL("LISTEN {}").format(sql.Identifier(self._channel))
        while True:
            try:
                async with self._database.connection() as c:
                    await c.execute(listen)
                    while True:
                        if self._tail.awaited:
                            self._tail.moved(await self.head())
                        async for notice in c.notifies(timeout=self._poll_s, stop_after=1):
                            self._tail.moved(int(notice.payload))
            except (psycopg.Error, StoreError) as e:
                logger.warning("cannot listen to %s for a moment: %s", self._database.where, words(e))
                await asyncio.sleep(self._poll_s)

    # ---- reading

    async def _rows(self, query: sql.Composed, parameters: Any) -> list[StoredEvent]:
        return list(map(as_stored_event, await self._fetch(query, parameters)))

    async def _fetch(self, query: sql.Composed, parameters: Any) -> list[tuple[Any, ...]]:
        self._check_open()

        async def fetch(c: AsyncConnection[Any]) -> list[tuple[Any, ...]]:
            async with c.cursor(binary=True) as cursor:
                await cursor.execute(query, parameters, prepare=True)
                return await cursor.fetchall()

        return await self._database.patiently(fetch)

    # ---- writing

    async def _append_in_turn(self, commits: Sequence[Commit]) -> list[int | Conflict]:
        parts = list(parts_of(commits))
        async with self._appending:
            c = self._writer
            if c is None or c.closed:
                c = self._writer = await self._database.connect()
            try:
                if len(parts) == 1:
                    outcomes = await self._append_part(c, parts[0])
                else:
                    outcomes = []
                    async with c.transaction():
                        for part in parts:
                            outcomes += await self._append_part(c, part)
            except psycopg.Error as e:
                raise await self._failed(c, e) from e
        self._tail.moved(max((o for o in outcomes if isinstance(o, int)), default=0))
        return outcomes

    async def _append_part(self, c: AsyncConnection[Any], commits: Sequence[Commit]) -> list[int | Conflict]:
        """One call of the function: commits that have no stream and no checkpoint in common."""
        # Planned as if every expectation were met; the function finds out which are not, and gives positions.
        expected = {a.stream: a.expected_version for commit in commits for a in reversed(commit.appends)}
        after: dict[CheckpointKey, int] = {
            key: commit.after for commit in commits if commit.after is not None and (key := key_of(commit)) is not None
        }
        planned = plan(self.identity, 0, expected, after, commits)
        parameters, judged = arguments_of(commits, planned)
        cursor = c.cursor(binary=True)
        await cursor.execute(self._append, (*parameters, self.identity.incarnation, self._channel), prepare=True)
        row = await cursor.fetchone()
        assert row is not None
        head, refused, items, actuals = row
        outcomes: list[int | Conflict] = []
        found: dict[int, tuple[int, int]] = {}
        judgements = zip(refused or (), items or (), actuals or (), strict=True)
        # A slot that is not open here comes first (see the function), then the checkpoint, then streams in their order.
        for number, item, actual in sorted(judgements, key=lambda j: (j[0], j[2] >= 0, j[1])):
            found.setdefault(number, (item, actual))
        for number, commit in enumerate(commits):
            if number in found:
                item, actual = found[number]
                if actual < 0:
                    state = await self.slot_state(slot := -1 - actual)
                    outcomes.append(SlotMoved(judged[item][0], slot, state.to if state is not None else None))
                else:
                    outcomes.append(planned.outcomes[number] if item not in judged else Conflict(*judged[item], actual))
            else:
                head += commit.size
                outcomes.append(head)
        return outcomes

    async def _failed(self, c: AsyncConnection[Any], e: psycopg.Error) -> EvsyncError:
        """What an error of an append means, which depends on whether the server itself has said that it failed."""
        state = e.sqlstate or ""
        if isinstance(e, psycopg.DataError) and not state:
            return EncodingError(f"{self._database.where} cannot hold this: {words(e)}; nothing was sent")
        if c.closed or not state or state.startswith(_GOING_DOWN):
            self._writer = None
            with contextlib.suppress(psycopg.Error):
                await c.close()
            return OutcomeUnknown(
                f"the connection to {self._database.where} broke in the middle of an append ({words(e)}), which may or "
                "may not be stored. Look for the command's id in its streams before you save again; execute() does."
            )
        if state == OTHER_STORE:
            return replaced(self._database.where, self.identity)
        if state in FULL:
            return StoreFull(f"{self._database.where}: {words(e)}; nothing was stored. Make room, then save again.")
        if state[:2] in REFUSED:
            return EncodingError(f"{self._database.where} cannot hold this: {words(e)}; nothing was stored")
        return StoreUnavailable(f"{self._database.where}: {words(e)} ({state}); nothing was stored")

    def _check_open(self) -> None:
        if self._closed:
            raise self._closed_error()

    def _closed_error(self) -> StoreUnavailable:
        return StoreUnavailable(f"the store in {self._database.where} is closed; nothing was stored")


def _terms(share: Share) -> dict[str, Any]:
    return {"of": share.of, "groups": list(share.groups)}
