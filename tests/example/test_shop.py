"""The example's services, tested as their owners would: aggregates alone, one service alone, both over HTTP."""

from __future__ import annotations

from datetime import date

import httpx
import pytest
import sqlalchemy as sa

from evsync.testing import facts, given, world
from examples.users_orders.orders import Order, UserRegistered, app, customers, orders
from examples.users_orders.users import User, users

pytestmark = pytest.mark.anyio


def test_renaming_records_the_new_name() -> None:
    """An aggregate is tested without anything around it."""
    user = User(name="Ada", email="ada@example.org")
    user.rename("Ada L.")
    assert facts(user)[1:] == [("Renamed", {"name": "Ada L."})]


def test_an_order_is_cancelled_once() -> None:
    """Given what has happened, when a command comes, then these facts."""
    placed = {"customer_id": "c", "cds": 2, "price_cents": 300, "on": date(2026, 1, 1)}
    order = given(Order, ("Placed", placed))
    order.cancel()
    assert facts(order) == [("Cancelled", {"customer_id": "c", "cds": 2, "price_cents": 300})]
    with pytest.raises(ValueError, match="already cancelled"):
        order.cancel()


async def test_orders_alone_shows_a_customer_of_a_users_service_that_is_not_there() -> None:
    """A contract is all that orders knows of users, and all that the test needs."""
    async with world(orders) as w:
        await w.emit(UserRegistered(name="Ada"), stream_id="c1")
        await w.settled()
        rows = await orders.query(sa.select(customers.c.name, customers.c.orders))
        assert rows.all() == [("Ada", 1)]  # one order: the welcome gift


async def test_both_services_and_a_read_of_ones_own_write_over_http() -> None:
    """The position of a write to users makes a read from orders wait for it."""
    async with world(users, orders):
        ada = User(name="Ada", email="ada@example.org")
        await users.save(ada)
        position = await users.execute(User, ada.id, User.rename, "Ada L.")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://orders") as http:
            reply = await http.get(f"/customers/{ada.id}", headers={"Position": str(position)})
        assert reply.json()["name"] == "Ada L."
        assert (await users.get(User, ada.id, version=1)).name == "Ada"


@pytest.mark.parametrize("seed", range(12))
async def test_any_interleaving_gives_the_same_view(seed: int) -> None:
    """Between two sources there is no order: batches are cut anywhere, events come twice, services overtake."""
    async with world(users, orders, shuffle=seed) as w:
        people = [User(name=f"u{n}", email="") for n in range(4)]
        for n, person in enumerate(people):
            await orders.save(*(Order(str(person.id), n + 1, 100 * n, date(2026, 1, day + 1)) for day in range(n + 1)))
            await users.save(person)
            person.rename(f"U{n}")
            await users.save(person)
        await w.settled()
        c = customers.c
        rows = await orders.query(sa.select(c.name, c.orders, c.cds, c.spent_cents).order_by(c.name))
        assert rows.all() == [(f"U{n}", n + 2, (n + 1) ** 2 + 1, 100 * n * (n + 1)) for n in range(4)]
