"""A service for the tests that rebuild its read model with real processes: `tests.rebuilt_bank:bank`."""

from __future__ import annotations

import sqlalchemy as sa

from evsync import Contract, Event, NamedAggregate, Projection, Service, SqlModel, Tables, event


class Account(NamedAggregate):
    """Counts what is paid in."""

    @event("Opened")
    def __init__(self, id: str, owner: str) -> None:
        self.owner, self.paid = owner, 0

    @event("Paid")
    def pay(self, amount: int) -> None:
        """Pay an amount in."""
        self.paid += amount


class Opened(Contract, type="bank.Account.Opened"):
    """An account."""

    owner: str


class Paid(Contract, type="bank.Account.Paid"):
    """A payment."""

    amount: int


def made(version: int = 1, *, rate: int = 1, **options: object) -> tuple[Service, sa.Table]:
    """The service with its read model. `rate` is what a payment counts, so that versions differ."""
    metadata = sa.MetaData()
    accounts = sa.Table(
        "accounts",
        metadata,
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("owner", sa.String, index=True),
        sa.Column("paid", sa.BigInteger, server_default="0", nullable=False),
        sa.Column("payments", sa.Integer, server_default="0", nullable=False),
        sa.Column("latest", sa.Integer),
    )
    view = Projection("balances", model=SqlModel(metadata), version=version, **options)  # type: ignore[arg-type]

    @view.on(Opened)
    def opened(e: Event[Opened], db: Tables) -> None:
        db.upsert(accounts, id=e.stream_id, owner=e.data.owner, latest=e.version)

    @view.on(Paid)
    def paid(e: Event[Paid], db: Tables) -> None:
        db.increment(accounts, id=e.stream_id, paid=e.data.amount * rate, payments=1)
        db.upsert(accounts, id=e.stream_id, latest=e.version)

    return Service("bank", aggregates=[Account], projections=[view]), accounts


bank, accounts = made()
doubled, _ = made(rate=2)
second, _ = made(2, rate=2, rebuild="auto")
