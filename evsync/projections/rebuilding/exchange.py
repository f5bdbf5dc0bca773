"""The exchange of a read model for its shadow, in one transaction, and what becomes of the old copy.

Whoever reads meets the old tables or the new ones, whole, under the same names. The old copy is set aside with a note
when it may be dropped (`evsync_copies`), so that any process can do that when its time has come.

In PostgreSQL tables change their schema, with all that belongs to them. SQLite has no other schema in a file, so there
the tables are made again and filled from the shadow's file, inside the transaction; readers go on meanwhile, other
writers wait.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from evsync.errors import ConfigurationError
from evsync.projections.models import bookkeeping
from evsync.projections.models.bookkeeping import CHECKPOINTS, LEASES
from evsync.projections.models.leases import time
from evsync.projections.rebuilding.shadow import read_mark, schema_name
from evsync.projections.rebuilding.strangers import strangers

ATTACHED = "evsync_next"
"""The name of the shadow's file while it is attached, in SQLite."""
REBUILDER = "rebuild "
"""What the owner of a frozen model's groups begins with."""
FREEZE_S = 5.0
"""How long the live model stands still if whoever exchanges it dies in between."""
_LOCK_MS = 400
"""How long to wait for readers in PostgreSQL: less than the second after which it looks for deadlocks, so that the
exchange gives way, never a reader."""

_schema = sa.MetaData()
_copies = sa.Table(
    "evsync_copies",
    _schema,
    sa.Column("projection", sa.String, primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("tables", sa.Text, nullable=False),  # JSON: names as they were, what they refer to last
    sa.Column("drop_after", sa.Double, nullable=False),  # seconds since 1970 by the database's clock
)
_models = sa.Table(
    "evsync_models",
    _schema,
    sa.Column("projection", sa.String, primary_key=True),
    sa.Column("shadow", sa.String, nullable=False),  # the nonce of the shadow that was put in place last
)

Shown = Mapping[str, tuple[str, int]]
"""Log → incarnation and position."""


class Lost(Exception):
    """The exchange cannot be made any more: somebody else has taken the groups, or made or removed the shadow."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """What is to be exchanged, by whom. Its methods work inside the transaction of the connection they are given."""

    projection: str
    version: int
    groups: int
    metadata: sa.MetaData
    fingerprint: str
    owner: str
    shadow: str
    """The name of the schema where the shadow is: in SQLite the one under which its file is attached."""

    @property
    def _mine(self) -> sa.ColumnElement[bool]:
        return LEASES.c.projection == self.projection

    def check_possible(self, connection: sa.Connection) -> None:
        """Raise ConfigurationError for what an exchange would lose: views, triggers and keys that others have made."""
        if named := [t.name for t in self.metadata.tables.values() if t.schema is not None]:
            raise ConfigurationError(
                f"projection {self.projection!r} cannot be rebuilt beside the old model: table {named[0]!r} names a "
                "schema. Let the URL of the read models name it, and leave it out of the tables"
            )
        if found := strangers(connection, self.metadata):
            raise ConfigurationError(
                f"projection {self.projection!r} cannot be rebuilt: {', '.join(found)} in its database belong to its "
                "tables and are not part of the model, so that they would stay with the old copy. Drop them, rebuild, "
                "and make them again"
            )

    # ---- the live model stands still

    def freeze(self, connection: sa.Connection) -> Shown | None:
        """Take all groups from whoever works on them, for a moment; what the live model shows at most, see `shown`.

        None, and nothing is taken, while another process exchanges the same model: rivals would only take the groups
        from one another.
        """
        bookkeeping.create(connection)
        rows = sa.select(LEASES.c.owner, LEASES.c.expires).where(self._mine).order_by(LEASES.c.group).with_for_update()
        found, now = connection.execute(rows).all(), time(connection)
        if any(r.owner.startswith(REBUILDER) and r.owner != self.owner and r.expires > now for r in found):
            return None
        until = time(connection) + FREEZE_S
        connection.execute(
            sa.update(LEASES).where(self._mine).values(token=LEASES.c.token + 1, owner=self.owner, expires=until)
        )
        return self.shown(connection)

    def shown(self, connection: sa.Connection) -> Shown:
        """What the live model shows at most: log → incarnation and position of its group that is furthest."""
        return shown_by(connection, self.projection, None)

    def events(self, connection: sa.Connection) -> int:
        """How many events the live model holds."""
        c = CHECKPOINTS.c
        return int(connection.scalar(sa.select(sa.func.sum(c.count)).where(c.projection == self.projection)) or 0)

    def keep_frozen(self, connection: sa.Connection) -> None:
        """For as long again. Raises Lost."""
        self._check_frozen(connection)
        connection.execute(sa.update(LEASES).where(self._mine).values(expires=time(connection) + FREEZE_S))

    def thaw(self, connection: sa.Connection) -> None:
        """Let the live model's workers go on with what is there."""
        frozen = self._mine & (LEASES.c.owner == self.owner)
        connection.execute(sa.update(LEASES).where(frozen).values(owner="", expires=0.0))

    def _check_frozen(self, connection: sa.Connection) -> None:
        rows = sa.select(LEASES.c.owner).where(self._mine).order_by(LEASES.c.group).with_for_update()
        owners = connection.scalars(rows).all()
        if any(owner != self.owner for owner in owners):
            raise Lost("a worker has taken the groups back")

    # ---- the exchange

    def carry_out(self, connection: sa.Connection, grace_s: float) -> None:
        """Put the shadow in the place of the live model, and set that aside. Raises Lost; nothing is changed then."""
        self._check_frozen(connection)
        found = read_mark(connection, self.shadow)
        if found is None or found.fingerprint != self.fingerprint:
            raise Lost("the shadow was removed, or is made for other code by now")
        if placed(connection).get(self.projection) == found.nonce:
            raise Lost("another process was quicker")
        if not reaches(shown_by(connection, self.projection, self.shadow, groups=self.groups), self.shown(connection)):
            raise Lost("the shadow does not show everything that the live model shows")
        _schema.create_all(connection)
        number = int(time(connection) * 1_000)
        old = self._aside(connection)
        move = self._copy_in_sqlite if connection.dialect.name == "sqlite" else self._move_in_postgresql
        move(connection, number, old)
        self._take_bookkeeping(connection)
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"DROP SCHEMA {_quoted(connection, self.shadow)} CASCADE")
        connection.execute(sa.delete(_models).where(_models.c.projection == self.projection))
        connection.execute(sa.insert(_models).values(projection=self.projection, shadow=found.nonce))
        if old:
            due = time(connection) + grace_s
            copy = {"projection": self.projection, "number": number, "tables": json.dumps(old), "drop_after": due}
            connection.execute(sa.insert(_copies).values(copy))

    def _aside(self, connection: sa.Connection) -> list[str]:
        """The live tables that there are, what refers to others last."""
        there = set(sa.inspect(connection).get_table_names(schema=_live(connection)))
        return [t.name for t in self.metadata.sorted_tables if t.name in there]

    def _copy_in_sqlite(self, connection: sa.Connection, number: int, old: Sequence[str]) -> None:
        quote = connection.dialect.identifier_preparer.quote_identifier
        run = connection.exec_driver_sql
        run("PRAGMA defer_foreign_keys = ON")
        for name in old:
            for index in run(
                "SELECT name FROM main.sqlite_master WHERE type = 'index' AND tbl_name = ? AND sql IS NOT NULL", (name,)
            ).scalars().all():  # fmt: skip
                run(f"DROP INDEX main.{quote(index)}")
            run(f"ALTER TABLE main.{quote(name)} RENAME TO {quote(_old_name(name, number))}")
        self.metadata.create_all(connection, checkfirst=False)  # what is made without a schema is made in main
        for table in self.metadata.sorted_tables:
            stored = ", ".join(quote(c.name) for c in table.columns if c.computed is None)
            run(f"INSERT INTO main.{quote(table.name)} ({stored}) SELECT {stored} FROM {ATTACHED}.{quote(table.name)}")

    def _move_in_postgresql(self, connection: sa.Connection, number: int, old: Sequence[str]) -> None:
        quote = connection.dialect.identifier_preparer.quote_identifier
        run, schema = connection.exec_driver_sql, str(_live(connection))
        live, next_, aside = (
            quote(s) for s in (schema, self.shadow, _aside_schema(connection, self.projection, number))
        )
        run(f"SET LOCAL lock_timeout = {_LOCK_MS}")
        granted = [grant for name in old for grant in _grants(connection, name)]
        if old:
            run(f"CREATE SCHEMA {aside}")
        types = connection.execute(_TYPES, {"schema": self.shadow}).scalars().all()
        present = set(connection.execute(_TYPES, {"schema": schema}).scalars())
        for name in old:
            run(f"ALTER TABLE {live}.{quote(name)} SET SCHEMA {aside}")
        for name in types:
            if name in present and old:
                run(f"ALTER TYPE {live}.{quote(name)} SET SCHEMA {aside}")
            run(f"ALTER TYPE {next_}.{quote(name)} SET SCHEMA {live}")
        for table in self.metadata.sorted_tables:
            run(f"ALTER TABLE {next_}.{quote(table.name)} SET SCHEMA {live}")
        for grant in granted:
            run(grant)

    def _take_bookkeeping(self, connection: sa.Connection) -> None:
        """Checkpoints (and what else is kept of a projection) are the shadow's from now on; tokens go on rising."""
        last = connection.scalar(sa.select(sa.func.max(LEASES.c.token)).where(self._mine))
        connection.execute(sa.delete(LEASES).where(self._mine))
        for table in bookkeeping.tables_of_models():
            connection.execute(sa.delete(table).where(table.c.projection == self.projection))
            numbered = table.autoincrement_column  # a number of the shadow may be another projection's here
            names = [c.name for c in table.columns if c is not numbered]
            shadow = sa.table(table.name, *(sa.column(c.name) for c in table.columns), schema=self.shadow)
            rows = sa.select(*(shadow.c[n] for n in names)).where(shadow.c.projection == self.projection)
            if numbered is not None:
                rows = rows.order_by(shadow.c[numbered.name])
            connection.execute(sa.insert(table).from_select(names, rows))
        connection.execute(
            sa.insert(LEASES),
            [
                {"projection": self.projection, "group": g, "token": (last or 0) + 1, "owner": "", "expires": 0.0,
                 "halted": None}
                for g in range(self.groups)
            ],
        )  # fmt: skip


def shown_by(connection: sa.Connection, projection: str, schema: str | None, *, groups: int = 0) -> Shown:
    """How far each log is applied: its group that is furthest, or with `groups`, of so many, the one that is least."""
    c = sa.table("evsync_checkpoints", *(sa.column(c.name) for c in CHECKPOINTS.c), schema=schema).c
    rows = connection.execute(sa.select(c.log, c.incarnation, c.position).where(c.projection == projection))
    by_log: dict[str, list[tuple[int, str]]] = {}
    for log, incarnation, position in rows:
        by_log.setdefault(log, []).append((position, incarnation))
    found = {}
    for log, places in by_log.items():
        position, incarnation = min(places) if groups else max(places)
        found[log] = incarnation, position if len(places) >= groups else 0
    return found


def reaches(shadow: Shown, live: Shown) -> bool:
    """Whether a shadow shows all that a live model does, as far as that is of the same history.

    A log that only the live model has read is no concern of the new one; where the live model shows another
    incarnation, its positions mean nothing.
    """
    return all(
        shadow[log][0] != incarnation or shadow[log][1] >= position
        for log, (incarnation, position) in live.items()
        if log in shadow
    )


def placed(connection: sa.Connection) -> dict[str, str]:
    """Projection → the nonce of the shadow that took its model's place last: what is left of that is of no use."""
    if not sa.inspect(connection).has_table(_models.name):
        return {}
    return {row.projection: row.shadow for row in connection.execute(sa.select(_models))}


def sweep(connection: sa.Connection) -> float | None:
    """Drop the old copies whose time has come; in how many seconds the next one's comes, None if none is left."""
    if not sa.inspect(connection).has_table(_copies.name):
        return None
    now = time(connection)
    rest = []
    for copy in connection.execute(sa.select(_copies).with_for_update()).all():
        if copy.drop_after > now:
            rest.append(copy.drop_after - now)
            continue
        if connection.dialect.name == "sqlite":
            for name in reversed(json.loads(copy.tables)):
                aside = _quoted(connection, _old_name(name, copy.number))
                connection.exec_driver_sql(f"DROP TABLE IF EXISTS main.{aside}")
        else:
            aside = _quoted(connection, _aside_schema(connection, copy.projection, copy.number))
            connection.exec_driver_sql(f"DROP SCHEMA IF EXISTS {aside} CASCADE")
        own = (_copies.c.projection == copy.projection) & (_copies.c.number == copy.number)
        connection.execute(sa.delete(_copies).where(own))
    return min(rest, default=None)


# ---- names


def _old_name(table: str, number: int) -> str:
    return f"{table}__old_{number}"


def _aside_schema(connection: sa.Connection, projection: str, number: int) -> str:
    return schema_name(f"{_live(connection)}__{projection}__old_{number}")


def _live(connection: sa.Connection) -> str | None:
    """The schema of the live model; None in SQLite, which has one."""
    if connection.dialect.name == "sqlite":
        return None
    return str(connection.exec_driver_sql("SELECT current_schema()").scalar_one())


def _quoted(connection: sa.Connection, name: str) -> str:
    return connection.dialect.identifier_preparer.quote_identifier(name)


# ---- types and grants of PostgreSQL


_TYPES = sa.text("""
    SELECT t.typname FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
    WHERE n.nspname = :schema AND t.typtype IN ('e', 'd')
""")
_GRANTS = sa.text("""
    SELECT a.privilege_type, CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
           a.is_grantable
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, aclexplode(c.relacl) a
    WHERE n.nspname = current_schema() AND c.relname = :name AND a.grantee <> c.relowner
""")


def _grants(connection: sa.Connection, name: str) -> list[str]:
    """What others may do with a table, as statements that allow it for the one that takes its name."""
    table = f"{_quoted(connection, str(_live(connection)))}.{_quoted(connection, name)}"
    return [
        f"GRANT {privilege} ON {table} TO {role}{' WITH GRANT OPTION' if grantable else ''}"
        for privilege, role, grantable in connection.execute(_GRANTS, {"name": name}).all()
    ]
