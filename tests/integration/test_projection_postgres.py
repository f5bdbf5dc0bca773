"""Read models in PostgreSQL: the same runner, handlers and laws, in another database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from evsync import Aggregate, Contract, Event, Halted, Projection, Service, SqlModel, Tables, event
from evsync.errors import ConfigurationError
from evsync.projections import ProjectionRunner, ViewsDatabase
from evsync.projections.models.engines import ViewsPlace
from tests.projection_logs import ListSource

pytestmark = pytest.mark.anyio


class Account(Aggregate):
    """Has a balance."""

    @event("Opened")
    def __init__(self, owner: str) -> None:
        self.owner = owner

    @event("Paid")
    def pay(self, amount: int) -> None:
        """Take money."""


class Opened(Contract, type="bank.Account.Opened"):
    """An account."""

    owner: str


class Paid(Contract, type="bank.Account.Paid"):
    """A payment."""

    amount: int


def bank() -> tuple[Service, sa.Table, Projection[Tables]]:
    """A service with a read model of its own."""
    metadata = sa.MetaData()
    accounts = sa.Table(
        "accounts",
        metadata,
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("owner", sa.String),
        sa.Column("paid", sa.BigInteger, server_default="0"),
        sa.Column("payments", sa.Integer, server_default="0"),
    )
    view = Projection("accounts", model=SqlModel(metadata), retries=0)

    @view.on(Opened)
    def opened(e: Event[Opened], db: Tables) -> None:
        db.upsert(accounts, id=e.stream_id, owner=e.data.owner)

    @view.on(Paid)
    def paid(e: Event[Paid], db: Tables) -> None:
        if e.data.amount == 13:
            raise ValueError("13 is unlucky")
        db.increment(accounts, id=e.stream_id, paid=e.data.amount, payments=1)

    return Service("bank", aggregates=[Account], projections=[view]), accounts, view


@pytest.fixture
async def urls(postgres_url: str, request: pytest.FixtureRequest) -> AsyncIterator[dict[str, Any]]:
    """A schema for the events and one for the read models, of this test alone."""
    name = f"t{abs(hash(request.node.name))}"
    yield {"store": f"{postgres_url}&schema={name}", "views": f"{postgres_url}&schema={name}_views"}
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as c:
        for schema in (name, f"{name}_views"):
            await c.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


async def balances(service: Service, accounts: sa.Table) -> dict[str, tuple[int, int]]:
    """What the read model shows."""
    rows = await service.query(sa.select(accounts.c.owner, accounts.c.paid, accounts.c.payments))
    return {owner: (paid, payments) for owner, paid, payments in rows}


async def test_store_and_read_model_in_one_database(urls: dict[str, Any]) -> None:
    """Saved, projected, read back by position: nothing but PostgreSQL."""
    service, accounts, _ = bank()
    async with service.open(**urls):
        people = [Account(f"p{n}") for n in range(20)]
        await asyncio.gather(*map(service.save, people))
        done = [service.execute(Account, p.id, Account.pay, n) for p in people for n in range(5)]
        positions = await asyncio.gather(*done)
        last = max(positions, key=lambda p: p.number)
        await service.wait(last)
        assert await balances(service, accounts) == {f"p{n}": (10, 5) for n in range(20)}


async def test_many_that_begin_at_once_make_schema_and_tables_once(urls: dict[str, Any]) -> None:
    """Creating what is missing is safe beside others who do the same."""
    databases = [ViewsDatabase(urls["views"]) for _ in range(12)]
    _, _, view = bank()
    runners = [ProjectionRunner(view, database, [ListSource("bank")]) for database in databases]
    await asyncio.gather(*(runner.open() for runner in runners))
    for runner, database in zip(runners, databases, strict=True):
        await runner.close()
        await database.close()


async def test_the_read_model_goes_on_where_it_was(urls: dict[str, Any]) -> None:
    """Its checkpoint is in its own transaction. Where no place is given for it, it is beside the store."""
    service, accounts, _ = bank()
    account = Account("ada")
    for amount in (1, 2, 3):
        async with service.open(store=urls["store"]):
            account.pay(amount)
            await service.wait(await service.save(account))
    async with service.open(**urls, run="none"):
        assert await balances(service, accounts) == {"ada": (6, 3)}


async def test_two_workers_apply_every_event_once(urls: dict[str, Any]) -> None:
    """One works, the other stands by and takes over when the first ends."""
    (one, accounts, _), (two, _, _) = bank(), bank()
    account = Account("ada")
    async with two.open(**urls):
        async with one.open(**urls):
            for _ in range(30):
                account.pay(1)
                last = await one.save(account)
            await one.wait(last)
        for _ in range(30):
            account.pay(1)
            last = await two.save(account)
        await two.wait(last, timeout_s=20)
        assert await balances(two, accounts) == {"ada": (60, 60)}


async def test_connections_that_are_cut_are_not_the_events_fault(urls: dict[str, Any], postgres_url: str) -> None:
    """No attempt counts; nothing is lost and nothing applied twice."""
    service, accounts, _ = bank()
    account = Account("ada")
    async with service.open(**urls):
        for _ in range(4):
            for _ in range(20):
                account.pay(1)
                last = await service.save(account)
            async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as c:
                await c.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'evsync views'"
                )
            await service.wait(last, timeout_s=20)
        for _ in range(100):  # a query on a cut connection fails once, as an unavailable database does
            try:
                assert await balances(service, accounts) == {"ada": (80, 80)}
                break
            except Exception as e:
                if isinstance(e, AssertionError):
                    raise
                await asyncio.sleep(0.02)


async def test_a_handler_that_raises_halts_and_leaves_no_trace(urls: dict[str, Any]) -> None:
    """Nothing of its batch is applied, and the error names the event."""
    service, accounts, view = bank()
    account = Account("ada")
    async with service.open(**urls):
        account.pay(13)
        last = await service.save(account)
        with pytest.raises(Halted, match=r"position 2 of log 'bank.main': bank\.Account\.Paid"):
            await service.wait(last, view, timeout_s=20)
        assert await balances(service, accounts) == {}


def test_passwords_are_not_shown_and_odd_urls_refused() -> None:
    """What stands before an @ may be a secret."""
    for url in ("postgresql+asyncpg://u:secret@h/db", "postgresql://u:secret@h/db?schema=a&schema=b", "x@y:secret"):
        with pytest.raises(ConfigurationError) as caught:
            ViewsPlace.of(url)
        assert "secret" not in str(caught.value)
