"""What is known of a table once and for all: its key, what may be written to it, and the statements that do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import chain
from operator import itemgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.sql.compiler import SQLCompiler

from evsync.errors import ConfigurationError

Values = dict[str, Any]
Added = frozenset[str]
"""Names of columns that are added to."""
_MAY_COUNT = (sa.Integer, sa.Numeric, sa.Float, sa.types.TypeDecorator, sa.types.NullType)
_INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class TablePlan:
    """One table of a read model. Checks what handlers write, and compiles the statements for it."""

    def __init__(self, table: sa.Table, dialect: Dialect, *, referenced: bool) -> None:
        """`referenced`: whether foreign keys of other rows point here, so that a deletion may reach further."""
        self.table, self.dialect, self.referenced = table, dialect, referenced
        self.key_columns = tuple(c.key for c in table.primary_key.columns)
        if not self.key_columns:
            raise ConfigurationError(
                f"table {table.name!r} has no primary key, so none of its rows can be named: give it one, "
                "or use execute() with a statement of your own"
            )
        self.key: Callable[[Mapping[str, Any]], Any] = itemgetter(*self.key_columns)
        types = tuple(_python_type(table.c[k]) for k in self.key_columns)
        self.key_type: object = types if len(types) > 1 else types[0]
        """What `type()` of a good key is, compared first; anything else is looked at more closely by check_key."""
        self.upserts: set[tuple[str, ...]] = set()
        """The combinations of columns that check_upsert has accepted."""
        self.increments: dict[tuple[str, ...], Added] = {}
        """The combinations that check_increment has accepted, each with its columns to add to."""
        self._statements: dict[tuple[tuple[str, ...], tuple[str, ...]], _Statement] = {}
        self._deletion = _Statement(self._delete(), self.key_columns, table, dialect)

    # ---- checks: each shape of a call once

    def check_upsert(self, columns: tuple[str, ...]) -> None:
        """Raise ConfigurationError unless an upsert of these columns can always be carried out."""
        self._check_columns("upsert", columns)
        self._check_complete("upsert", columns)
        self.upserts.add(columns)

    def check_increment(self, columns: tuple[str, ...]) -> Added:
        """The columns to add to. Raises ConfigurationError unless such an increment can always be carried out."""
        self._check_columns("increment", columns)
        self._check_complete("increment", columns)
        added = tuple(c for c in columns if c not in self.key_columns)
        for name in added:
            if not isinstance(self.table.c[name].type, _MAY_COUNT):
                raise ConfigurationError(
                    f"increment(): column {name!r} of table {self.table.name!r} is of type "
                    f"{self.table.c[name].type!r}, which is not a number"
                )
            if not _counts_from_zero(self.table.c[name]):
                raise ConfigurationError(
                    f"increment(): column {name!r} of table {self.table.name!r} has a default other than 0. A missing "
                    "row counts from zero; use server_default='0', or no default."
                )
        self.increments[columns] = found = frozenset(added)
        return found

    def check_delete(self, columns: tuple[str, ...]) -> None:
        """Raise ConfigurationError unless these are the columns of the key, all of them."""
        self._check_columns("delete", columns)
        if extra := [c for c in columns if c not in self.key_columns]:
            raise ConfigurationError(
                f"delete() on table {self.table.name!r} takes the primary key alone ({', '.join(self.key_columns)}), "
                f"not {', '.join(extra)}. For rows found by other columns use execute(sa.delete(…).where(…))."
            )

    def check_key(self, values: Mapping[str, Any]) -> None:
        """Raise ConfigurationError for a key that is missing a value or has one of a type that is not its column's.

        The type matters beyond the database's own checks: rows are merged by their key in memory, where "1" and 1 are
        two rows and in SQLite they may be one.
        """
        for name in self.key_columns:
            value, wanted = values[name], _python_type(self.table.c[name])
            if value is None:
                raise ConfigurationError(f"table {self.table.name!r}: {name!r} is part of the key and cannot be None")
            if wanted is not None and (not isinstance(value, wanted) or (isinstance(value, bool) and wanted is int)):
                hint = f"; write {name}=str(…)" if wanted is str else ""
                raise ConfigurationError(
                    f"table {self.table.name!r}: the key {name!r} is of type {self.table.c[name].type!r} and takes "
                    f"{wanted.__name__}, not {value!r} of type {type(value).__name__}{hint}"
                )

    def check_number(self, name: str, value: Any) -> None:
        """Raise ConfigurationError for a value that cannot be added to a column.

        A column takes one kind of number only: otherwise two increments could be added up in one batch that cannot in
        two, or with another result.
        """
        column = self.table.c[name].type
        good: tuple[type, ...] = (int,)
        if isinstance(column, sa.Float):
            good = (int, float)
        elif isinstance(column, sa.Numeric):
            good = (int, Decimal) if column.asdecimal else (int, float)
        elif not isinstance(column, sa.Integer):
            good = (int, float, Decimal)
        if isinstance(value, bool) or not isinstance(value, good):
            raise ConfigurationError(
                f"increment(): {name!r} of table {self.table.name!r} is of type {column!r} and is raised by "
                f"{' or '.join(t.__name__ for t in good)}, not by {value!r}"
            )

    def _check_columns(self, verb: str, columns: Iterable[str]) -> None:
        known = self.table.c
        if unknown := [c for c in columns if c not in known]:
            raise ConfigurationError(
                f"{verb}(): table {self.table.name!r} has no column {', '.join(map(repr, unknown))}; "
                f"it has {', '.join(known.keys())}"
            )
        if missing := [c for c in self.key_columns if c not in columns]:
            raise ConfigurationError(
                f"{verb}(): table {self.table.name!r} is keyed by {', '.join(self.key_columns)}, and "
                f"{', '.join(missing)} was not given"
            )

    def _check_complete(self, verb: str, columns: Iterable[str]) -> None:
        # Databases look at NOT NULL before they notice that the row exists, so this could never be carried out.
        for c in self.table.c:
            if not (c.nullable or c.key in columns or c.server_default is not None or c.default is not None):
                raise ConfigurationError(
                    f"{verb}(): column {c.key!r} of table {self.table.name!r} is NOT NULL, has no default and was not "
                    "given. A row is created by whichever event comes first: make the column nullable, or give it a "
                    "server_default."
                )

    # ---- statements

    def write(
        self, connection: sa.Connection, columns: tuple[str, ...], added: tuple[str, ...], rows: list[Values]
    ) -> None:
        """Insert or change these rows: `columns` (the key among them) are set, `added` are added to."""
        statement = self._statements.get((columns, added))
        if statement is None:
            upsert = self._upsert(columns, added)
            statement = self._statements[columns, added] = _Statement(upsert, columns + added, self.table, self.dialect)
        statement.run(connection, rows)

    def delete(self, connection: sa.Connection, keys: list[Values]) -> None:
        """Delete the rows with these keys; ones that are not there are no error."""
        self._deletion.run(connection, keys)

    def _upsert(self, columns: Sequence[str], added: Sequence[str]) -> Any:
        insert = _INSERTS[self.dialect.name](self.table).inline()
        changes: dict[str, Any] = {c: insert.excluded[c] for c in columns if c not in self.key_columns}
        for c in added:
            changes[c] = sa.func.coalesce(self.table.c[c], sa.literal_column("0")) + insert.excluded[c]
        if not changes:
            return insert.on_conflict_do_nothing(index_elements=list(self.table.primary_key.columns))
        return insert.on_conflict_do_update(index_elements=list(self.table.primary_key.columns), set_=changes)

    def _delete(self) -> sa.Delete:
        where = [self.table.c[k] == sa.bindparam(k, type_=self.table.c[k].type) for k in self.key_columns]
        return sa.delete(self.table).where(*where)


class _Statement:
    """A statement for many rows, which goes to the driver without SQLAlchemy's work on each row where that is possible.

    That work is half of what an upsert into SQLite costs. And where the statement is an INSERT, many rows go into one:
    a driver lets go of the interpreter lock at each statement, and beside a busy event loop has to wait for it.
    """

    def __init__(self, statement: Any, columns: tuple[str, ...], table: sa.Table, dialect: Dialect) -> None:
        self._statement = statement
        self._driver: str | None = None
        self._many: str | None = None
        by_place = type(dialect)(paramstyle=_BY_PLACE[dialect.name])  # type: ignore[call-arg]
        compiled = statement.compile(dialect=by_place, column_keys=list(columns))
        assert isinstance(compiled, SQLCompiler)
        plain = compiled.positional and not compiled.insert_prefetch  # no default= that Python must compute
        if plain and compiled.positiontup is not None and sorted(compiled.positiontup) == sorted(columns):
            self._driver = str(compiled)
            order = compiled.positiontup
            self._values: Callable[[Values], Any] = itemgetter(*order)
            self._single = len(order) == 1
            processors = [table.c[c].type.dialect_impl(dialect).bind_processor(dialect) for c in order]
            self._processors = [(i, p) for i, p in enumerate(processors) if p is not None]
            self._rows = max(_PARAMETERS[dialect.name] // len(order), 1)
            # In PostgreSQL only where SQLAlchemy casts every value: the database finds one type for a column of several
            # rows, and would make floats of decimals that stand beside one.
            cast = [c for c in order if not isinstance(table.c[c].type, sa.Float)]
            if dialect.name == "sqlite" or self._driver.count("%s::") == len(cast):
                self._many = _for_many(self._driver, self._rows)

    def run(self, connection: sa.Connection, rows: list[Values]) -> None:
        if self._driver is None:
            connection.execute(self._statement, rows)
            return
        values = self._values
        if self._single:
            parameters: list[Any] = [(values(r),) for r in rows]
        else:
            parameters = list(map(values, rows))
        if self._processors:
            for n, row in enumerate(parameters):
                bound = list(row)
                for i, process in self._processors:
                    bound[i] = process(bound[i])
                parameters[n] = tuple(bound)
        whole = len(parameters) // self._rows * self._rows if self._many is not None else 0
        if self._many is not None and whole:
            starts = range(0, whole, self._rows)
            together = [tuple(chain.from_iterable(parameters[start : start + self._rows])) for start in starts]
            connection.exec_driver_sql(self._many, together)
        if whole < len(parameters):
            connection.exec_driver_sql(self._driver, parameters[whole:])


_BY_PLACE: dict[str, Any] = {"sqlite": "qmark", "postgresql": "format"}
_PARAMETERS = {"sqlite": 640, "postgresql": 50}
"""Of one statement: below the 999 that the oldest SQLite in use takes; and the most with which psycopg remembers how it
has taken a statement apart, which takes longer than to send it."""


def _for_many(statement: str, rows: int) -> str | None:
    """An INSERT of one row made one of so many; None for what is no such INSERT."""
    head, values, rest = statement.partition(" VALUES (")
    if not values or " VALUES (" in rest:
        return None
    depth = 1
    for end, character in enumerate(rest):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return f"{head} VALUES {', '.join([f'({rest[:end]})'] * rows)}{rest[end + 1 :]}"
    return None


def _python_type(column: sa.Column[Any]) -> type | None:
    """The Python type that a key of this column must have, or None where that is the column type's own affair."""
    if isinstance(column.type, sa.types.TypeDecorator):
        return None
    try:
        found = column.type.python_type
    except NotImplementedError:
        return None
    return found if isinstance(found, type) and not issubclass(found, Decimal) else None


def _counts_from_zero(column: sa.Column[Any]) -> bool:
    if column.default is not None:
        return isinstance(column.default, sa.ColumnDefault) and column.default.is_scalar and column.default.arg == 0
    if column.server_default is None:
        return True
    text = str(getattr(column.server_default, "arg", "")).strip("'() ")
    try:
        return float(text) == 0
    except ValueError:
        return False
