"""Tables inside a handler: what is refused, what is merged, and the statements that come out."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from evsync.errors import ConfigurationError
from evsync.projections.models.engines import ViewsPlace
from evsync.projections.models.table_plan import TablePlan
from evsync.projections.models.tables import Catalog, Tables

metadata = sa.MetaData()
customers = sa.Table(
    "customers",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("name", sa.String),
    sa.Column("orders", sa.Integer, server_default="0"),
    sa.Column("spent", sa.Float),
    sa.Column("last_order_on", sa.Date),
    sa.Column("priority", sa.Integer, server_default="5"),
    sa.Column("source", sa.String, default="import"),
)
lines = sa.Table(
    "lines",
    metadata,
    sa.Column("order", sa.Uuid, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("customer", sa.ForeignKey("customers.id")),
    sa.Column("price", sa.Integer, nullable=False),
)
flags = sa.Table("flags", metadata, sa.Column("id", sa.Integer, primary_key=True))
keyless = sa.Table("keyless", metadata, sa.Column("id", sa.String))
orders = sa.Table("orders", metadata, sa.Column("id", sa.Integer, primary_key=True))
items = sa.Table(
    "items",
    metadata,
    sa.Column("order", sa.ForeignKey("orders.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
)
prices = sa.Table("prices", metadata, sa.Column("id", sa.String, primary_key=True), sa.Column("cents", sa.Numeric))


@pytest.fixture
def connection() -> Iterator[sa.Connection]:
    """A database in memory with the tables."""
    engine = ViewsPlace.of("sqlite://").engine(readers=0)
    with engine.begin() as connection:
        metadata.create_all(connection)
        yield connection
    engine.dispose()


@pytest.fixture
def tables(connection: sa.Connection) -> Tables:
    """The tables as a handler sees them."""
    return Tables(connection, Catalog(metadata, connection.dialect))


@pytest.fixture
def statements(connection: sa.Connection) -> list[tuple[str, int]]:
    """Every statement from now on, with its number of rows."""
    seen: list[tuple[str, int]] = []

    @sa.event.listens_for(connection, "before_cursor_execute")
    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        verb_and_table = statement.partition(" (")[0].partition(" WHERE")[0]
        seen.append((verb_and_table, len(parameters) if many else 1))

    return seen


def rows(connection: sa.Connection, table: sa.Table, *columns: str) -> list[Any]:
    """The table's rows, by key."""
    chosen = [table.c[c] for c in columns or table.c.keys()]
    return [tuple(r) for r in connection.execute(sa.select(*chosen).order_by(*table.primary_key.columns))]


ORDER = UUID(int=1)


class TestRefusals:
    """What is wrong is said in the handler, with the names that are right."""

    @pytest.mark.parametrize(
        ("verb", "table", "values", "says"),
        [
            ("upsert", customers, {"id": "c", "nmae": "A"}, "no column 'nmae'; it has id, name, orders"),
            ("upsert", customers, {"name": "A"}, "is keyed by id, and id was not given"),
            ("increment", lines, {"order": ORDER, "price": 1}, "keyed by order, number, and number was not given"),
            ("delete", lines, {"order": ORDER}, "keyed by order, number, and number was not given"),
            ("delete", customers, {"id": "c", "name": "A"}, r"takes the primary key alone \(id\), not name"),
            ("upsert", keyless, {"id": "c"}, "has no primary key"),
            ("upsert", sa.table("others"), {"id": "c"}, "'others' is not a table of this projection's model"),
            ("upsert", customers, {"id": None}, "'id' is part of the key and cannot be None"),
            ("upsert", customers, {"id": ORDER}, r"takes str, not UUID\(.*write id=str\(…\)"),
            ("upsert", flags, {"id": "1"}, "takes int, not '1' of type str"),
            ("upsert", flags, {"id": True}, "takes int, not True"),
            ("upsert", flags, {"id": [1]}, r"takes int, not \[1\]"),
            ("upsert", lines, {"order": "x", "number": 1, "price": 1}, "takes UUID, not 'x'"),
            ("upsert", lines, {"order": ORDER, "number": 1}, "'price' of table 'lines' is NOT NULL, has no default"),
            ("increment", customers, {"id": "c", "name": 1}, r"'name' of table 'customers' is of type String\(\)"),
            ("increment", customers, {"id": "c", "priority": 1}, "has a default other than 0"),
            ("increment", customers, {"id": "c", "orders": 1.5}, "is raised by int, not by 1.5"),
            ("increment", customers, {"id": "c", "orders": True}, "is raised by int, not by True"),
            ("increment", customers, {"id": "c", "orders": None}, "is raised by int, not by None"),
            ("increment", customers, {"id": "c", "spent": Decimal(1)}, "is raised by int or float"),
            ("increment", prices, {"id": "c", "cents": 0.1}, "is raised by int or Decimal, not by 0.1"),
        ],
    )
    def test_a_call_that_cannot_be_right_raises_at_once(
        self, tables: Tables, verb: str, table: sa.Table, values: dict[str, Any], says: str
    ) -> None:
        """Before anything is gathered, and each time, not only the first."""
        for _ in range(2):
            with pytest.raises(ConfigurationError, match=says):
                getattr(tables, verb)(table, **values)
        tables.flush()

    def test_tables_of_a_batch_that_is_over_refuse_to_be_used(self, tables: Tables) -> None:
        """A handler that kept them would write into nowhere."""
        tables.upsert(flags, id=1)
        tables.flush()
        tables.end()
        for use in (lambda: tables.upsert(flags, id=1), lambda: tables.execute(sa.select(flags)), tables.flush):
            with pytest.raises(ConfigurationError, match="belong to a batch that is over"):
                use()

    def test_after_a_failed_flush_nothing_of_the_transaction_is_taken_for_good(self, tables: Tables) -> None:
        """A handler that swallows the error of execute() must not make a batch commit without what was gathered."""
        tables.upsert(lines, order=ORDER, number=1, price=1, customer="nobody")
        with pytest.raises(sa.exc.IntegrityError):
            tables.execute(sa.select(flags))
        with pytest.raises(sa.exc.IntegrityError):
            tables.flush()


class TestMerging:
    """Operations on one row keep their order."""

    def test_later_upserts_override_columns_and_leave_the_others(
        self, tables: Tables, connection: sa.Connection
    ) -> None:
        """And a new row has its defaults, whether the database's or SQLAlchemy's."""
        tables.upsert(customers, id="c", name="Ada", orders=1)
        tables.upsert(customers, id="c", name="Ada L.", last_order_on=date(2026, 1, 2))
        tables.flush()
        assert rows(connection, customers) == [("c", "Ada L.", 1, None, date(2026, 1, 2), 5, "import")]
        tables.upsert(customers, id="c", name=None)
        tables.flush()
        assert rows(connection, customers) == [("c", None, 1, None, date(2026, 1, 2), 5, "import")]

    def test_increments_add_up_over_upserts_nulls_and_missing_rows(
        self, tables: Tables, connection: sa.Connection
    ) -> None:
        """NULL counts from zero, in memory as in the database."""
        tables.increment(customers, id="missing", orders=2, spent=1.5)
        tables.increment(customers, id="missing", orders=-3)
        tables.upsert(customers, id="set", orders=10, spent=None)
        tables.increment(customers, id="set", orders=1, spent=2.5)
        tables.upsert(customers, id="overridden", orders=1)
        tables.increment(customers, id="overridden", orders=1)
        tables.upsert(customers, id="overridden", orders=7)
        tables.increment(customers, id="replaced", orders=3, spent=1.0)
        tables.upsert(customers, id="replaced", orders=4)
        tables.flush()
        tables.increment(customers, id="missing", orders=5, spent=1)
        tables.increment(customers, id="set", spent=1)
        tables.flush()
        assert rows(connection, customers, "id", "orders", "spent") == [
            ("missing", 4, 2.5),
            ("overridden", 7, None),
            ("replaced", 4, 1.0),
            ("set", 11, 3.5),
        ]

    def test_a_row_that_is_deleted_and_written_again_is_fresh(self, tables: Tables, connection: sa.Connection) -> None:
        """Nothing of the old row is left, wherever the flush falls."""
        tables.upsert(customers, id="c", name="Ada", orders=3)
        tables.flush()
        tables.increment(customers, id="c", orders=1)
        tables.delete(customers, id="c")
        tables.increment(customers, id="c", orders=1)
        tables.flush()
        assert rows(connection, customers, "name", "orders") == [(None, 1)]

    def test_a_deletion_reaches_rows_that_refer_to_it_also_gathered_ones(
        self, tables: Tables, connection: sa.Connection
    ) -> None:
        """ON DELETE CASCADE takes what was there at that moment, and spares what comes later."""
        tables.upsert(orders, id=1)
        tables.upsert(items, order=1, number=1)
        tables.delete(orders, id=1)
        tables.upsert(orders, id=1)
        tables.upsert(items, order=1, number=2)
        tables.flush()
        assert rows(connection, items) == [(1, 2)]

    def test_execute_sees_what_was_gathered_and_what_comes_later_sees_its_work(
        self, tables: Tables, connection: sa.Connection
    ) -> None:
        """It is an ordinary statement at its place in the order."""
        tables.increment(customers, id="c", orders=2)
        assert tables.execute(sa.select(customers.c.orders)).scalar_one() == 2
        tables.execute(sa.update(customers).values(orders=customers.c.orders * 10))
        tables.increment(customers, id="c", orders=1)
        tables.flush()
        assert rows(connection, customers, "orders") == [(21,)]

    def test_a_value_that_only_the_database_can_add_to_is_left_to_it(
        self, tables: Tables, connection: sa.Connection
    ) -> None:
        """Python's True plus one, or a date's, need not be what the column makes of it."""
        tables.upsert(customers, id="c", orders=True)
        tables.increment(customers, id="c", orders=1)
        tables.flush()
        assert rows(connection, customers, "orders") == [(2,)]


class TestStatements:
    """Few statements, in an order that foreign keys allow."""

    def test_rows_alike_share_a_statement(self, tables: Tables, statements: list[tuple[str, int]]) -> None:
        """One statement a shape, however many rows there are and however often each was touched."""
        for n in range(100):
            tables.increment(flags, id=n)
            tables.upsert(lines, order=ORDER, number=n, price=n)
            tables.increment(lines, order=ORDER, number=n, price=n)
        tables.delete(flags, id=3)
        tables.flush()
        assert sorted(statements) == [("DELETE FROM flags", 1), ("INSERT INTO flags", 99), ("INSERT INTO lines", 100)]

    def test_referenced_rows_are_written_first_and_deleted_last(
        self, tables: Tables, connection: sa.Connection
    ) -> None:
        """Whichever table the handler touched first."""
        tables.upsert(lines, order=ORDER, number=1, price=1, customer="c")
        tables.upsert(customers, id="c")
        tables.flush()
        tables.delete(lines, order=ORDER, number=1)
        tables.delete(customers, id="c")
        tables.flush()
        assert rows(connection, customers) == rows(connection, lines) == []

    def test_nothing_to_write_is_no_statement(self, tables: Tables, statements: list[tuple[str, int]]) -> None:
        """An idle batch costs nothing."""
        tables.flush()
        assert statements == []

    def test_postgresql_is_given_its_own_words(self) -> None:
        """The same plan compiles for both dialects, with conversions left to the driver where it needs names."""
        dialect: sa.Dialect = postgresql.psycopg.dialect()  # type: ignore[no-untyped-call]  # as SQLAlchemy has it
        plan = TablePlan(customers, dialect, referenced=False)
        compiled = " ".join(str(plan._upsert(("id", "name"), ("orders",)).compile(dialect=plan.dialect)).split())
        assert "ON CONFLICT (id) DO UPDATE SET name = excluded.name" in compiled
        assert "orders = (coalesce(customers.orders, 0) + excluded.orders)" in compiled
        only_key = TablePlan(flags, dialect, referenced=False)
        assert "ON CONFLICT (id) DO NOTHING" in str(only_key._upsert(("id",), ()).compile(dialect=plan.dialect))
