"""The library eventsource-py as it is used by itself, in SQLite: asynchronous, with pydantic models as events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from eventsource import (
    AggregateRepository,
    AggregateRoot,
    DatabaseProjection,
    DomainEvent,
    InMemoryEventBus,
    SQLCheckpointRepository,
    SQLiteEventStore,
    handles,
    register_event,
)
from eventsource.application.subscriptions import SubscriptionConfig, SubscriptionManager
from pydantic import BaseModel
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine

from benchmarks.workload import CUSTOMERS, NOTE

FULL = 2
_POLL_S = 0.005


@register_event
class Placed(DomainEvent):
    """One purchase."""

    event_type: str = "Placed"
    aggregate_type: str = "Order"
    customer_id: str
    cds: int
    price_cents: int
    note: str


class OrderState(BaseModel):
    """What an order is."""

    customer_id: str = ""
    cds: int = 0
    price_cents: int = 0
    note: str = ""


class Order(AggregateRoot[OrderState]):
    """As workload.Order: an aggregate with one event."""

    aggregate_type = "Order"

    def _get_initial_state(self) -> OrderState:
        return OrderState()

    def _apply(self, event: DomainEvent) -> None:
        assert isinstance(event, Placed)
        self._state = OrderState(
            customer_id=event.customer_id, cds=event.cds, price_cents=event.price_cents, note=event.note
        )


@register_event
class Opened(DomainEvent):
    """The beginning of an account."""

    event_type: str = "Opened"
    aggregate_type: str = "Account"
    owner: str


@register_event
class Deposited(DomainEvent):
    """Money was put in."""

    event_type: str = "Deposited"
    aggregate_type: str = "Account"
    amount: int
    reference: str


class AccountState(BaseModel):
    """What an account is."""

    owner: str = ""
    balance: int = 0
    last: str = ""


class Account(AggregateRoot[AccountState]):
    """As workload.Account: an aggregate with a long life."""

    aggregate_type = "Account"

    def _get_initial_state(self) -> AccountState:
        return AccountState()

    def _apply(self, event: DomainEvent) -> None:
        if isinstance(event, Opened):
            self._state = AccountState(owner=event.owner)
        elif isinstance(event, Deposited):
            state = self.state  # changed in place, which is quicker than a copy
            assert state is not None
            state.balance, state.last = state.balance + event.amount, event.reference


@asynccontextmanager
async def store(file: Path) -> AsyncIterator[SQLiteEventStore]:
    """Its event store in a file. Raises RuntimeError if that is not as durable as evsync's."""
    found = SQLiteEventStore(str(file))
    try:
        connection = await found._conn()
        said = []
        for pragma in ("journal_mode", "synchronous"):
            async with connection.execute(f"PRAGMA {pragma}") as cursor:
                row = await cursor.fetchone()
                said.append(row[0] if row else None)
        if said != ["wal", FULL]:
            raise RuntimeError(
                f"eventsource-py's SQLite connection has {said}, not ['wal', {FULL}]: not to be compared"
            )
        yield found
    finally:
        await found.close()


def _repository(store: SQLiteEventStore, cls: type[Any]) -> AggregateRepository[Any]:
    return AggregateRepository(store, cls, cls.aggregate_type, enable_tracing=False)


def _orders(repository: AggregateRepository[Any], count: int) -> list[Any]:
    made = []
    for i in range(count):
        order = repository.create_new(uuid4())
        order.apply_event(
            Placed(
                aggregate_id=order.aggregate_id,
                aggregate_version=1,
                customer_id=f"customer-{i % CUSTOMERS:05}",
                cds=1 + i % 7,
                price_cents=1299 + i % 900,
                note=NOTE,
            )
        )
        made.append(order)
    return made


async def _save_all(repository: AggregateRepository[Any], aggregates: Iterable[Any], in_flight: int) -> None:
    waiting = iter(aggregates)

    async def save_some() -> None:
        for aggregate in waiting:
            await repository.save(aggregate)

    await asyncio.gather(*[save_some() for _ in range(in_flight)])


def saves(count: int, warm_up: int, in_flight: int, directory: Path) -> float:
    """Saves of new orders a second."""

    async def run() -> float:
        async with store(directory / "events.db") as events:
            repository = _repository(events, Order)
            await _save_all(repository, _orders(repository, warm_up), in_flight=1)
            new = _orders(repository, count)
            began = time.perf_counter()
            await _save_all(repository, new, in_flight)
            return count / (time.perf_counter() - began)

    return asyncio.run(run())


def write_accounts(file: Path, events: Sequence[int], reference: str) -> list[UUID]:
    """An account for each number, with so many events."""

    async def run() -> list[UUID]:
        async with store(file) as found:
            repository, ids = _repository(found, Account), []
            for count in events:
                account = repository.create_new(uuid4())
                id = account.aggregate_id
                account.apply_event(Opened(aggregate_id=id, aggregate_version=1, owner="Ada"))
                for i in range(count - 1):
                    account.apply_event(
                        Deposited(aggregate_id=id, aggregate_version=2 + i, amount=i, reference=reference.format(i))
                    )
                await repository.save(account)
                ids.append(id)
            return ids

    return asyncio.run(run())


def replay(file: Path, ids: Sequence[UUID], events: int, _: Path) -> float:
    """Events a second, of accounts of so many events each."""

    async def run() -> float:
        async with store(file) as found:
            repository = _repository(found, Account)
            began = time.perf_counter()
            versions = {(await repository.load(id)).version for id in ids}
            seconds = time.perf_counter() - began
            if versions != {events}:
                raise RuntimeError(f"eventsource-py: accounts of versions {versions}, not {events}")
            return events * len(ids) / seconds

    return asyncio.run(run())


class Customers(DatabaseProjection):
    """Its read model: a transaction an event, the checkpoint in another one behind it."""

    done = 0

    @handles(Placed)
    async def _placed(self, conn: Any, event: Placed) -> None:
        values = {
            "id": event.customer_id,
            "cds": event.cds,
            "cents": event.price_cents,
            "last": str(event.aggregate_id),
        }
        await conn.execute(_INCREMENT, values)
        await conn.execute(_UPSERT, values)
        self.done += 1


_INCREMENT = text(
    "INSERT INTO customers (id, orders, cds, spent_cents) VALUES (:id, 1, :cds, :cents) ON CONFLICT (id) DO UPDATE SET "
    "orders = orders + 1, cds = cds + :cds, spent_cents = spent_cents + :cents"
)
_UPSERT = text(
    "INSERT INTO customers (id, last_order) VALUES (:id, :last) ON CONFLICT (id) DO UPDATE SET last_order = :last"
)


def project(directory: Path, count: int) -> float:
    """Seconds that a subscription takes for so many orders that are in the store."""

    async def run() -> float:
        async with store(directory / "events.db") as events:
            repository = _repository(events, Order)
            await _save_all(repository, _orders(repository, count), in_flight=1)
            engine = _engine(directory / "events.db")  # where the library's table of checkpoints is
            try:
                async with engine.begin() as c:
                    await c.execute(
                        text(
                            "CREATE TABLE customers (id TEXT PRIMARY KEY, orders INTEGER DEFAULT 0, "
                            "cds INTEGER DEFAULT 0, spent_cents INTEGER DEFAULT 0, last_order TEXT)"
                        )
                    )
                checkpoints = SQLCheckpointRepository(engine, enable_tracing=False)
                view = Customers(async_sessionmaker(engine, expire_on_commit=False))
                manager = SubscriptionManager(events, InMemoryEventBus(), checkpoints)
                await manager.subscribe(view, SubscriptionConfig(start_from="beginning", batch_size=1_000))
                began = time.perf_counter()
                await manager.start()
                async with asyncio.timeout(120):
                    while view.done < count:
                        await asyncio.sleep(_POLL_S)
                seconds = time.perf_counter() - began
                await manager.stop()
                async with engine.connect() as c:
                    found = (await c.execute(text("SELECT sum(orders) FROM customers"))).scalar_one()
                if found != count:
                    raise RuntimeError(f"eventsource-py: {found} orders in the read model, not {count}")
                return seconds
            finally:
                await engine.dispose()

    return asyncio.run(run())


def _engine(file: Path) -> AsyncEngine:
    engine = create_async_engine(f"sqlite+aiosqlite:///{file}")

    @event.listens_for(engine.sync_engine, "connect")
    def _settings(connection: Any, _: object) -> None:
        connection.execute("PRAGMA synchronous = NORMAL")  # as evsync's read models

    return engine
