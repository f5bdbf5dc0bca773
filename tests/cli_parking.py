"""A service for the tests of `evsync parked`: `tests.cli_parking:stock`, over the aggregates of tests.cli_shop."""

from __future__ import annotations

import os

import sqlalchemy as sa

from evsync import Contract, Event, Projection, Service, SqlModel, Tables
from tests.cli_shop import Item, Shelf

tables = sa.MetaData()
prices = sa.Table("prices", tables, sa.Column("id", sa.String, primary_key=True), sa.Column("price", sa.String))


view = Projection("prices", model=SqlModel(tables), retries=0, then="park")


class Priced(Contract, type="stock.Item.*", extra="allow"):
    """An item has a price, whichever event says so."""


@view.on(Priced)
def priced(e: Event[Priced], db: Tables) -> None:
    """The price of an item; 13 is more than the handler can take, until it is mended."""
    price = str((e.data.model_extra or {})["price"])
    if price == "13" and "MENDED" not in os.environ:
        raise ValueError("13 is unlucky")
    db.upsert(prices, id=e.stream_id, price=price)


stock = Service("stock", aggregates=[Item, Shelf], projections=[view])
