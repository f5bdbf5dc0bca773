"""Services for the tests of the command line: `tests.cli_shop:stock` and what reads it."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from uuid import UUID

import sqlalchemy as sa

from evsync import Contract, Event, NamedAggregate, Projection, Reaction, Service, SqlModel, Tables, event

SUPPLIER = UUID(int=7)


class Item(NamedAggregate):
    """Something for sale, with values that JSON does not have."""

    @event("Listed")
    def __init__(self, id: str, price: Decimal, supplier: UUID) -> None:
        self.price, self.supplier, self.tags, self.since = price, supplier, frozenset({"new"}), timedelta(seconds=90)
        self._on: date | None = None

    @event("Priced")
    def reprice(self, price: Decimal, on: date) -> None:
        """Another price."""
        self.price, self._on = price, on


class Shelf(NamedAggregate):
    """Another aggregate."""

    @event("Built")
    def __init__(self, id: str) -> None:
        pass


class Listed(Contract, type="stock.Item.Listed"):
    """What the read model needs of a new item."""

    price: Decimal


tables = sa.MetaData()
items = sa.Table("items", tables, sa.Column("id", sa.String, primary_key=True), sa.Column("price", sa.String))
view = Projection("items", model=SqlModel(tables), retries=0)


@view.on(Listed)
def listed(e: Event[Listed], db: Tables) -> None:
    """An item more; one that costs 13 is more than the handler can take."""
    if e.data.price == 13:
        raise ValueError("13 is unlucky")
    db.upsert(items, id=e.stream_id, price=str(e.data.price))


builder = Reaction("builder", since="beginning")


@builder.on(Listed)
async def build(e: Event[Listed], stock: Service) -> Shelf:
    """Each item gets a shelf."""
    return Shelf(f"shelf of {e.stream_id}")


stock = Service("stock", aggregates=[Item, Shelf], projections=[view], reactions=[builder])
idle = Service("idle", aggregates=[Shelf])


copies = sa.MetaData()
sa.Table("copies", copies, sa.Column("id", sa.String, primary_key=True))
copied = Projection("copied", model=SqlModel(copies))


@copied.on(Listed)
def copy(e: Event[Listed], db: Tables) -> None:
    """An item of another service."""
    db.upsert(copies.tables["copies"], id=e.stream_id)


reader = Service("reader", projections=[copied])
