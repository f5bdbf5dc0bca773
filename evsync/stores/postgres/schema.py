"""The PostgreSQL schema of a store: its tables, the function that appends, and whose store it is.

`append_commits` stores a whole group of commits in one statement, and so in one round trip: it locks the counter row,
looks up versions, keeps conflicting commits out and writes the rest. The lock is held while the function runs and its
transaction is brought to the disk, never over the network. It is what makes positions contiguous and visible in their
own order: whoever draws a position has committed before the next one can be drawn.
"""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection, sql

from evsync.control import RESTORES_STREAM
from evsync.errors import StoreUnavailable, WrongStore
from evsync.records import LogIdentity, StoredEvent
from evsync.restores import with_ancestry
from evsync.stores.postgres.errors import OTHER_STORE
from evsync.stores.postgres.statements import COLUMNS, READS, composed

SCHEMA = 1
"""Counts changes of the tables and the function. A greater number in the database was written by a newer evsync."""

MAKING = 0x6576_7379_6E63
"""Advisory lock ('evsync') under which stores are made, so that processes that start at once wait for one another."""

_EVENT = """
    stream      text COLLATE "C" NOT NULL,
    version     bigint NOT NULL,
    slot        integer NOT NULL,
    type        text NOT NULL,
    time_us     bigint NOT NULL,
    id          bytea NOT NULL,
    remaining   integer NOT NULL,
    incarnation text NOT NULL,
    data        bytea NOT NULL,
    meta        text
"""
_TABLES = """
CREATE TABLE {schema}.log (
    single      boolean PRIMARY KEY CHECK (single),
    schema      integer NOT NULL,
    service     text NOT NULL,
    shard       text NOT NULL,
    incarnation text NOT NULL,
    slots       integer NOT NULL,
    head        bigint NOT NULL,  -- position of the last event: the counter that every append locks
    moves       bigint NOT NULL,  -- how often table slots was changed; 0: all are open here, in epoch 1
    trimmed     bigint NOT NULL  -- position of the last event that was trimmed from the front: 0 for none
) WITH (fillfactor = 10);  -- the one row is rewritten by every append; on a page with room that touches no index

CREATE TABLE {schema}.events (
    position    bigint PRIMARY KEY,
    {event},
    UNIQUE (stream, version)
);

CREATE TABLE {schema}.checkpoints (
    follower    text NOT NULL,
    log         text NOT NULL,
    "group"     integer NOT NULL,
    incarnation text NOT NULL,
    position    bigint NOT NULL,
    count       bigint NOT NULL,
    digest      bigint NOT NULL,  -- modulo 2**64, as the signed integer with the same bits
    PRIMARY KEY (follower, log, "group")
);

CREATE TABLE {schema}.snapshots (
    stream      text COLLATE "C" PRIMARY KEY,
    version     bigint NOT NULL,
    type        text NOT NULL,
    shape       text NOT NULL,
    latest_us   bigint NOT NULL,
    commands    bytea NOT NULL,
    state       bytea NOT NULL
);

CREATE TABLE {schema}.slots (
    slot        integer PRIMARY KEY,
    epoch       bigint NOT NULL,
    "to"        text,  -- shard that it was closed for; NULL: it is open here
    position    bigint NOT NULL,
    length      bigint NOT NULL,
    digest      bigint NOT NULL
);

CREATE TABLE {schema}.arrivals (  -- whoever changes slots, arrivals or imports locks this table first, then row log
    slot        integer PRIMARY KEY,  -- one that is not open here
    length      bigint NOT NULL,
    digest      bigint NOT NULL
);

CREATE TABLE {schema}.imports (
    number      bigint GENERATED ALWAYS AS IDENTITY,
    "at"        bigint NOT NULL,  -- head of this log when it was imported
    position    bigint NOT NULL,  -- in the log that it was appended to
    {event},
    PRIMARY KEY ("at", number),
    UNIQUE (stream, version)
);
""".replace("{event}", _EVENT)

_WHOSE = "SELECT schema, service, shard, incarnation, slots FROM {schema}.log"
_LATEST = f"SELECT {COLUMNS} FROM {{schema}}.events WHERE stream = %s ORDER BY version DESC LIMIT 1"

_CONFLICTS = """SELECT array_agg(c.commit), array_agg(c.item), array_agg(c.actual) INTO commits, items, actuals FROM (
            SELECT a.commit, a.item::int, v.actual
            FROM unnest(a_commit, a_stream, a_expected) WITH ORDINALITY AS a (commit, stream, expected, item)
            CROSS JOIN LATERAL (SELECT {version} AS actual FROM {schema}.events e WHERE e.stream = a.stream) v
            WHERE v.actual <> a.expected
            UNION ALL
            SELECT k.commit, -k.item::int, coalesce(c.position, 0)
            FROM unnest(k_commit, k_follower, k_log, k_group, k_after)
                WITH ORDINALITY AS k (commit, follower, log, "group", after, item)
            LEFT JOIN {schema}.checkpoints c ON (c.follower, c.log, c."group") = (k.follower, k.log, k."group")
            WHERE coalesce(c.position, 0) <> k.after
        ) c;"""
_OWN_VERSION = "coalesce(max(e.version), 0)"
_VERSION = """greatest(
                {own}, (SELECT max(i.version) FROM {schema}.imports i WHERE i.stream = a.stream)
            )""".replace("{own}", _OWN_VERSION)

# A stream, and a checkpoint, belongs to one commit of a call at most (the store sees to that), so each can be judged by
# the tables alone. Every statement of the function has a snapshot of its own: those after the lock see what its last
# holder committed. Plans are kept for the life of a connection, also those made while the tables were empty; without
# sequential scans these are the right ones too. Tables of slots are looked at only where a slot has moved.
_APPEND = """
CREATE OR REPLACE FUNCTION {schema}.append_commits(
    a_commit int[], a_stream text[], a_expected bigint[],
    g_item int[], g_stream text[], g_version bigint[],
    k_commit int[], k_follower text[], k_log text[], k_group int[], k_incarnation text[], k_position bigint[],
    k_count bigint[], k_digest bigint[], k_after bigint[],
    e_commit int[], e_stream text[], e_version bigint[], e_slot int[], e_type text[], e_time_us bigint[], e_id bytea[],
    e_remaining int[], e_data bytea[], e_meta text[],
    incarnation text, channel text
) RETURNS TABLE (before bigint, commits int[], items int[], actuals bigint[])
LANGUAGE plpgsql SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    written bigint;
    moved boolean;
    replaced boolean;
BEGIN
    SELECT log.head, log.incarnation <> append_commits.incarnation, log.moves > 0
    INTO before, replaced, moved FROM {schema}.log FOR UPDATE;
    IF replaced THEN
        RAISE EXCEPTION 'another store has this name now' USING ERRCODE = '{other_store}';
    END IF;
    IF moved THEN
        {conflicts_over_imports}
    ELSE
        {conflicts}
    END IF;
    IF cardinality(g_item) > 0 THEN
        -- Places that appends give themselves (g_item numbers the append, from 1): these must be free.
        SELECT commits || array_agg(a_commit[t.item]), items || array_agg(t.item), actuals || array_agg(t.actual)
        INTO commits, items, actuals
        FROM (
            SELECT g.item, greatest(
                (SELECT max(e.version) FROM {schema}.events e WHERE e.stream = g.stream),
                (SELECT max(i.version) FROM {schema}.imports i WHERE i.stream = g.stream)
            ) AS actual
            FROM (
                SELECT DISTINCT n.item, n.stream
                FROM unnest(g_item, g_stream, g_version) AS n (item, stream, version)
                JOIN (
                    SELECT stream, version FROM {schema}.events UNION ALL SELECT stream, version FROM {schema}.imports
                ) e ON e.stream = n.stream AND e.version = n.version
            ) g
        ) t;
    END IF;
    IF moved THEN
        -- A slot must be open here. One that is not is said as version -1 - slot, which no stream has.
        SELECT commits || array_agg(t.commit), items || array_agg(t.item), actuals || array_agg(-1::bigint - t.slot)
        INTO commits, items, actuals
        FROM (
            SELECT DISTINCT a.commit, a.item::int AS item, e.slot
            FROM unnest(a_commit, a_stream) WITH ORDINALITY AS a (commit, stream, item)
            JOIN unnest(e_commit, e_stream, e_slot) AS e (commit, stream, slot)
                ON e.commit = a.commit AND e.stream = a.stream
            LEFT JOIN {schema}.slots s ON s.slot = e.slot
            WHERE s.slot IS NULL OR s."to" IS NOT NULL
        ) t;
    END IF;
    INSERT INTO {schema}.events
    SELECT before + row_number() OVER (ORDER BY e.item), e.stream, e.version, e.slot, e.type, e.time_us, e.id,
        e.remaining, incarnation, e.data, e.meta
    FROM unnest(e_commit, e_stream, e_version, e_slot, e_type, e_time_us, e_id, e_remaining, e_data, e_meta)
        WITH ORDINALITY AS e (commit, stream, version, slot, type, time_us, id, remaining, data, meta, item)
    WHERE commits IS NULL OR e.commit <> ALL (commits);
    GET DIAGNOSTICS written = ROW_COUNT;
    IF cardinality(k_commit) > 0 THEN
        INSERT INTO {schema}.checkpoints AS c
        SELECT k.follower, k.log, k."group", k.incarnation, k.position, k.count, k.digest
        FROM unnest(k_commit, k_follower, k_log, k_group, k_incarnation, k_position, k_count, k_digest)
            AS k (commit, follower, log, "group", incarnation, position, count, digest)
        WHERE commits IS NULL OR k.commit <> ALL (commits)
        ON CONFLICT (follower, log, "group") DO UPDATE SET (incarnation, position, count, digest) =
            (excluded.incarnation, excluded.position, excluded.count, excluded.digest);
    END IF;
    IF written > 0 THEN
        UPDATE {schema}.log SET head = before + written;
        PERFORM pg_notify(channel, (before + written)::text);
    END IF;
    RETURN NEXT;
END $$;
"""


async def prepare(
    connection: AsyncConnection[Any], schema: str, new: LogIdentity, *, create: bool, owns_slots: bool
) -> tuple[LogIdentity, int]:
    """The identity of the store in this schema, which is made as `new` if `create` allows it; and its `moves`.

    Safe when many processes do it at once. A role that may not make schemas can use one that was made for it. Raises
    WrongStore, StoreUnavailable.
    """
    name = sql.Identifier(schema)
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", (MAKING,))
        if await missing(connection, "to_regclass", f"{name.as_string()}.log"):
            if not create:
                raise StoreUnavailable(
                    f"there is no store in schema {schema!r} (yet): its service makes it, or `evsync store init`"
                )
            if await missing(connection, "to_regnamespace", name.as_string()):
                await connection.execute(composed("CREATE SCHEMA {schema}", schema))
            await make_tables(connection, schema, new, owns_slots=owns_slots)
        found = await connection.execute(composed(_WHOSE, schema))
        identity = _identity(schema, await found.fetchone(), new)
        found = await connection.execute(composed(READS.moves, schema))
        ((moves,),) = await found.fetchall()
        restores = await connection.execute(composed(_LATEST, schema), (RESTORES_STREAM,))
        latest = [StoredEvent(*row) for row in await restores.fetchall()]
    return with_ancestry(identity, latest), moves


async def make_tables(
    connection: AsyncConnection[Any], schema: str, identity: LogIdentity, *, owns_slots: bool = True
) -> None:
    """Make the tables and the function of an empty log."""
    await connection.execute(composed(_TABLES, schema))
    await define(connection, schema)
    await connection.execute(
        composed("INSERT INTO {schema}.log VALUES (true, %s, %s, %s, %s, %s, 0, %s, 0)", schema),
        (SCHEMA, identity.service, identity.shard, identity.incarnation, identity.slots, 0 if owns_slots else 1),
    )


async def define(connection: AsyncConnection[Any], schema: str) -> None:
    """Make the function that appends. It names its schema, so it must be made again for tables that are renamed."""
    own, over_imports = _CONFLICTS.replace("{version}", _OWN_VERSION), _CONFLICTS.replace("{version}", _VERSION)
    text = (
        _APPEND.replace("{other_store}", OTHER_STORE)
        .replace("{conflicts}", own)
        .replace("{conflicts_over_imports}", over_imports)
    )
    await connection.execute(composed(text, schema))


async def missing(connection: AsyncConnection[Any], lookup: str, name: str) -> bool:
    """Whether there is no such table (`to_regclass`) or schema (`to_regnamespace`); the name is quoted."""
    found = await (await connection.execute(f"SELECT {lookup}(%s) IS NULL", (name,))).fetchone()
    return bool(found and found[0])


def _identity(schema: str, row: tuple[Any, ...] | None, expected: LogIdentity) -> LogIdentity:
    if row is None:
        raise WrongStore(f"table log of schema {schema!r} is empty: it was not written by evsync, or is damaged")
    version, *found = row
    if version > SCHEMA:
        raise WrongStore(
            f"the store in schema {schema!r} has version {version} of the tables, and this evsync knows {SCHEMA}: it "
            "was opened by a newer one. Nothing was touched; install that version, or a later one."
        )
    if found[:2] != [expected.service, expected.shard]:
        raise WrongStore(
            f"schema {schema!r} holds the store of service {found[0]!r}, shard {found[1]!r}, not of "
            f"{expected.service!r}, shard {expected.shard!r}. Nothing was touched; give the URL of this service's own "
            "store, or another ?schema=."
        )
    return LogIdentity(*found)
