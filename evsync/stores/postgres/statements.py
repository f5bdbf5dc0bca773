"""The statements of a PostgreSQL store, whose `{schema}` is that of the store."""

from __future__ import annotations

from functools import lru_cache

from psycopg import sql

from evsync.control import OWN_STREAMS
from evsync.records import Snapshot, StoredEvent
from evsync.stores import checkpoint_rows
from evsync.stores.database import Reads
from evsync.stores.slot_rows import ARRIVAL_COLUMNS, STATE_COLUMNS

MANY = 2**63 - 1
"""More than any number of rows or versions."""


@lru_cache(1024)
def composed(text: str, schema: str) -> sql.Composed:
    """A statement over a store's schema."""
    return sql.SQL(text).format(schema=sql.Identifier(schema))


COLUMNS = ", ".join(StoredEvent._fields)
"""In the order of the fields, so that a row is a StoredEvent as it is."""
COLUMN_TYPES = ("int8", "text", "int8", "int4", "text", "int8", "bytea", "int4", "text", "bytea", "text")
NOT_OWN = f"NOT starts_with(stream, '{OWN_STREAMS}')"
_SNAPSHOT = ", ".join(Snapshot._fields)

READS = Reads(
    head="SELECT head FROM {schema}.log",
    checkpoints=f"SELECT {checkpoint_rows.COLUMNS} FROM {{schema}}.checkpoints WHERE follower = %s ORDER BY 1, 2",
    snapshot=f"SELECT {_SNAPSHOT} FROM {{schema}}.snapshots WHERE stream = %s",
    moves="SELECT moves FROM {schema}.log",
    states=f"SELECT {STATE_COLUMNS} FROM {{schema}}.slots",
    size=f"SELECT count(*), coalesce(sum(length(data)), 0)::bigint FROM {{schema}}.events WHERE {NOT_OWN}",
    streams=f"SELECT slot, count(*) FROM (SELECT stream, slot FROM {{schema}}.events WHERE {NOT_OWN} "
    "UNION SELECT stream, slot FROM {schema}.imports) streams GROUP BY slot",
    facts="SELECT schema, head, (SELECT count(*) FROM {schema}.events), "
    "(SELECT count(DISTINCT stream) FROM {schema}.events), (SELECT count(*) FROM {schema}.snapshots) FROM {schema}.log",
    all_checkpoints=f"SELECT follower, {checkpoint_rows.COLUMNS} FROM {{schema}}.checkpoints ORDER BY 1, 2, 3",
    trimmed="SELECT trimmed FROM {schema}.log",
    goes_on="SELECT 1 FROM {schema}.events WHERE stream = %s AND version > %s LIMIT 1",
    old_streams=f"SELECT stream, max(version) FROM {{schema}}.events WHERE stream > %s AND {NOT_OWN} "
    "GROUP BY stream HAVING min(position) <= %s AND count(*) > 1 ORDER BY stream LIMIT %s",
)
SIZE_BYTES = """
    SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = %s AND c.relkind = 'r'
"""
READ_LOG = f"SELECT {COLUMNS} FROM {{schema}}.events WHERE position > %s ORDER BY position LIMIT %s"
PUT_SNAPSHOT = (
    f"INSERT INTO {{schema}}.snapshots AS kept ({_SNAPSHOT}) VALUES (%s, %s, %s, %s, %s, %s, %s) "
    f"ON CONFLICT (stream) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in Snapshot._fields)} "
    "WHERE kept.shape <> excluded.shape OR kept.version < excluded.version"
)

# ---- for one worker

READ_SHARE = f"""
    WITH stretch AS (
        SELECT position + remaining AS until FROM {{schema}}.events
        WHERE position > %(after)s AND position <= %(until)s AND position + remaining < coalesce((
            SELECT min(position + 0) FROM {{schema}}.events
            WHERE stream >= %(own)s AND stream < %(beyond)s AND position > %(after)s
        ), {MANY})
        ORDER BY position DESC LIMIT 1
    )
    SELECT {COLUMNS} FROM {{schema}}.events
    WHERE position > %(after)s AND position <= (SELECT until FROM stretch)
        AND (slot %% %(of)s = ANY (%(groups)s) OR position = (SELECT until FROM stretch))
    ORDER BY position
"""
"""Up to evsync's own events, which are few: `+ 0` keeps the server from looking for the first of them by position."""
COUNT_OTHERS = """
    SELECT count(*) FROM {schema}.events
    WHERE position > %(after)s AND position < %(end)s AND NOT slot %% %(of)s = ANY (%(groups)s)
"""

# ---- of a stream, by whether a slot has moved: over imports too then

_CHANGE = "position, version, type, time_us, data, meta"
_OF_STREAM = "FROM {schema}.%s WHERE stream = %%(stream)s AND version > %%(after)s AND version <= %%(to)s"
_OWN, _IMPORTED = _OF_STREAM % "events", _OF_STREAM % "imports"
_END = "ORDER BY version LIMIT %(limit)s"


def _over_imports(columns: str) -> str:
    return f"SELECT * FROM (SELECT {columns} {_OWN} UNION ALL SELECT {columns} {_IMPORTED}) e {_END}"


def _with_moves(read: str) -> str:
    # A row of a version below all others says how often slots had moved when the rest was read. Put in order by whoever
    # reads: the database would sort again what is sorted but for that row.
    return (
        "SELECT moves AS position, -1::bigint AS version, ''::text AS type, 0::bigint AS time_us, ''::bytea AS data, "
        f"NULL::text AS meta FROM {{schema}}.log UNION ALL SELECT * FROM ({read}) e"
    )


READ_STREAM = {False: f"SELECT {COLUMNS} {_OWN} {_END}", True: _over_imports(COLUMNS)}
READ_CHANGES = {False: f"SELECT {_CHANGE} {_OWN} {_END}", True: _over_imports(_CHANGE)}
READ_OPEN = {moved: _with_moves(read) for moved, read in READ_CHANGES.items()}

# ---- of slots

ARRIVALS = f"SELECT {ARRIVAL_COLUMNS} FROM {{schema}}.arrivals WHERE slot = ANY(%s)"
HISTORY = f"""
    SELECT * FROM (
        (SELECT position AS came, 0::bigint AS number, {COLUMNS} FROM {{schema}}.events
            WHERE position > %(came)s AND slot = ANY(%(slots)s) AND {NOT_OWN} ORDER BY position LIMIT %(limit)s)
        UNION ALL
        (SELECT "at" AS came, number, {COLUMNS} FROM {{schema}}.imports
            WHERE ("at", number) > (%(came)s, %(number)s) AND slot = ANY(%(slots)s)
            ORDER BY "at", number LIMIT %(limit)s)
    ) e ORDER BY came, number LIMIT %(limit)s
"""
LOCK = "LOCK TABLE {schema}.arrivals IN SHARE ROW EXCLUSIVE MODE"
LOG = """
    SELECT incarnation, moves, head, (SELECT coalesce(max(version), 0) FROM {schema}.events WHERE stream = %s)
    FROM {schema}.log
"""
LATER = f"SELECT slot, id FROM {{schema}}.events WHERE position > %s AND slot = ANY(%s) AND {NOT_OWN} ORDER BY position"
FENCE = "SELECT version, incarnation, data FROM {schema}.events WHERE stream = %s ORDER BY version DESC LIMIT 1"
INSERT = f"INSERT INTO {{schema}}.events ({COLUMNS}) VALUES ({', '.join(['%b'] * len(StoredEvent._fields))})"
IMPORT = f'COPY {{schema}}.imports ("at", {COLUMNS}) FROM STDIN (FORMAT binary)'
PUT_ARRIVALS = """
    INSERT INTO {schema}.arrivals SELECT * FROM unnest(%s::int[], %s::bigint[], %s::bigint[])
    ON CONFLICT (slot) DO UPDATE SET (length, digest) = (excluded.length, excluded.digest)
"""
PUT_STATES = """
    INSERT INTO {schema}.slots
    SELECT * FROM unnest(%s::int[], %s::bigint[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[])
    ON CONFLICT (slot) DO UPDATE SET (epoch, "to", position, length, digest) =
        (excluded.epoch, excluded."to", excluded.position, excluded.length, excluded.digest)
"""
MOVED = "UPDATE {schema}.log SET (head, moves) = (%s, moves + %s)"
