"""The saga of docs/howto/sagas.md as real processes over a real nats-server, all of them killed again and again."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from asyncio.subprocess import DEVNULL, Process
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from evsync import Service
from evsync.codec.values import unpack
from evsync.jetstream.server import EmbeddedServer
from evsync.records import StoredEvent, decode_meta, event_uuid
from tests.docs.pages import ROOT
from tests.relaying import eventually
from tests.saga import saga_modules

pytestmark = pytest.mark.anyio

CUSTOMERS, CENTS = 4, 6_000
ORDERS, PRICES, CANCELLED = 160, (50, 900), 0.2
LONG_S = 60.0


class Shop:
    """The page's two services: in this process to give commands, in others to run their relays and reactions."""

    def __init__(self, directory: Path, url: str) -> None:
        self._directory = directory
        self._environment = {
            "EVSYNC_NATS": url,
            "EVSYNC_ORDERS_STORE": f"sqlite:///{directory}/orders.db",
            "EVSYNC_PAYMENTS_STORE": f"sqlite:///{directory}/payments.db",
            "PYTHONPATH": str(ROOT),
        }
        self.processes: dict[str, list[Process]] = {"orders": [], "payments": []}
        self.orders_module, self.payments_module = saga_modules(directory)
        self.orders: Service = self.orders_module.orders
        self.payments: Service = self.payments_module.payments

    @classmethod
    @asynccontextmanager
    async def at(cls, directory: Path, url: str) -> AsyncIterator[Shop]:
        """Open for commands. Every process that is started is killed at the end."""
        shop = cls(directory, url)
        async with (
            shop.orders.open(store=shop._environment["EVSYNC_ORDERS_STORE"], nats=url, run="none"),
            shop.payments.open(store=shop._environment["EVSYNC_PAYMENTS_STORE"], nats=url, run="none"),
        ):
            try:
                yield shop
            finally:
                for name in shop.processes:
                    while shop.processes[name]:
                        await shop.kill(name)

    async def start(self, name: str) -> None:
        """One more process that runs a service, as `evsync run` does."""
        with (self._directory / f"{name}.err").open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "evsync.cli", "run", f"{name}:{name}",
                cwd=self._directory, env=os.environ | self._environment, stdin=DEVNULL, stdout=DEVNULL, stderr=errors,
            )  # fmt: skip
        self.processes[name].append(process)

    async def kill(self, name: str) -> None:
        """SIGKILL to the oldest process of a service."""
        process = self.processes[name].pop(0)
        if process.returncode is None:
            process.kill()
        assert await process.wait() == -9, f"it ended by itself: {self.errors(name)}"

    def errors(self, name: str) -> str:
        """The end of what the processes of a service have written."""
        return (self._directory / f"{name}.err").read_text()[-2000:]

    async def customers(self, chance: random.Random) -> list[Any]:
        """Open accounts, place orders, cancel some a little later; all the orders."""
        order_of = self.orders_module.Order
        for n in range(CUSTOMERS):
            await self.payments.save(self.payments_module.Account(f"customer-{n}", CENTS))
        placed: list[Any] = []
        for _ in range(ORDERS):
            order = order_of(f"customer-{chance.randrange(CUSTOMERS)}", chance.randint(*PRICES))
            await self.orders.save(order)
            placed.append(order.id)
            if chance.random() < CANCELLED:
                await self.orders.execute(order_of, chance.choice(placed[-9:]), order_of.cancel, "changed my mind")
            await asyncio.sleep(chance.uniform(0, 0.1))  # the pace of customers, so that there is time for the killing
        return placed

    async def is_settled(self) -> bool:
        """Whether each service has answered all that the other has to say."""
        for one, other, reaction in (
            (self.orders, self.payments, "charge"),
            (self.payments, self.orders, "settle"),
        ):
            head = await one.runtime.store.head()
            answered = await other.runtime.store.checkpoints(reaction)
            if [c.position for c in answered] != [head]:
                return False
        return True

    async def log(self, service: Service) -> list[StoredEvent]:
        """All of its events."""
        store = service.runtime.store
        events: list[StoredEvent] = []
        while found := await store.read(len(events), 1_000):
            events += found
        return events


async def test_every_order_ends_paid_or_cancelled_and_no_money_is_lost_whoever_is_killed(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """Both services run twice, and one process after the other is killed, the server too, while customers order and
    cancel. In the end each order was charged or declined once, and settled once; the money adds up to a cent."""
    chance = random.Random(7)
    async with Shop.at(tmp_path, nats_server.url) as shop:
        for name in ("orders", "payments", "orders", "payments"):
            await shop.start(name)
        ordering = asyncio.create_task(shop.customers(chance))
        kills = 0
        while not ordering.done():
            name = chance.choice(("orders", "payments"))
            await shop.kill(name)
            await shop.start(name)
            kills += 1
            if kills % 4 == 0:
                nats_server.kill()
                nats_server.restart()
            await asyncio.wait([ordering], timeout=chance.uniform(0.3, 1.0))
        placed = await ordering
        await eventually(shop.is_settled, lambda: f"settled: {shop.errors('orders')}{shop.errors('payments')}", LONG_S)

        orders, payments = await shop.log(shop.orders), await shop.log(shop.payments)
        once = Counter((e.type.rpartition(".")[2], e.stream) for e in orders)
        once.update((e.type.rpartition(".")[2], unpack(e.data)["order"]) for e in payments if "Opened" not in e.type)
        assert max(once.values()) == 1
        ends: dict[str, int] = {}
        for id in map(str, placed):
            paid, cancelled = once["Paid", id], once["Cancelled", id]
            charged, declined, refunded = (once[what, id] for what in ("Charged", "Declined", "Refunded"))
            assert charged + declined == 1, "each order is asked to be paid for, once"
            assert paid or cancelled, "no order is left between"
            assert not (declined and paid)
            assert refunded == (charged and cancelled), "cancelled orders are compensated, and only these"
            order = await shop.orders.get(shop.orders_module.Order, id)
            assert order.state == ("cancelled" if cancelled else "paid")
            if not cancelled:
                ends[id] = order.cents
        for n in range(CUSTOMERS):
            account = await shop.payments.get(shop.payments_module.Account, f"customer-{n}")
            assert account.cents + sum(account.charges.values()) == CENTS
            assert account.charges.items() <= ends.items()
            for id in account.charges:
                del ends[id]
        assert ends == {}, "what is paid is charged to somebody"

        assert kills > 5
        happened = Counter(kind for kind, _ in once)
        assert min(happened[kind] for kind in ("Paid", "Cancelled", "Charged", "Declined", "Refunded")) > 0
        asked = {str(event_uuid(e.id)): e.stream for e in orders if e.type.endswith("Placed")}
        for e in payments:
            if e.type.endswith(("Charged", "Declined")):
                assert asked[decode_meta(e.meta)["causation_id"]] == unpack(e.data)["order"]
