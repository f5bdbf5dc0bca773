"""The PostgreSQL store keeps the laws."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import aclosing
from functools import partial

import psycopg
import pytest

from evsync.errors import EncodingError
from evsync.ports import Store
from evsync.records import Commit, Snapshot, new_command
from evsync.sharding.slots import slot_of
from evsync.stores.postgres.slots import CHANGES_PER_READ
from evsync.stores.postgres.store import PostgresStore
from evsync.stores.postgres.trimmed import TrimmablePostgresStore
from evsync.testing.contracts import EventLogContract, EventStoreContract, SlotStoreContract, SnapshotStoreContract
from evsync.testing.contracts.samples import append, one
from tests.relaying import eventually


class TestPostgresStore(EventStoreContract, EventLogContract, SnapshotStoreContract, SlotStoreContract):
    numbers = itertools.count()

    @pytest.fixture(autouse=True)
    def _database(self, postgres_url: str) -> None:
        self.database = postgres_url

    async def new_store(self) -> Store:
        url = f"{self.database}&schema=contract_{next(self.numbers)}"
        return await TrimmablePostgresStore.open(url, service="users")

    async def new_shard(self, shard: str, *, owns_slots: bool) -> Store:
        url = f"{self.database}&schema=contract_{next(self.numbers)}"
        return await TrimmablePostgresStore.open(url, service="users", shard=shard, owns_slots=owns_slots)

    async def reopen(self, store: Store) -> Store:
        return await TrimmablePostgresStore.open(
            self.url_of(store), service="users", shard=store.identity.shard, create=False
        )

    def url_of(self, store: Store) -> str:
        assert isinstance(store, PostgresStore)
        return f"{self.database}&schema={store.schema}"

    @pytest.mark.anyio
    async def test_an_id_that_no_column_can_hold_names_nothing(self) -> None:
        """PostgreSQL has no NUL in its texts: what is asked for by such an id is not there, and cannot be put there."""
        store = await self.new_store()
        assert await store.snapshot("a\0b") is None
        assert await store.checkpoints("a\0b") == []
        assert await store.read_stream("a\0b") == []
        with pytest.raises(EncodingError, match="cannot hold this"):
            await store.put_snapshot(Snapshot("a\0b", 1, "users.User", "shape", 0, b"", b""))
        await store.close()

    @pytest.mark.anyio
    async def test_an_append_waits_for_one_that_was_begun_before_it(self) -> None:
        """It draws its positions when the other one is committed, however long that takes: they never meet."""
        store = await self.new_store()
        assert isinstance(store, PostgresStore)
        other = await self.reopen(store)
        async with await psycopg.AsyncConnection.connect(self.database, autocommit=True) as c:
            await c.execute("SELECT pg_advisory_lock(77)")
            await c.execute(
                f"CREATE FUNCTION {store.schema}.hold() RETURNS trigger LANGUAGE plpgsql AS "
                "'BEGIN PERFORM pg_advisory_xact_lock_shared(77); RETURN NEW; END';"
                f"CREATE TRIGGER hold BEFORE INSERT ON {store.schema}.events "
                f"FOR EACH ROW EXECUTE FUNCTION {store.schema}.hold()"
            )

            async def waiting(number: int) -> bool:
                found = await c.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
                return (await found.fetchone() or (0,))[0] >= number

            appends = []
            for number, into in enumerate((store, other), start=1):
                appends.append(asyncio.create_task(into.append([one(f"user-{number}")])))
                await eventually(partial(waiting, number), "it does not wait")
            await c.execute("SELECT pg_advisory_unlock(77)")
            assert await asyncio.gather(*appends) == [[1], [2]]
        await other.close()
        await store.close()

    @pytest.mark.anyio
    @pytest.mark.parametrize("beyond", [-1, 2, 3, CHANGES_PER_READ + 2, CHANGES_PER_READ + 7])
    async def test_a_stream_of_any_length_is_read_in_slices(
        self, beyond: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Each event once, in order, up to the version asked for; who stops in the middle leaves nothing under way."""
        events = CHANGES_PER_READ + beyond
        store = await self.new_store()
        assert isinstance(store, TrimmablePostgresStore)
        await store.append([Commit(new_command(), [append("long", 0, events)])])
        slot = slot_of("long")
        for last in (None, events - 3, CHANGES_PER_READ):
            expected = list(range(3, min(events, last or events) + 1))
            for slices in (
                store.read_changes("long", after_version=2, to_version=last),
                store.read_open("long", slot, after_version=2, to_version=last),
            ):
                found = [changes async for changes in slices]
                assert [version for changes in found for _, version, *_ in changes] == expected
                assert all(len(changes) <= CHANGES_PER_READ for changes in found)
        tasks = asyncio.all_tasks()
        async with aclosing(store.read_open("long", slot)) as begun:  # type: ignore[type-var]
            assert await anext(begun)
        await eventually(lambda: asyncio.all_tasks() <= tasks, "what was asked for ahead is answered")
        assert caplog.messages == [], "no connection was lost"
        assert await store.head() == events
        await store.close()
