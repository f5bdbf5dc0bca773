"""Which rows differ between two sets of tables: a read model and what its code would make of history, or two codes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

import sqlalchemy as sa

LIMIT = 20
_AT_ONCE = 2_000


@dataclass(frozen=True, slots=True)
class RowDifference:
    """One row."""

    kind: Literal["changed", "only_old", "only_new"]
    key: Mapping[str, Any]
    columns: Mapping[str, tuple[Any, Any]]
    """What differs: old and new value. For a row that only one side has, all of its columns, None on the other side."""


@dataclass(slots=True)
class TableDifference:
    """One table."""

    table: str
    old_rows: int | None = 0
    """None: there is no such table on that side."""
    new_rows: int | None = 0
    columns_only_old: Sequence[str] = ()
    columns_only_new: Sequence[str] = ()
    changed: int = 0
    only_old: int = 0
    only_new: int = 0
    rows: list[RowDifference] = field(default_factory=list)
    """The first ones."""

    @property
    def same(self) -> bool:
        """Whether nothing differs, columns included."""
        counts = self.changed + self.only_old + self.only_new
        columns = (*self.columns_only_old, *self.columns_only_new)
        return not (counts or columns or self.old_rows is None or self.new_rows is None)


@dataclass(frozen=True, slots=True)
class Side:
    """Tables, and where they are."""

    connection: sa.Connection
    metadata: sa.MetaData


def compare(old: Side, new: Side, limit: int = LIMIT) -> list[TableDifference]:
    """Table by table, what differs; at most `limit` rows each are shown, all are counted.

    Keys and digests of one side's rows are held in memory, about 200 bytes a row.
    """
    names = dict.fromkeys([*old.metadata.tables, *new.metadata.tables])
    return [_Comparison(old, new, name, limit).run() for name in names]


def as_it_is(connection: sa.Connection, metadata: sa.MetaData) -> Side:
    """The tables that a database has of these, with the columns that they have there."""
    inspector, found = sa.inspect(connection), sa.MetaData()
    for table in metadata.tables.values():
        if not inspector.has_table(table.name, schema=table.schema):
            continue
        known = {c.name: c for c in table.columns}
        columns = [
            sa.Column(
                c["name"], known[c["name"]].type, key=known[c["name"]].key, primary_key=known[c["name"]].primary_key
            )
            if c["name"] in known
            else sa.Column(c["name"], c["type"])
            for c in inspector.get_columns(table.name, schema=table.schema)
        ]
        sa.Table(table.name, found, *columns, schema=table.schema)
    return Side(connection, found)


class _Comparison:
    """One table of both sides."""

    def __init__(self, old: Side, new: Side, name: str, limit: int) -> None:
        self._old, self._new, self._limit = old, new, limit
        self._found = TableDifference(name)
        self._before, self._after = old.metadata.tables.get(name), new.metadata.tables.get(name)

    def run(self) -> TableDifference:
        found, before, after = self._found, self._before, self._after
        if before is None or after is None:
            found.old_rows = None if before is None else _count(self._old, before)
            found.new_rows = None if after is None else _count(self._new, after)
            return found
        shared = [c for c in before.c.keys() if c in after.c]  # noqa: SIM118  # a collection of columns, not a dict
        found.columns_only_old = [c for c in before.c.keys() if c not in shared]  # noqa: SIM118
        found.columns_only_new = [c for c in after.c.keys() if c not in shared]  # noqa: SIM118
        key = [c.key for c in after.primary_key if c.key in shared] or shared
        digests: dict[tuple[Any, ...], bytes] = {}
        for row in _rows(self._old, before, shared):
            digests[tuple(row[c] for c in key)] = _digest(row)
            found.old_rows = (found.old_rows or 0) + 1
        for row in _rows(self._new, after, shared):
            found.new_rows = (found.new_rows or 0) + 1
            place = tuple(row[c] for c in key)
            digest = digests.pop(place, None)
            if digest is None:
                found.only_new += 1
                self._show("only_new", key, row, {c: (None, v) for c, v in row.items()})
            elif digest != _digest(row):
                self._changed(key, row, self._row(before, shared, dict(zip(key, place, strict=True))))
        found.only_old = len(digests)
        for place in list(digests)[: max(0, self._limit - len(found.rows))]:
            row = self._row(before, shared, dict(zip(key, place, strict=True)))
            self._show("only_old", key, row, {c: (v, None) for c, v in row.items()})
        return found

    def _changed(self, key: Sequence[str], row: Mapping[str, Any], old: Mapping[str, Any]) -> None:
        # Written otherwise is not yet another value: 1 and Decimal("1.0") are one number.
        columns = {c: (old[c], value) for c, value in row.items() if old[c] != value and repr(old[c]) != repr(value)}
        if columns:
            self._found.changed += 1
            self._show("changed", key, row, columns)

    def _show(
        self,
        kind: Literal["changed", "only_old", "only_new"],
        key: Sequence[str],
        row: Mapping[str, Any],
        columns: Mapping[str, tuple[Any, Any]],
    ) -> None:
        if len(self._found.rows) < self._limit:
            difference = RowDifference(
                kind, {c: row[c] for c in key}, {c: v for c, v in columns.items() if c not in key}
            )
            self._found.rows.append(difference)

    def _row(self, table: sa.Table, columns: Sequence[str], key: Mapping[str, Any]) -> Mapping[str, Any]:
        where = [table.c[c] == value if value is not None else table.c[c].is_(None) for c, value in key.items()]
        found = self._old.connection.execute(sa.select(*(table.c[c].label(c) for c in columns)).where(*where).limit(1))
        return dict(found.mappings().one())


def _rows(side: Side, table: sa.Table, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    select = sa.select(*(table.c[c].label(c) for c in columns))
    for row in side.connection.execute(select, execution_options={"yield_per": _AT_ONCE}).mappings():
        yield dict(row)


def _digest(row: Mapping[str, Any]) -> bytes:
    return blake2b(repr(tuple(row.values())).encode(errors="backslashreplace"), digest_size=8).digest()


def _count(side: Side, table: sa.Table) -> int:
    return side.connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
