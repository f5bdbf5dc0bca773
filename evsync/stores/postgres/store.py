"""An event store in PostgreSQL: durable, for any number of processes on any number of machines."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import psycopg
from psycopg import AsyncConnection, sql

from evsync.errors import Conflict, EvsyncError, OutcomeUnknown, SlotMoved, StoreError, StoreUnavailable
from evsync.ports import Capabilities, Share
from evsync.records import (
    Change,
    Commit,
    LogIdentity,
    Snapshot,
    StoredEvent,
    as_stored_event,
    check_name,
    new_incarnation,
)
from evsync.sharding.slots import SLOTS
from evsync.stores.database import OWN_RANGE
from evsync.stores.plan import CheckpointKey, key_of, plan
from evsync.stores.postgres import schema as tables
from evsync.stores.postgres import statements
from evsync.stores.postgres.append import APPEND, arguments_of, parts_of
from evsync.stores.postgres.connections import Connections, settings_of
from evsync.stores.postgres.errors import OTHER_STORE, is_unwritable, replaced, translated, words
from evsync.stores.postgres.slots import MovableSlots

logger = logging.getLogger("evsync.stores")

_GOING_DOWN = "57P"  # class of admin_shutdown, crash_shutdown: the connection ends, perhaps after the commit


class PostgresStore(MovableSlots):
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
        new = LogIdentity(service, shard, new_incarnation(), slots)
        database = Connections(settings, schema, patience_s)
        try:
            async with database.connection() as c:
                identity, moves = await tables.prepare(c, schema, new, create=create, owns_slots=owns_slots)
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
        super().__init__(database, identity, schema, moves)
        self._poll_s = poll_s
        self._appending = asyncio.Lock()
        self._writer: AsyncConnection[Any] | None = None

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
        rows = await self._of_stream(statements.READ_STREAM, stream, after_version, to_version, statements.MANY)
        return list(map(as_stored_event, rows))

    async def read_changes(
        self, stream: str, *, after_version: int = 0, to_version: int | None = None
    ) -> AsyncIterator[Sequence[Change]]:
        """The same events in slices, as little of them as a fold needs. A slice is a round trip."""
        first = await self._of_stream(statements.READ_CHANGES, stream, after_version, to_version)
        async for changes in self._slices(first, stream, to_version):
            yield changes

    async def put_snapshot(self, snapshot: Snapshot) -> None:
        """Keep it in place of an older one, or one of another shape."""

        async def put(c: AsyncConnection[Any]) -> None:
            await c.execute(self._sql(statements.PUT_SNAPSHOT), snapshot)

        self._check_open()
        await self._database.patiently(put)  # doing it twice changes nothing

    async def close(self) -> None:
        """Carry out what was begun, then release everything. Calling twice is fine."""
        if self._closed:
            return
        self._closed = True
        await self._tail.close(self._closed_error())
        async with self._appending:
            if self._writer is not None:
                await self._writer.close()
        await self._database.close()

    # ---- EventLog

    async def _log(self, after: int, limit: int) -> list[StoredEvent]:
        return await self._events(statements.READ_LOG, (after, limit))

    async def _of_share(self, after: int, limit: int, share: Share) -> list[StoredEvent]:
        first, beyond = OWN_RANGE
        bounds = {"after": after, "until": after + limit, "own": first, "beyond": beyond, **_terms(share)}
        return await self._events(statements.READ_SHARE, bounds)

    async def _others(self, after: int, end: int, share: Share) -> int:
        ((count,),) = await self._fetch(statements.COUNT_OTHERS, {"after": after, "end": end, **_terms(share)})
        return int(count)

    # ---- Inspectable

    async def _size_bytes(self) -> int:
        ((size_bytes,),) = await self._fetch(statements.SIZE_BYTES, (self.schema,))
        return int(size_bytes)

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
                logger.warning("cannot listen to %s for a moment: %s", self._where, words(e))
                await asyncio.sleep(self._poll_s)

    async def _events(self, text: str, parameters: Any) -> list[StoredEvent]:
        return list(map(as_stored_event, await self._fetch(text, parameters)))

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
        await cursor.execute(self._sql(APPEND), (*parameters, self.identity.incarnation, self._channel), prepare=True)
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
        if is_unwritable(e):
            return translated(self._where, e, "nothing was sent")
        if c.closed or not state or state.startswith(_GOING_DOWN):
            self._writer = None
            with contextlib.suppress(psycopg.Error):
                await c.close()
            return OutcomeUnknown(
                f"the connection to {self._where} broke in the middle of an append ({words(e)}), which may or "
                "may not be stored. Look for the command's id in its streams before you save again; execute() does."
            )
        return replaced(self._where, self.identity) if state == OTHER_STORE else translated(self._where, e)


def _terms(share: Share) -> dict[str, Any]:
    return {"of": share.of, "groups": list(share.groups)}
