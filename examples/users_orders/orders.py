"""The orders service: takes orders, and shows customers' names without ever asking users."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import date
from typing import Annotated, Any
from uuid import UUID

import sqlalchemy as sa
from fastapi import FastAPI, Header, HTTPException, Response
from pydantic import BaseModel

from evsync import (
    Aggregate,
    Contract,
    Event,
    NotFound,
    NotVisible,
    Position,
    Projection,
    Reaction,
    Service,
    SqlModel,
    Tables,
    event,
)


class Order(Aggregate):
    """One purchase of some CDs."""

    @event("Placed")
    def __init__(self, customer_id: str, cds: int, price_cents: int, on: date) -> None:
        self.customer_id, self.cds, self.price_cents, self.cancelled = customer_id, cds, price_cents, False

    def cancel(self) -> None:
        """Call it off, once."""
        if self.cancelled:
            raise ValueError("already cancelled")
        self._cancel(self.customer_id, self.cds, self.price_cents)

    @event("Cancelled")
    def _cancel(self, customer_id: str, cds: int, price_cents: int) -> None:
        self.cancelled = True


class UserRegistered(Contract, type="users.User.Registered"):
    """What orders needs of a registration."""

    name: str


class UserRenamed(Contract, type="users.User.Renamed"):
    """What orders needs of a new name."""

    name: str


class OrderPlaced(Contract, type="orders.Order.Placed"):
    """An order of our own, as the read model sees it."""

    customer_id: str
    cds: int
    price_cents: int
    on: date


class OrderCancelled(Contract, type="orders.Order.Cancelled"):
    """What has to be taken off again."""

    customer_id: str
    cds: int
    price_cents: int


tables = sa.MetaData()
customers = sa.Table(
    "customers",
    tables,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("name", sa.String),  # null until users has told us: between two sources there is no order
    sa.Column("orders", sa.Integer, server_default="0"),
    sa.Column("cds", sa.Integer, server_default="0"),
    sa.Column("spent_cents", sa.Integer, server_default="0"),
    sa.Column("last_order_on", sa.Date),
)
view = Projection("customers", model=SqlModel(tables))  # its sources follow from its contracts: users, orders


@view.on(UserRegistered)
def registered(e: Event[UserRegistered], db: Tables) -> None:
    """A customer has a name."""
    db.upsert(customers, id=e.stream_id, name=e.data.name)


@view.on(UserRenamed)
def renamed(e: Event[UserRenamed], db: Tables) -> None:
    """A customer has another name."""
    db.upsert(customers, id=e.stream_id, name=e.data.name)


@view.on(OrderPlaced)
def placed(e: Event[OrderPlaced], db: Tables) -> None:
    """One order more."""
    db.increment(customers, id=e.data.customer_id, orders=1, cds=e.data.cds, spent_cents=e.data.price_cents)
    db.upsert(customers, id=e.data.customer_id, last_order_on=e.data.on)


@view.on(OrderCancelled)
def cancelled(e: Event[OrderCancelled], db: Tables) -> None:
    """One order less."""
    db.increment(customers, id=e.data.customer_id, orders=-1, cds=-e.data.cds, spent_cents=-e.data.price_cents)


gift = Reaction("welcome-gift", since="now")


@gift.on(UserRegistered)
async def send_gift(e: Event[UserRegistered], orders: Service) -> Order:
    """Whoever registers gets a CD. What is returned is saved together with the reaction's checkpoint: once."""
    return Order(customer_id=e.stream_id, cds=1, price_cents=0, on=e.time.date())


orders = Service("orders", aggregates=[Order], projections=[view], reactions=[gift])
app = FastAPI(title="orders", lifespan=orders.lifespan)


class NewOrder(BaseModel):
    """What a customer wants to buy."""

    customer_id: str
    cds: int
    price_cents: int
    on: date


@app.post("/orders", status_code=201)
async def place(new: NewOrder, response: Response) -> dict[str, str]:
    """Place one order."""
    order = Order(new.customer_id, new.cds, new.price_cents, new.on)
    response.headers["Position"] = str(await orders.save(order))
    return {"id": str(order.id)}


@app.post("/orders/bulk", status_code=201)
async def place_many(new: list[NewOrder], response: Response) -> int:
    """Place many: each an aggregate and a save of its own, all in flight at once. Answers how many."""
    placed = [Order(n.customer_id, n.cds, n.price_cents, n.on) for n in new]
    positions = await asyncio.gather(*map(orders.save, placed))
    if positions:
        response.headers["Position"] = str(max(positions, key=lambda p: p.number))
    return len(placed)


@app.delete("/orders/{id}", status_code=204)
async def cancel(id: UUID, response: Response) -> None:
    """Call an order off."""
    try:
        response.headers["Position"] = str(await orders.execute(Order, id, Order.cancel))
    except NotFound:
        raise HTTPException(404, f"no order {id}") from None
    except ValueError as e:
        raise HTTPException(409, str(e)) from None


@app.get("/customers/{id}")
async def customer(id: str, position: Annotated[str | None, Header()] = None) -> dict[str, Any]:
    """One customer. Send the `Position` of a write (to users or to orders) along to see that write for certain."""
    try:
        after = Position.parse(position) if position else None
        rows = await orders.query(sa.select(customers).where(customers.c.id == id), after=after)
    except ValueError as e:
        raise HTTPException(400, str(e)) from None
    except NotVisible as e:
        raise HTTPException(503, str(e), headers={"Retry-After": "1"}) from None
    if (row := rows.mappings().first()) is None:
        raise HTTPException(404, f"no customer {id}")
    return dict(row)


@app.get("/status")
async def status() -> dict[str, Any]:
    """How far the read model is, log by log."""
    return asdict(await orders.status())
