"""Tables that note what handlers do to one row, instead of writing to the read model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from evsync.projections.models.table_plan import Values
from evsync.projections.models.tables import Catalog, Tables, _Rows


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that a handler did to the row."""

    verb: Literal["set", "add", "delete", "execute"]
    values: Mapping[str, Any]
    """The columns that were set, or added to. After an execute(): the row as it was left."""
    before: Mapping[str, Any] | None = None
    """Of an execute() alone: the row before."""


class NeedsDatabase(BaseException):
    """A handler asks the database; its answer depends on every event before. No handler is meant to catch this."""


class Recorder(Tables):
    """What handlers get in place of the read model.

    Without a connection it only notes calls, and raises NeedsDatabase for what notes cannot answer: an execute(), or a
    deletion that foreign keys may carry on to the row. With one, of a scratch, everything is carried out there, and
    such a statement is known by what it did to the row.
    """

    def __init__(self, connection: sa.Connection | None, catalog: Catalog, table: sa.Table, key: Values) -> None:
        super().__init__(connection, catalog)  # type: ignore[arg-type]  # None is what a batch that is over has
        self._table, self._key = table, key
        self._is_reached = any(fk.ondelete for fk in table.foreign_keys)
        self.changes: list[Change] = []
        """Since they were last taken."""
        self.executed = False
        """Whether any statement was executed that might change rows."""

    def take(self) -> list[Change]:
        """What was done to the row since the last call."""
        changes, self.changes = self.changes, []
        return changes

    def upsert(self, table: sa.Table, /, **values: Any) -> None:
        """As Tables, and noted."""
        noted = dict(values)
        super().upsert(table, **values)
        if self._is_it(table, noted):
            self.changes.append(Change("set", self._others(noted)))

    def increment(self, table: sa.Table, /, **values: Any) -> None:
        """As Tables, and noted."""
        noted = dict(values)
        super().increment(table, **values)
        if self._is_it(table, noted):
            self.changes.append(Change("add", self._others(noted)))

    def delete(self, table: sa.Table, /, **key: Any) -> None:
        """As Tables, and noted."""
        if self._is_it(table, key):
            super().delete(table, **key)
            self.changes.append(Change("delete", {}))
        elif self._is_reached and table is not self._table:
            self._watch(lambda: super(Recorder, self).delete(table, **key))
        else:
            super().delete(table, **key)

    def execute(self, statement: sa.Executable, /) -> sa.Result[Any]:
        """As Tables; noted if the row is another afterwards."""
        if isinstance(statement, sa.Select):
            self._needs_database()
            return super().execute(statement)
        self.executed = True
        result: list[sa.Result[Any]] = []
        self._watch(lambda: result.append(super(Recorder, self).execute(statement)))
        return result[0]

    def flush(self) -> None:
        """As Tables; without a connection, what was gathered is forgotten."""
        if self._connection is None:
            self._rows.clear()
        else:
            super().flush()

    def _watch(self, work: Any) -> None:
        self._needs_database()
        self.flush()
        before = self._row()
        work()
        self.flush()
        after = self._row()
        if before != after:
            self.changes.append(Change("execute", after or {}, before or {}))

    def _row(self) -> Mapping[str, Any] | None:
        where = [self._table.c[name] == value for name, value in self._key.items()]
        assert self._connection is not None
        row = self._connection.execute(sa.select(self._table).where(*where)).mappings().one_or_none()
        return None if row is None else dict(row)

    def _needs_database(self) -> None:
        if self._connection is None:
            raise NeedsDatabase

    def _is_it(self, table: sa.Table, values: Mapping[str, Any]) -> bool:
        return table is self._table and all(values.get(name) == value for name, value in self._key.items())

    def _others(self, values: Values) -> Values:
        return {name: value for name, value in values.items() if name not in self._key}

    def _open(self, table: sa.Table) -> _Rows:
        rows = self._rows[table] = _Rows(self._catalog.plan(table))
        return rows
