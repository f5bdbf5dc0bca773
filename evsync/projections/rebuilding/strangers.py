"""What others have made on a read model's tables, and an exchange would lose: views, triggers, keys, uses of types."""

from __future__ import annotations

import re
from collections.abc import Sequence

import sqlalchemy as sa


def strangers(connection: sa.Connection, metadata: sa.MetaData) -> list[str]:
    """What a database has of these tables that is not part of the model, each in words."""
    names = list(metadata.tables)
    if connection.dialect.name == "sqlite":
        return _in_sqlite(connection, names)
    columns = [c.type for t in metadata.tables.values() for c in t.columns]
    types = [str(t.name) for t in columns if isinstance(t, sa.Enum) and t.name]
    return list(connection.execute(_STRANGERS, {"names": names, "types": types}).scalars())


def _in_sqlite(connection: sa.Connection, names: Sequence[str]) -> list[str]:
    mentioned = re.compile(r"\b(?:" + "|".join(map(re.escape, names)) + r")\b")
    rows = connection.exec_driver_sql(
        "SELECT type, name, sql FROM sqlite_master WHERE type IN ('view', 'trigger', 'table')"
    ).all()
    found = [f"{kind} {name!r}" for kind, name, sql in rows if kind != "table" and mentioned.search(sql)]
    for table in (name for kind, name, _ in rows if kind == "table" and name not in names and "__old_" not in name):
        keys = connection.exec_driver_sql('SELECT "table" FROM pragma_foreign_key_list(?)', (table,)).scalars()
        if set(keys) & set(names):
            found.append(f"a foreign key of table {table!r}")
    return found


_STRANGERS = sa.text("""
    WITH own AS (
        SELECT c.oid, c.reltype FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = current_schema() AND c.relname = ANY(:names) AND c.relkind IN ('r', 'p')
    )
    SELECT DISTINCT 'view ' || quote_literal(r.ev_class::regclass::text)
    FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid AND d.classid = 'pg_rewrite'::regclass
    WHERE d.refobjid IN (SELECT oid FROM own) AND r.ev_class NOT IN (SELECT oid FROM own)
    UNION ALL
    SELECT 'trigger ' || quote_literal(tgname) FROM pg_trigger
    WHERE tgrelid IN (SELECT oid FROM own) AND NOT tgisinternal
    UNION ALL
    SELECT 'a foreign key of table ' || quote_literal(conrelid::regclass::text) FROM pg_constraint
    WHERE contype = 'f' AND confrelid IN (SELECT oid FROM own) AND conrelid NOT IN (SELECT oid FROM own)
    UNION ALL
    SELECT 'the use of type ' || quote_literal(t.typname) || ' in table ' || quote_literal(a.attrelid::regclass::text)
    FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace JOIN pg_attribute a ON a.atttypid = t.oid
    JOIN pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p')
    WHERE n.nspname = current_schema() AND t.typname = ANY(:types) AND a.attrelid NOT IN (SELECT oid FROM own)
""")
