"""Aggregates that use every way of the library: decorated methods, explicit events, inheritance, names as ids."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel

from evsync.domain import Aggregate, NamedAggregate, event


class Colour(Enum):
    """An enum of text."""

    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    """An enum of numbers."""

    LOW = 1
    HIGH = 2


@dataclass(frozen=True)
class Address:
    """A dataclass, with an enum inside."""

    street: str
    colour: Colour = Colour.RED
    tags: tuple[str, ...] = ()


class Card(BaseModel):
    """A pydantic model."""

    number: str
    limit: Decimal
    owner: UUID


class Account(Aggregate):
    """An account with every kind of event."""

    class Audited(Aggregate.Event):
        """An event that changes the aggregate in its own way."""

        by: str

        def apply(self, aggregate: Any) -> None:
            """Remember who, and the version at that moment."""
            aggregate.audits = [*aggregate.audits, (self.by, aggregate.version)]

    class Renamed(Aggregate.Event):
        """An explicit event class that a method is decorated with."""

        name: str

    @event("Opened")
    def __init__(self, owner: str, balance: int) -> None:
        self.owner, self.balance = owner, balance
        self.audits: list[tuple[str, int]] = []
        self.facts: dict[str, Any] = {}
        self.seen: list[datetime] = []

    @event("Deposited")
    def deposit(self, amount: int) -> None:
        """Add to the balance; remembers when the account was changed before."""
        self.balance += amount
        self.seen.append(self.modified_on)

    @event(Renamed)
    def rename(self, name: str) -> None:
        """Have another name."""
        self.owner = name

    @event("Stamped")
    def stamp(self, timestamp: datetime) -> None:
        """Asks for the event's own time."""
        self.facts["stamped"] = timestamp

    def audit(self, by: str) -> None:
        """Trigger the explicit event."""
        self.trigger_event(self.Audited, by=by)

    @event("Described")
    def describe(
        self,
        text: str,
        amount: Decimal,
        on: date,
        at: time,
        moment: datetime,
        span: timedelta,
        key: UUID,
        raw: bytes,
        ratio: float,
        flag: bool | None,
        colour: Colour,
        level: Level,
        address: Address | None,
        card: Card,
        pair: tuple[int, Colour],
        colours: set[Colour],
        frozen: frozenset[str],
        addresses: dict[str, Address],
        anything: Any,
        mode: Literal["a", "b"] = "a",
    ) -> None:
        """Take a value of every type."""
        self.facts |= {k: v for k, v in locals().items() if k != "self"}


class Savings(Account):
    """Inherits all events, and has one more."""

    @event("Interest")
    def pay_interest(self, rate: Decimal) -> None:
        """Add interest."""
        self.balance += int(self.balance * rate)


class Basket(NamedAggregate):
    """An aggregate with an id of its own, a property, and a list."""

    @event("Opened")
    def __init__(self, id: str, owner: str) -> None:
        self.key, self.owner = id, owner
        self.skus: list[str] = []
        self._note = ""

    @event("Added")
    def add(self, sku: str) -> None:
        """Put something in."""
        self.skus.append(sku)

    @property
    def note(self) -> str:
        """A decorated property."""
        return self._note

    @note.setter
    @event("Noted")
    def note(self, text: str) -> None:
        self._note = text


@dataclasses.dataclass
class Point(Aggregate):
    """A dataclass aggregate: its first event follows from its annotations."""

    x: int
    y: int = 0

    @event("Shifted")
    def shift(self, by: int) -> None:
        """Move along."""
        self.x += by


class Hoard(Aggregate):
    """State of a kind that neither a snapshot nor a cache can keep."""

    @event("Begun")
    def __init__(self) -> None:
        self.things: dict[str, int] = defaultdict(int)

    @event("Grown")
    def grow(self) -> None:
        """One more."""
        self.things["x"] += 1
