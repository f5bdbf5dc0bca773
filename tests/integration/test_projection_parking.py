"""Parking: what cannot be applied is set aside with its stream, others go on, and a person sets it going again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from evsync.errors import Parked
from evsync.projections import Event, ProjectionRunner, Tables, ViewsDatabase
from evsync.projections.rebuilding.rebuild import Rebuild
from evsync.records import Position
from tests.integration.test_projection_runner import at, running
from tests.projection_logs import Ledger, ListSource, Opened, fold_bank, stored
from tests.projection_processes import divided

pytestmark = pytest.mark.anyio

PAID = "bank.Account.Paid"


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """A database for read models."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/views.db"
        return
    server, schema = request.getfixturevalue("postgres_url"), f"p{abs(hash(request.node.name))}"
    yield f"{server}&schema={schema}"
    async with await psycopg.AsyncConnection.connect(server, autocommit=True) as c:
        await c.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


@pytest.fixture
async def views(url: str) -> AsyncIterator[ViewsDatabase]:
    """It, opened."""
    database = ViewsDatabase(url)
    yield database
    await database.close()


def payments(*amounts_of: tuple[str, int]) -> ListSource:
    """A log of payments into these accounts."""
    source = ListSource("bank")
    for account, amount in amounts_of:
        source.add(PAID, account, amount=amount)
    return source


async def test_a_stream_is_parked_and_others_go_on(views: ViewsDatabase, url: str) -> None:
    """A waiter for an event of it is told at once, in every process; after a retry it is free, in its order."""
    source, ledger = payments(("a", 1), ("b", 1), ("a", 2), ("c", 1)), Ledger(bad={3}, retries=1, then="park")
    elsewhere = ViewsDatabase(url)
    onlooker = ProjectionRunner(Ledger().projection, elsewhere, [source])
    async with running(runner := ProjectionRunner(ledger.projection, views, [source], lease_s=1.0)):
        await onlooker.open()
        waiting = asyncio.create_task(onlooker.wait(at(3), 10))
        await runner.wait(at(4), 10)
        for waiter in (runner.wait(at(3), 10), waiting, onlooker.wait(at(3), 10)):
            with pytest.raises(Parked) as told:
                await waiter
            assert (told.value.follower, told.value.stream, told.value.version) == ("ledger", "a", 2)
            assert told.value.reason == "ValueError: 3 is bad"
        source.add(PAID, "a", amount=3)
        source.add(PAID, "b", amount=3)
        await runner.wait(at(6), 10)
        with pytest.raises(Parked, match="an earlier event of the stream could not be applied"):
            await runner.wait(at(5), 10)
        assert await views.read(ledger.rows) == fold_bank(divided(source.events, {3})[0])
        for of in (runner, onlooker):
            assert (await of.status()).parked == 2

        with pytest.raises(Parked, match="3 is bad"):
            await runner.parked_streams.retry("bank", "a")
        assert await views.read(ledger.rows) == fold_bank(divided(source.events, {3})[0])
        # While the worker is at it, and from another process: whose handlers have been mended.
        assert await onlooker.parked_streams.retry("bank", "a") == 2
        await runner.wait(at(5), 10)
        source.add(PAID, "a", amount=4)
        await runner.wait(at(7), 10)
        assert await views.read(ledger.rows) == fold_bank(source.events)
        assert (await runner.status()).parked == 0
        counts = sa.text("SELECT sum(count) FROM evsync_checkpoints")
        assert await views.read(lambda c: c.execute(counts).scalar_one()) == 7
        assert runner._logs["bank.main"].condemned == {}
    await onlooker.close()
    await elsewhere.close()


async def test_a_stream_that_was_given_up_is_free_for_the_worker_that_parked_it(views: ViewsDatabase, url: str) -> None:
    """Skipping moves no checkpoint: only its token tells the worker that what it knows of the stream is over."""
    source, ledger = payments(("a", 1), ("a", 2)), Ledger(bad={2}, retries=0, then="park")
    elsewhere = ViewsDatabase(url)
    other = ProjectionRunner(Ledger().projection, elsewhere, [source])
    await other.open()
    async with running(runner := ProjectionRunner(ledger.projection, views, [source], lease_s=1.0)):
        with pytest.raises(Parked):
            await runner.wait(at(2), 10)
        assert await other.parked_streams.skip("bank", "a", every=True) == 1
        source.add(PAID, "a", amount=4)
        await runner.wait(at(3), 10)
        assert (await runner.status()).parked == 0
    await other.close()
    await elsewhere.close()


async def test_whoever_waits_for_a_commit_hears_of_each_of_its_events(views: ViewsDatabase) -> None:
    """A position is that of the commit's last event, and the parked one may stand before it."""
    source = ListSource("bank")
    source.append(stored(1, PAID, "a", 1, remaining=1, amount=1), stored(2, PAID, "b", 1, amount=1))
    ledger = Ledger(bad={1}, retries=0, then="park")
    async with running(runner := ProjectionRunner(ledger.projection, views, [source])):
        with pytest.raises(Parked, match="parked stream 'a'"):
            await runner.wait(at(2), 10)
        source.add(PAID, "b", amount=1)
        await runner.wait(at(3), 10)
        assert await views.read(ledger.rows) == fold_bank(source.events[1:])


async def test_whoever_waits_hears_of_what_a_rebuild_has_parked(views: ViewsDatabase, url: str) -> None:
    """Also of an event that was visible in the old model, and in a process that has seen that it was."""
    source, ledger = payments(("a", 1), ("b", 1), ("a", 2)), Ledger(then="park")
    elsewhere = ViewsDatabase(url)
    onlooker = ProjectionRunner(Ledger(then="park").projection, elsewhere, [source])
    async with running(runner := ProjectionRunner(ledger.projection, views, [source], lease_s=1.0)):
        await onlooker.open()
        await asyncio.gather(runner.wait(at(3), 10), onlooker.wait(at(3), 10))
        await Rebuild(Ledger(bad={1}, retries=0, then="park").projection, views, [source], grace_s=0.0).run()
        for of in (runner, onlooker):
            with pytest.raises(Parked, match="1 is bad"):
                await of.wait(at(1), 10)
            await of.wait(at(2), 10)
    await onlooker.close()
    await elsewhere.close()


async def test_what_only_the_end_of_a_transaction_refuses_is_found_and_parked(views: ViewsDatabase) -> None:
    """A deferred constraint names no event: smaller and smaller batches do."""
    ledger = Ledger(retries=0, then="park")
    owners = sa.Table("owners", ledger.metadata, sa.Column("name", sa.String, primary_key=True))
    owner = sa.ForeignKey(owners.c.name, deferrable=True, initially="DEFERRED")
    cards = sa.Table(
        "cards", ledger.metadata, sa.Column("id", sa.String, primary_key=True), sa.Column("owner", sa.String, owner)
    )

    def opened(e: Event[Opened], db: Tables) -> None:
        db.upsert(cards, id=e.stream_id, owner=e.data.owner)

    ledger.projection.handlers._of[Opened] = opened
    await ProjectionRunner(ledger.projection, views, [ListSource("bank")]).open()
    await views.write(lambda c: c.execute(sa.insert(owners).values(name="Ada")))
    source = ListSource("bank")
    for n in range(40):
        source.add("bank.Account.Opened", f"account-{n}", owner="nobody" if n in (7, 31) else "Ada")
    async with running(runner := ProjectionRunner(ledger.projection, views, [source])):
        await runner.wait(at(40), 10)
        summaries, _ = await runner.parked_streams.summaries()
        assert [(s.stream, s.events) for s in summaries] == [("account-7", 1), ("account-31", 1)]
        rows = await views.query(sa.select(sa.func.count()).select_from(cards))
        assert rows.scalar_one() == 38


async def test_what_was_parked_by_a_worker_that_died_is_known_to_its_heir(views: ViewsDatabase) -> None:
    """The parked streams of a group are read in the transaction that takes it."""
    source, ledger = payments(("a", 1), ("a", 2)), Ledger(bad={1}, retries=0, then="park")
    dead = ProjectionRunner(ledger.projection, views, [source], lease_s=1e-6)
    await dead.open()
    while await dead.step():
        pass
    source.add(PAID, "a", amount=3)
    async with running(heir := ProjectionRunner(Ledger().projection, views, [source])):
        with pytest.raises(Parked):
            await heir.wait(at(3), 10)
        assert await views.read(ledger.rows) == fold_bank([])
        with pytest.raises(Parked):
            await heir.wait(Position("bank.main", at(1).incarnation, 1), 10)


async def test_a_read_model_that_is_built_anew_begins_with_nothing_parked(views: ViewsDatabase) -> None:
    """What was parked for the old one must not keep its streams out of the new one."""
    source, ledger = payments(("a", 1), ("a", 2)), Ledger(bad={1}, retries=0, then="park")
    async with running(runner := ProjectionRunner(ledger.projection, views, [source])):
        with pytest.raises(Parked):
            await runner.wait(at(2), 10)
    for statement in (
        "DROP TABLE accounts",
        "DROP TABLE daily",
        "DELETE FROM evsync_checkpoints WHERE projection = 'ledger'",
        "DELETE FROM evsync_leases WHERE projection = 'ledger'",
    ):
        await views.write(lambda connection, s=statement: connection.execute(sa.text(s)))  # type: ignore[misc]
    ledger = Ledger(version=2)
    async with running(runner := ProjectionRunner(ledger.projection, views, [source])):
        await runner.wait(at(2), 10)
        assert await views.read(ledger.rows) == fold_bank(source.events)
        assert (await runner.status()).parked == 0
