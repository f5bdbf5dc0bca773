"""Tables: the read model that a projection's handlers write to, gathered into bulk statements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.schema import sort_tables_and_constraints

from evsync.errors import ConfigurationError
from evsync.projections.models.table_plan import Added, TablePlan, Values

_NOTHING: Added = frozenset()


class Tables:
    """The read model inside a handler: one transaction a batch.

    A row is named by its primary key, whose columns every call gives. What handlers ask for is gathered and written in
    bulk, with the same result as if each call had been carried out at once. What can be seen to be wrong (a column that
    does not exist, a key that is not complete) raises ConfigurationError in the handler; what only the database can
    tell (a constraint, a value out of range) is traced to its event afterwards.
    """

    def __init__(self, connection: sa.Connection, catalog: Catalog, enter: Callable[[], None] = lambda: None) -> None:
        """`enter` is called before each statement or flush: whoever it is for knows which one is the first."""
        self._connection: sa.Connection | None = connection
        self._catalog, self._enter = catalog, enter
        self._rows: dict[sa.Table, _Rows] = {}
        self.failed: Exception | None = None
        """Why gathered changes could not be written: nothing of this transaction may be kept then."""

    def upsert(self, table: sa.Table, /, **values: Any) -> None:
        """Set the columns given, in the row with this key; create the row if it is missing.

        Other columns stay as they are; in a new row they have their defaults, or NULL.
        """
        rows = self._rows.get(table)
        if rows is None:
            rows = self._open(table)
        if (shape := tuple(values)) not in rows.upserts:
            rows.plan.check_upsert(shape)
        key = rows.key(values)
        if type(key) is not rows.key_type and rows.type_of(key) != rows.key_type:
            rows.plan.check_key(values)
        row = rows.changed.get(key)
        if row is None:
            rows.changed[key] = [values, _NOTHING]
            return
        known, added = row
        known.update(values)
        if not added.isdisjoint(values):
            row[1] = added.difference(values)

    def increment(self, table: sa.Table, /, **values: Any) -> None:
        """Add to the columns given, in the row with this key; NULL, and a row that is missing, count from zero.

        A negative value subtracts. Prefer whole numbers: the sum of floats depends on the order of adding.
        """
        rows = self._rows.get(table)
        if rows is None:
            rows = self._open(table)
        added = rows.increments.get(shape := tuple(values))
        if added is None:
            added = rows.plan.check_increment(shape)
        key = rows.key(values)
        if type(key) is not rows.key_type and rows.type_of(key) != rows.key_type:
            rows.plan.check_key(values)
        for name in added:
            if type(values[name]) is not int:
                rows.plan.check_number(name, values[name])
        row = rows.changed.get(key)
        if row is None:
            rows.changed[key] = [values, added]
            return
        known, adding = row
        if adding is not added:
            if any(n in known and n not in adding and not _can_add(known[n], values[n]) for n in added):
                self.flush()  # the database knows what its column makes of the value that was set
                rows.changed[key] = [values, added]
                return
            row[1] = adding.union(name for name in added if name not in known)
        for name in added:
            before = known.get(name)
            known[name] = values[name] if before is None else before + values[name]

    def delete(self, table: sa.Table, /, **key: Any) -> None:
        """Delete the row with this key, if there is one."""
        rows = self._rows.get(table)
        if rows is None:
            rows = self._open(table)
        rows.plan.check_delete(tuple(key))
        row_key = rows.key(key)
        if rows.type_of(row_key) != rows.key_type:
            rows.plan.check_key(key)
        if rows.plan.referenced:
            # ON DELETE may reach rows of other tables, also such as are only gathered yet: so not later, but now.
            self.flush()
            rows.gone[row_key] = key
            self.flush()
            return
        rows.changed.pop(row_key, None)
        rows.gone[row_key] = key

    def execute(self, statement: sa.Executable, /) -> sa.Result[Any]:
        """Write what was gathered, then execute any statement, and return its result, inside the transaction.

        Read the result before the handler returns. The statement must be deterministic: a rebuild executes it again.
        """
        connection = self._live()
        self._enter()
        self.flush()
        return connection.execute(statement)

    def flush(self) -> None:
        """Write what was gathered: deletions first, then rows, referenced tables before the ones that refer to them."""
        connection = self._live()
        if self.failed is not None:  # a handler swallowed an earlier failure, and what was gathered then is lost
            raise self.failed
        self._enter()
        gathered = [self._rows[t] for t in self._catalog.in_order(self._rows)]
        try:
            for rows in reversed(gathered):
                if rows.gone:
                    rows.plan.delete(connection, list(rows.gone.values()))
            for rows in gathered:
                _write(connection, rows)
        except Exception as e:
            self.failed = e
            raise
        for rows in gathered:
            rows.gone.clear()
            rows.changed.clear()

    def end(self) -> None:
        """Nothing may be written through this object any more: its transaction is over."""
        self._connection = None
        self._rows.clear()

    def _open(self, table: sa.Table) -> _Rows:
        self._live()
        rows = self._rows[table] = _Rows(self._catalog.plan(table))
        return rows

    def _live(self) -> sa.Connection:
        if self._connection is None:
            raise ConfigurationError(
                "these Tables belong to a batch that is over: use them only inside the handler that was given them"
            )
        return self._connection


class _Rows:
    """What was gathered for one table."""

    __slots__ = ("changed", "gone", "increments", "key", "key_type", "plan", "type_of", "upserts")

    def __init__(self, plan: TablePlan) -> None:
        self.plan, self.key, self.key_type = plan, plan.key, plan.key_type
        self.upserts, self.increments = plan.upserts, plan.increments
        self.type_of: Any = _types_of if len(plan.key_columns) > 1 else type
        self.changed: dict[Any, list[Any]] = {}
        """By key, in a list of two: values by column (the key among them), and the columns that they are added to; the
        others are set."""
        self.gone: dict[Any, Values] = {}
        """Keys to delete before that."""


def _can_add(value: Any, number: Any) -> bool:
    """Whether Python's sum is the sum that the database would make of a value that was set and a number."""
    return value is None or (type(value) in (int, float) and type(number) in (int, float))


def _types_of(key: tuple[Any, ...]) -> tuple[type, ...]:
    return tuple(map(type, key))


def _write(connection: sa.Connection, rows: _Rows) -> None:
    changed = rows.changed
    if rows.plan.dialect.name == "postgresql":
        # Workers that change the same rows lock them one after the other, and in this order: else two could wait for
        # each other, until the database sends one of them back. (SQLite has one writer.)
        changed = dict(sorted(changed.items(), key=_text_of_key))
    alike: dict[tuple[tuple[str, ...], Added], list[Values]] = {}
    for values, added in changed.values():
        found = alike.get(shape := (tuple(values), added))
        if found is None:
            found = alike[shape] = []
        found.append(values)
    statements: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Values]] = {}
    for (columns, added), found in alike.items():
        shape = tuple(sorted(added.symmetric_difference(columns))), tuple(sorted(added))
        statements.setdefault(shape, []).extend(found)
    for (columns, adding), found in sorted(statements.items()):
        rows.plan.write(connection, columns, adding, found)


def _text_of_key(row: tuple[Any, object]) -> str:
    return str(row[0])


class Catalog:
    """The tables of a read model, their plans, and the order in which foreign keys let them be written."""

    def __init__(self, metadata: sa.MetaData, dialect: Dialect) -> None:
        self._dialect = dialect
        self._plans: dict[sa.Table, TablePlan] = {}
        tables = list(metadata.tables.values())
        # Where foreign keys go in a circle there is no right order: a batch that the database then refuses is written
        # event by event.
        ordered = sort_tables_and_constraints(tables)  # type: ignore[no-untyped-call]  # SQLAlchemy has not typed it
        self._order: list[sa.Table] = [t for t, _ in ordered if t is not None]
        self._referenced = {fk.column.table for t in tables for fk in t.foreign_keys}

    def plan(self, table: sa.Table) -> TablePlan:
        """The plan of a table. Raises ConfigurationError for one that is not part of the model, or has no key."""
        plan = self._plans.get(table)
        if plan is None:
            if table not in self._order:
                names = ", ".join(t.name for t in self._order) or "none"
                raise ConfigurationError(
                    f"{getattr(table, 'name', table)!r} is not a table of this projection's model, which has: {names}. "
                    "Define it on the same MetaData that SqlModel was given."
                )
            plan = self._plans[table] = TablePlan(table, self._dialect, referenced=table in self._referenced)
        return plan

    def in_order(self, tables: dict[sa.Table, Any]) -> list[sa.Table]:
        """These tables, referenced ones first."""
        return [t for t in self._order if t in tables]
