"""A table of the eventsourcing library (`stored_events`) in SQLite or PostgreSQL, read in the order of its log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import sqlalchemy as sa
from eventsourcing.persistence import Notification

from evsync.errors import ConfigurationError, StoreUnavailable

_NEEDED = ("originator_id", "originator_version", "topic", "state")


class StoredEventsTable:
    """The table of one application, opened for reading only. Notification ids are those that the application gave."""

    @classmethod
    def open(cls, where: str, name: str = "stored_events") -> Self:
        """The table `name` (or `schema.name`) in an SQLite file (path or URL), or a PostgreSQL database (URL).

        Raises ConfigurationError for what cannot be such a table, StoreUnavailable for a database that does not answer.
        """
        try:
            engine = sa.create_engine(_url(where), poolclass=sa.NullPool)
        except ImportError as e:
            raise ConfigurationError(f"PostgreSQL needs its driver: pip install 'evsync[postgres]' ({e})") from e
        schema, _, table = name.rpartition(".")
        try:
            found = sa.Table(table, sa.MetaData(), schema=schema or None, autoload_with=engine)
        except sa.exc.NoSuchTableError as e:
            raise ConfigurationError(f"there is no table {name!r} in that database: name it with --table") from e
        except sa.exc.DatabaseError as e:
            raise StoreUnavailable(f"the database to import from cannot be read: {e.orig}") from e
        missing = [column for column in _NEEDED if column not in found.c]
        if engine.dialect.name != "sqlite" and "notification_id" not in found.c:
            missing.append("notification_id")
        if missing:
            raise ConfigurationError(f"{name!r} is no table of an eventsourcing application: it has no {missing[0]!r}")
        return cls(engine, found)

    def __init__(self, engine: sa.Engine, table: sa.Table) -> None:
        """For `open`, which everybody else uses."""
        self._engine, self._table = engine, table
        own = table.c.get("notification_id")
        self._id: sa.ColumnElement[Any] = own if own is not None else sa.literal_column("rowid", sa.Integer)
        self._uuids = engine.dialect.name == "sqlite" and self._all_ids_are_hex()

    def count(self) -> int:
        """How many events there are."""
        return int(self._fetch(sa.select(sa.func.count()).select_from(self._table))[0][0])

    def read(self, after: int, limit: int) -> list[Notification]:
        """Up to `limit` events with greater ids than `after`, in order."""
        query = sa.select(*(self._table.c[c] for c in _NEEDED), self._id.label("id"))
        return [
            Notification(self._originator(id), version, topic, _state(state), number)
            for id, version, topic, state, number in self._fetch(
                query.where(self._id > after).order_by(self._id).limit(limit)
            )
        ]

    def nth(self, number: int) -> Notification | None:
        """Event `number`, counted from 1; None if there are fewer."""
        ids = self._fetch(sa.select(self._id).select_from(self._table).order_by(self._id).limit(1).offset(number - 1))
        return self.read(ids[0][0] - 1, 1)[0] if ids else None

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def _originator(self, id: Any) -> UUID | str:
        return UUID(hex=id) if self._uuids else id

    def _all_ids_are_hex(self) -> bool:
        # The library writes UUIDs into SQLite as 32 hexadecimal digits, and ids of one's own as they are.
        id = self._table.c.originator_id
        other = sa.or_(sa.func.length(id) != 32, id.op("GLOB")("*[^0-9a-f]*"))
        return not self._fetch(sa.select(id).where(other).limit(1))

    def _fetch(self, query: sa.Select[Any]) -> Sequence[Any]:
        try:
            with self._engine.connect() as c:
                return c.execute(query).all()
        except sa.exc.DatabaseError as e:
            raise StoreUnavailable(f"the table to import from cannot be read: {e.orig}") from e


def _state(value: Any) -> bytes:
    if isinstance(value, str):  # SQLite keeps whatever it is given
        return value.encode()
    if not isinstance(value, bytes):
        raise ConfigurationError(f"a state of type {type(value).__name__} cannot be imported: the library's are bytes")
    return value


def _url(where: str) -> sa.URL:
    try:
        if "://" not in where or where.startswith("sqlite://"):
            path = Path(where.removeprefix("sqlite:///"))
            if not path.is_file():
                raise ConfigurationError(f"there is no file {path} to import from")
            return sa.URL.create("sqlite", database=f"file:{path.absolute()}", query={"mode": "ro", "uri": "true"})
        url = sa.make_url(where)
    except sa.exc.ArgumentError as e:
        raise ConfigurationError("the database to import from is named by a path, or postgresql://…") from e
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise ConfigurationError(f"events can be imported from SQLite and PostgreSQL, not from {url.drivername}")
    return url.set(drivername="postgresql+psycopg")
