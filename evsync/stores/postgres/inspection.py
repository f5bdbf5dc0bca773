"""What a PostgreSQL store holds, for those who look at it from outside."""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection, sql

from evsync.inspection import StoreFacts
from evsync.stores.checkpoint_rows import COLUMNS, from_row

_COUNTS = """
    SELECT schema, head, (SELECT count(*) FROM {schema}.events), (SELECT count(DISTINCT stream) FROM {schema}.events),
        (SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = %s AND c.relkind = 'r'),
        (SELECT count(*) FROM {schema}.snapshots)
    FROM {schema}.log
"""
_CHECKPOINTS = f"SELECT follower, {COLUMNS} FROM {{schema}}.checkpoints ORDER BY 1, 2, 3"


async def facts(where: str, schema: str, c: AsyncConnection[Any]) -> StoreFacts:
    """How much it holds."""
    name = sql.Identifier(schema)
    async with c.cursor() as cursor:
        await cursor.execute(sql.SQL(_COUNTS).format(schema=name), (schema,))
        ((version, head, events, streams, size_bytes, snapshots),) = await cursor.fetchall()
        await cursor.execute(sql.SQL(_CHECKPOINTS).format(schema=name))
        kept = await cursor.fetchall()
    return StoreFacts(
        kind="PostgreSQL",
        where=where,
        schema=version,
        head=head,
        events=events,
        streams=streams,
        size_bytes=size_bytes,
        snapshots=snapshots,
        checkpoints=[(follower, from_row(*row)) for follower, *row in kept],
    )
