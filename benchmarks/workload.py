"""The aggregates and the read model that are measured: the same classes for evsync and for eventsourcing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import sqlalchemy as sa

from evsync import Aggregate, Contract, Event, Position, Projection, Service, SqlModel, Tables, event
from evsync.sharding import Router

CUSTOMERS = 2_000
NOTE = "n" * 120
"""Makes the events about 200 bytes long."""


class Order(Aggregate):
    """One purchase: an aggregate with one event."""

    @event("Placed")
    def __init__(self, customer_id: str, cds: int, price_cents: int, note: str) -> None:
        self.customer_id, self.cds, self.price_cents, self.note = customer_id, cds, price_cents, note


class Account(Aggregate):
    """An aggregate with a long life."""

    @event("Opened")
    def __init__(self, owner: str) -> None:
        self.owner, self.balance, self.last = owner, 0, ""

    @event("Deposited")
    def deposit(self, amount: int, reference: str) -> None:
        """Put money in."""
        self.balance += amount
        self.last = reference


class OrderPlaced(Contract, type="shop.Order.Placed"):
    """What the read model needs of an order."""

    customer_id: str
    cds: int
    price_cents: int


tables = sa.MetaData()
customers = sa.Table(
    "customers",
    tables,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("orders", sa.Integer, server_default="0"),
    sa.Column("cds", sa.Integer, server_default="0"),
    sa.Column("spent_cents", sa.Integer, server_default="0"),
    sa.Column("last_order", sa.String),
)


def orders(count: int) -> list[Order]:
    """New orders, not saved yet, of customers who take turns."""
    return [Order(f"customer-{i % CUSTOMERS:05}", 1 + i % 7, 1299 + i % 900, NOTE) for i in range(count)]


def shop(router: Router | None = None, *, cached_aggregates: int = 0) -> Service:
    """The service that takes the orders."""
    return Service("shop", aggregates=[Order, Account], router=router, cached_aggregates=cached_aggregates)


def reports() -> Service:
    """A service with a read model of the shop's orders: two operations on one row an event."""
    view = Projection("customers", model=SqlModel(tables))

    @view.on(OrderPlaced)
    def placed(e: Event[OrderPlaced], db: Tables) -> None:
        db.increment(customers, id=e.data.customer_id, orders=1, cds=e.data.cds, spent_cents=e.data.price_cents)
        db.upsert(customers, id=e.data.customer_id, last_order=e.stream_id)

    return Service("reports", projections=[view])


async def save_all(service: Service, aggregates: Iterable[Aggregate], *, in_flight: int) -> Position:
    """Save each by itself, so many at a time: a new one begins when one has ended. Returns the last position."""
    waiting = iter(aggregates)
    last: Position | None = None

    async def save_some() -> None:
        nonlocal last
        for aggregate in waiting:
            position = await service.save(aggregate)
            if last is None or position.number > last.number:
                last = position

    await asyncio.gather(*(save_some() for _ in range(in_flight)))
    if last is None:
        raise ValueError("there was nothing to save, so there is no last position")
    return last


async def full_log(path: Path, events: int) -> Position:
    """Make the shop's store, with so many orders in it. Returns the last position."""
    async with shop().open(store=sqlite_url(path)) as service:
        return await save_all(service, orders(events), in_flight=1_000)


def sqlite_url(path: Path) -> str:
    """The URL of an SQLite file."""
    return f"sqlite:///{path}"
