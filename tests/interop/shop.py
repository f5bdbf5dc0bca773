"""An application of the eventsourcing library, which knows nothing of evsync."""

from __future__ import annotations

from decimal import Decimal
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event


class Basket(Aggregate):
    """What somebody wants to buy."""

    @event("Started")
    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.total = Decimal(0)

    @event("Filled")
    def fill(self, price: Decimal) -> None:
        self.total += price


class Baskets(Application[UUID]):
    """The application."""

    def start(self, owner: str, *prices: int) -> UUID:
        """A new basket with things of these prices."""
        basket = Basket(owner=owner)
        for price in prices:
            basket.fill(Decimal(price))
        self.save(basket)
        return basket.id
