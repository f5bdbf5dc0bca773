"""The eventsourcing library as it is used by itself, in SQLite and in PostgreSQL, as durable as evsync's stores."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import psycopg
from eventsourcing.application import Application
from eventsourcing.persistence import Tracking
from eventsourcing.postgres import PostgresApplicationRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from eventsourcing.sqlite import SQLiteApplicationRecorder, SQLiteTrackingRecorder

from evsync.testing.postgres import PostgresServer

FULL = 2


@contextmanager
def application(path: Path) -> Iterator[Application[UUID]]:
    """An application whose events are in the file. Raises RuntimeError if it is not as durable as evsync."""
    app: Application[UUID] = Application(
        env={"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(path), "SQLITE_LOCK_TIMEOUT": "60"}
    )
    try:
        _check_durability(cast(SQLiteApplicationRecorder, app.recorder))
        yield app
    finally:
        app.close()


def _check_durability(recorder: SQLiteApplicationRecorder) -> None:
    """The library sets no `synchronous`: SQLite's own default counts, which is a matter of how it was built."""
    with recorder.datastore.transaction(commit=False) as cursor:
        found = []
        for pragma in ("journal_mode", "synchronous"):
            cursor.execute(f"PRAGMA {pragma}")
            found.append(cursor.fetchone()[0])
    if found != ["wal", FULL]:
        raise RuntimeError(
            f"eventsourcing's SQLite connection has journal_mode and synchronous {found}, not ['wal', {FULL}]: "
            "the comparison would not be fair"
        )


@contextmanager
def postgres_application(server: PostgresServer, schema: str) -> Iterator[Application[UUID]]:
    """An application whose events are in a schema, which is made. All of the library's own settings are its defaults.

    Raises RuntimeError if its commits are not brought to the disk.
    """
    with psycopg.connect(server.url, autocommit=True) as c:
        c.execute(f'CREATE SCHEMA IF NOT EXISTS "{schema}"')
    app: Application[UUID] = Application(
        env={
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": "postgres",
            "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PORT": str(server.port),
            "POSTGRES_USER": "postgres",
            "POSTGRES_PASSWORD": "",
            "POSTGRES_SCHEMA": schema,
        }
    )
    try:
        with cast(PostgresApplicationRecorder, app.recorder).datastore.get_connection() as connection:
            found = [connection.execute(f"SHOW {name}").fetchone() for name in ("fsync", "synchronous_commit")]
        if [list(row.values()) if row else [] for row in found] != [["on"], ["on"]]:
            raise RuntimeError(f"eventsourcing's connection to PostgreSQL says {found}: commits may be lost")
        yield app
    finally:
        app.close()


class CustomersView(SQLiteTrackingRecorder):
    """The read model as the library has it: one transaction an event, its tracking included."""

    def construct_create_table_statements(self) -> list[str]:
        """The library's own table, and the customers."""
        return [
            *super().construct_create_table_statements(),
            "CREATE TABLE customers (id TEXT PRIMARY KEY, orders INTEGER DEFAULT 0, cds INTEGER DEFAULT 0, "
            "spent_cents INTEGER DEFAULT 0, last_order TEXT)",
        ]

    def place(self, event: Any, tracking: Tracking) -> None:
        """Two statements on one row, as evsync's handler has two calls."""
        with self.datastore.transaction(commit=True) as c:
            self._insert_tracking(c, tracking)
            c.execute(
                "INSERT INTO customers (id, orders, cds, spent_cents) VALUES (?1, 1, ?2, ?3) ON CONFLICT (id) DO "
                "UPDATE SET orders = orders + 1, cds = cds + ?2, spent_cents = spent_cents + ?3",
                (event.customer_id, event.cds, event.price_cents),
            )
            c.execute(
                "INSERT INTO customers (id, last_order) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET last_order = ?2",
                (event.customer_id, str(event.originator_id)),
            )


class Customers(Projection[CustomersView]):
    """Fills the view."""

    name = "customers"

    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        """One order."""
        self.view.place(domain_event, tracking)


class Shop(Application[UUID]):
    """The application whose orders are projected. Its events are in memory: SQLite has no subscriptions there."""


def project(directory: Path, orders: Sequence[Any]) -> float:
    """Seconds that the library's projection runner takes for these orders."""
    environment = {
        "PERSISTENCE_MODULE": "eventsourcing.popo",
        "CUSTOMERS_PERSISTENCE_MODULE": "eventsourcing.sqlite",
        "CUSTOMERS_SQLITE_DBNAME": str(directory / "view.db"),
    }
    runner = ProjectionRunner(
        application_class=Shop, projection_class=Customers, view_class=CustomersView, env=environment
    )
    with runner:
        began = time.perf_counter()
        last = [runner.app.save(order)[-1].notification.id for order in orders][-1]
        runner.wait(last, timeout=60)
        return time.perf_counter() - began
