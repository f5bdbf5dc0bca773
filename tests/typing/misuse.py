"""Read by a type checker only: the lines that are marked so must be errors, and no other line may be one."""
# ruff: noqa

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, assert_type
from uuid import uuid4

import sqlalchemy as sa

from evsync import Contract, Event, MemoryModel, Position, Projection, Reaction, Service, Tables
from examples.users_orders.orders import Order, OrderPlaced, UserRegistered, customers, gift, orders, view
from examples.users_orders.users import User, users

uid = uuid4()


async def right() -> None:
    assert_type(await users.get(User, uid), User)
    assert_type(await users.get(User, uid, version=3), User)
    assert_type(await users.get(User, uid, at=datetime.now()), User)
    assert_type(await users.execute(User, uid, User.rename, "x"), Position)
    assert_type(await users.execute(User, uid, lambda u: u.rename("x")), Position)
    assert_type(view, Projection[Tables])
    rows = await orders.query(sa.select(customers.c.id), after=await users.save(User("a", "b")))
    rows.all()
    await orders.wait(await users.save(User("a", "b")), view, timeout_s=1.0)
    async with users.open(store="memory://", run="none") as opened:
        assert_type(opened, Service)


@dataclass
class Totals:
    n: dict[str, int] = field(default_factory=dict)


memory = MemoryModel(Totals)
totals = Projection("totals", model=memory)
assert_type(totals, Projection[Totals])
assert_type(users.state(memory), Totals)


@totals.on(OrderPlaced)
def counted(e: Event[OrderPlaced], t: Totals) -> None:
    assert_type(e.data.cds, int)


async def decide(u: User) -> None: ...


async def wrong() -> None:
    await users.execute(User, uid, User.rename, 3)  # wrong
    await users.execute(User, uid, User.rename, nme="x")  # wrong
    await users.execute(User, uid, Order.cancel)  # wrong
    await users.execute(User, uid, lambda u: u.renme("x"))  # wrong
    await users.execute(User, uid, decide)  # wrong
    await users.get(User, uid, version=1, at=datetime.now())  # wrong
    await users.save()  # wrong
    await orders.wait(17)  # wrong
    await orders.query(sa.select(customers), after=17)  # wrong
    users.open(stor="x")  # wrong
    users.save(User(name="a", email="b"))  # wrong: not awaited


Service("x", stoer="memory://")  # wrong


class NoType(Contract):  # wrong: which event it is for is not said
    name: str


@view.on(UserRegistered)  # wrong: async
async def a1(e: Event[UserRegistered], db: Tables) -> None: ...
@view.on(UserRegistered)  # wrong: another contract
def a2(e: Event[OrderPlaced], db: Tables) -> None: ...
@view.on(UserRegistered)  # wrong: another model
def a3(e: Event[UserRegistered], db: dict[str, Any]) -> None: ...
@view.on(UserRegistered)  # wrong: the data instead of the event
def a4(e: UserRegistered, db: Tables) -> None: ...
@gift.on(UserRegistered)  # wrong: not async
def a5(e: Event[UserRegistered], s: Service) -> Order:
    raise SystemExit


@gift.on(UserRegistered)  # wrong: returns text
async def a6(e: Event[UserRegistered], s: Service) -> str:
    raise SystemExit


Reaction("x")  # wrong: since is missing


@view.on(Order.Placed)  # wrong: an event class, which a checker cannot see
def a7(e: Any, db: Tables) -> None: ...


@view.on(OrderPlaced)
def a8(e: Event[OrderPlaced], db: Tables) -> None:
    db.upsert(customers, id=e.data.nme)  # wrong
