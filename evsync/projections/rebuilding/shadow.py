"""A shadow: another place for a projection's tables, under their names, where they are filled while those are read.

In SQLite it is a file beside that of the read models, in PostgreSQL a schema that hides theirs. Either way it is a
database for read models like any other, with checkpoints and leases of its own, so that the same runner fills it by the
same rules; and since every table, index and constraint has its own name in it, what is filled is what `create_all`
would have made.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.schema import CreateIndex, CreateTable

from evsync.aggregates.shapes import compiled_form
from evsync.projections.models.engines import ViewsPlace
from evsync.projections.projection import Projection

_MAX_NAME = 63
"""Bytes of a name in PostgreSQL."""
_schema = sa.MetaData()
_shadow = sa.Table(
    "evsync_shadow",
    _schema,
    sa.Column("fingerprint", sa.String, nullable=False),
    sa.Column("nonce", sa.String, nullable=False),
)


def shadow_place(place: ViewsPlace, projection: str) -> ViewsPlace:
    """Where the shadow of a projection is, the same for everybody."""
    if not place.is_sqlite:
        return replace(place, shadow=schema_name(f"{place.schema or 'views'}__{projection}__next"))
    if place.in_memory:  # nobody else can see it; then a file that nobody else looks for will do
        directory = Path(tempfile.mkdtemp(prefix="evsync-shadow-"))
        return ViewsPlace(place.url.set(database=str(directory / "next.db")))
    return ViewsPlace(place.url.set(database=f"{place.url.database}-{projection}-next"))


def schema_name(text: str) -> str:
    """`text`, or what identifies it where that is too long for a name."""
    if len(text.encode()) <= _MAX_NAME:
        return text
    return f"{text.encode()[:40].decode(errors='ignore')}__{blake2b(text.encode(), digest_size=8).hexdigest()}"


def file_of(place: ViewsPlace) -> Path:
    """The file of a place in SQLite."""
    return Path(str(place.url.database))


def fingerprint_of(projection: Projection[Any], metadata: sa.MetaData) -> str:
    """A digest of what decides on the content of the tables: version, groups, handlers' code, contracts, tables.

    Functions that handlers call are not looked at.
    """
    digest = blake2b(digest_size=16)
    parts: list[Any] = [projection.version, projection.groups]
    for contract, handler in projection.handlers.registered:
        function = getattr(handler, "__func__", handler)
        code = getattr(function, "__code__", None)
        fields = {name: str(field.annotation) for name, field in contract.model_fields.items()}
        parts.append((contract.__event_type__, fields))
        parts.append(compiled_form(code) if isinstance(code, CodeType) else type(handler).__qualname__)
    for table in metadata.sorted_tables:
        parts += [str(CreateTable(table)), *sorted(str(CreateIndex(index)) for index in table.indexes)]
    for part in parts:
        digest.update(repr(part).encode())
    return digest.hexdigest()


class Mark(NamedTuple):
    """What a shadow says of itself."""

    fingerprint: str
    """What it is made for, see `fingerprint_of`."""
    nonce: str
    """Which one it is."""


def read_mark(connection: sa.Connection, schema: str | None = None) -> Mark | None:
    """The mark of a shadow; None if there is none. `schema`: where it is, if not where names are looked for first."""
    if not sa.inspect(connection).has_table(_shadow.name, schema=schema):
        return None
    found = sa.table(_shadow.name, sa.column("fingerprint"), sa.column("nonce"), schema=schema)
    row = connection.execute(sa.select(found.c.fingerprint, found.c.nonce)).one_or_none()
    return Mark(*row) if row is not None else None


# Whoever makes, looks at or removes a shadow does so inside a transaction that writes to the read models' database, so
# that no two do it at once: in SQLite writers are alone, in PostgreSQL a lock sees to it.


def obtain(connection: sa.Connection, place: ViewsPlace, fingerprint: str, *, anew: bool) -> tuple[Mark, bool]:
    """The shadow that is made for this, or else a new and empty one; and whether it was there already."""
    found = peek(connection, place)
    if found is not None and found.fingerprint == fingerprint and not anew:
        return found, True
    remove(connection, place)
    mark = Mark(fingerprint, uuid4().hex)
    if place.is_sqlite:
        file_of(place).parent.mkdir(exist_ok=True)
        with place.opened() as inside:
            _write_mark(inside, mark)
    else:
        connection.exec_driver_sql(f"CREATE SCHEMA {_quoted(connection, place)}")
        _write_mark(connection.execution_options(schema_translate_map={None: place.shadow}), mark)
        connection.execution_options(schema_translate_map={})
    return mark, False


def peek(connection: sa.Connection, place: ViewsPlace) -> Mark | None:
    """The mark of the shadow that is there, if one is."""
    if not place.is_sqlite:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext(place.shadow))))
        return read_mark(connection, place.shadow)
    if not file_of(place).exists():
        return None
    with place.opened() as inside:
        return read_mark(inside)


def remove(connection: sa.Connection, place: ViewsPlace) -> None:
    """Remove the shadow, with everything in it."""
    if not place.is_sqlite:
        connection.exec_driver_sql(f"DROP SCHEMA IF EXISTS {_quoted(connection, place)} CASCADE")
        return
    file = file_of(place)
    for name in (file, file.with_name(f"{file.name}-wal"), file.with_name(f"{file.name}-shm")):
        name.unlink(missing_ok=True)


def _write_mark(connection: sa.Connection, mark: Mark) -> None:
    _schema.create_all(connection)
    connection.execute(sa.insert(_shadow).values(mark._asdict()))


def _quoted(connection: sa.Connection, place: ViewsPlace) -> str:
    assert place.shadow is not None
    return connection.dialect.identifier_preparer.quote_identifier(place.shadow)
