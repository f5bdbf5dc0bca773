"""Gathering changes no outcome: tables end up as if each call of a handler had been carried out at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from evsync.projections.models.engines import ViewsPlace
from evsync.projections.models.tables import Catalog, Tables

metadata = sa.MetaData()
parents = sa.Table(
    "parents",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String, unique=True),
    sa.Column("count", sa.Integer, server_default="0"),
    sa.Column("amount", sa.Float),
)
children = sa.Table(
    "children",
    metadata,
    sa.Column("parent", sa.ForeignKey("parents.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("kind", sa.String, primary_key=True),
    sa.Column("count", sa.Integer),
    sa.Column("note", sa.String, server_default="none yet"),
)
flags = sa.Table("flags", metadata, sa.Column("id", sa.String, primary_key=True))

ids = st.integers(1, 2)
kinds = st.sampled_from(["a", "b"])
numbers = st.integers(-5, 5)
amounts = st.sampled_from([None, 0.5, 2.0, 3])
Operation = tuple[str, sa.Table, dict[str, Any]]


def operation(verb: str, table: sa.Table, key: dict[str, Any], **columns: Any) -> st.SearchStrategy[Operation]:
    """A call with this key and some of these columns."""
    values = st.fixed_dictionaries(key, optional=columns)
    return values.map(lambda given: (verb, table, given))


operations = st.one_of(
    operation(
        "upsert",
        parents,
        {"id": ids},
        name=st.sampled_from([None, None, None, "x", "y"]),
        count=st.none() | numbers,
        amount=amounts,
    ),
    operation("increment", parents, {"id": ids}, count=numbers, amount=st.sampled_from([0.5, -2.0, 3])),
    operation("delete", parents, {"id": ids}),
    operation("upsert", children, {"parent": ids, "kind": kinds}, count=numbers, note=st.sampled_from(["x", "y"])),
    operation("increment", children, {"kind": kinds, "parent": ids}, count=numbers),
    operation("delete", children, {"parent": ids, "kind": kinds}),
    operation("upsert", flags, {"id": kinds}),
    operation("increment", flags, {"id": kinds}),
    operation("delete", flags, {"id": kinds}),
    st.just(("execute", parents, {})),
)


def carry_out(connection: sa.Connection, verb: str, table: sa.Table, values: dict[str, Any]) -> None:
    """One operation at once, in the plainest SQL: look whether the row is there, then insert or update it."""
    key = sa.and_(*(column == values[column.key] for column in table.primary_key))
    found = connection.execute(sa.select(table).where(key)).mappings().first()
    others = {name: value for name, value in values.items() if name not in table.primary_key.columns}
    if verb == "delete":
        connection.execute(sa.delete(table).where(key))
    elif found is None:
        connection.execute(sa.insert(table).values(values))
    elif others:
        if verb == "increment":
            others = {name: (found[name] or 0) + value for name, value in others.items()}
        connection.execute(sa.update(table).where(key).values(others))


def outcome(run: Callable[[sa.Connection], None]) -> dict[str, list[Any]] | str:
    """What the tables hold after `run`, or the kind of error that it met."""
    engine = ViewsPlace.of("sqlite://").engine(readers=0)
    try:
        with engine.begin() as connection:
            metadata.create_all(connection)
            connection.execute(sa.insert(parents), [{"id": n} for n in (1, 2)])  # else most lists end at children
            run(connection)
            return {t.name: sorted(map(repr, connection.execute(sa.select(t)).all())) for t in metadata.tables.values()}
    except sa.exc.IntegrityError as e:
        return type(e).__name__
    finally:
        engine.dispose()


def gathered(operations: list[Operation], ends_of_batches: set[int]) -> Callable[[sa.Connection], None]:
    """The operations through Tables, in batches that end after these."""

    def run(connection: sa.Connection) -> None:
        catalog = Catalog(metadata, connection.dialect)
        tables = Tables(connection, catalog)
        for n, (verb, table, values) in enumerate(operations):
            if verb == "execute":
                tables.execute(sa.select(table))
            else:
                getattr(tables, verb)(table, **values)
            if n in ends_of_batches:
                tables.flush()
                tables.end()
                tables = Tables(connection, catalog)
        tables.flush()

    return run


def at_once(operations: list[Operation]) -> Callable[[sa.Connection], None]:
    """The operations one by one."""

    def run(connection: sa.Connection) -> None:
        for verb, table, values in operations:
            if verb != "execute":
                carry_out(connection, verb, table, values)

    return run


@given(st.lists(operations, min_size=10, max_size=25), st.sets(st.integers(0, 24), max_size=3))
@settings(max_examples=150, deadline=None)
def test_gathered_operations_end_as_if_each_had_been_carried_out_at_once(
    operations: list[Operation], ends_of_batches: set[int]
) -> None:
    """Merging in memory and writing in bulk give the tables that plain statements give, wherever batches end.

    Where plain statements meet a constraint, gathering may get by (a child before its parent, in one batch). It meets
    one where they do not only if names change hands in one batch: then the runner writes event by event.
    """
    expected = outcome(at_once(operations))
    found = outcome(gathered(operations, ends_of_batches))
    names_used = sum(bool(values.get("name")) for _, _, values in operations)
    if expected != "IntegrityError" and not (names_used > 1 and found == "IntegrityError"):
        assert found == expected


@given(st.lists(operations, min_size=5, max_size=15))
@settings(max_examples=50, deadline=None)
def test_written_event_by_event_it_meets_exactly_the_errors_of_plain_statements(operations: list[Operation]) -> None:
    """With a flush after each operation nothing is gathered, and constraints are met where plain SQL meets them."""
    expected = outcome(at_once(operations))
    assert outcome(gathered(operations, set(range(len(operations))))) == expected
