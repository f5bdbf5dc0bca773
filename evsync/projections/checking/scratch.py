"""A place of one's own in the kind of database that the read models are in: empty tables, gone with the connection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from evsync.projections.models.engines import ViewsPlace

TEMPORARY = "pg_temp"
"""PostgreSQL's name for a session's own schema. First on the search path, its tables hide all others of their name."""


@contextmanager
def scratch(place: ViewsPlace, metadata: sa.MetaData) -> Iterator[sa.Connection]:
    """A connection, in a transaction, on which these tables exist under their own names, and are empty.

    In SQLite it is a database in memory. In PostgreSQL they are temporary tables, so that types and functions are there
    as ever. Nobody else sees it, and nothing of it stays.
    """
    with (ViewsPlace(sa.make_url("sqlite://")) if place.is_sqlite else place).opened() as connection:
        if not place.is_sqlite:
            path = connection.exec_driver_sql("SHOW search_path").scalar_one()
            connection.exec_driver_sql(f"SET LOCAL search_path = {TEMPORARY}, {path}")
            # Nobody waits for it, and the log that is gone through may be slow to read.
            connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
            connection.exec_driver_sql("SET LOCAL application_name = 'evsync scratch'")
            connection.execution_options(schema_translate_map={None: TEMPORARY})
        metadata.create_all(connection, checkfirst=False)
        connection.execution_options(schema_translate_map={})
        yield connection
        connection.rollback()
