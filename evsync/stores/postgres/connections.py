"""Connections to the database of a PostgreSQL store: where it is, and how long it is waited for."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from evsync.errors import ConfigurationError, StoreUnavailable
from evsync.liveness import CLIENT, server_settings, those_again
from evsync.stores.postgres.errors import translated, words

T = TypeVar("T")

READERS = 4
CONNECT_TIMEOUT_S = 5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0


def settings_of(url: str, service: str, shard: str) -> tuple[dict[str, Any], str]:
    """What the driver is given for a URL, and the store's schema. Raises ConfigurationError, without the password."""
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        schema = options.pop("schema", service if shard == "main" else f"{service}_{shard}")
        _ = parts.port  # raises for one that is no number
        settings = conninfo_to_dict(urlunsplit(parts._replace(query=urlencode(options))))
    except (psycopg.ProgrammingError, ValueError) as e:
        raise ConfigurationError(
            "the URL of a PostgreSQL store looks like postgresql://user:password@host:5432/database?schema=users, with "
            f"the driver's own options (sslmode=…) beside schema; this one is not understood: {words(e)}"
        ) from e
    if (
        not 0 < len(schema.encode()) <= 63
        or "\0" in schema
        or "%" in schema
        or "$$" in schema
        or schema.startswith("pg_")
    ):
        raise ConfigurationError(
            f"schema={schema!r} cannot be the name of a PostgreSQL schema: 1 to 63 bytes, not pg_…, no % and no $$"
        )
    return settings, schema


class Connections:
    """Makes connections, waits with growing pauses while there is no database, and keeps a few for reading."""

    def __init__(self, settings: dict[str, Any], schema: str, patience_s: float) -> None:
        port = settings.get("port", 5432)
        self.where = f"{settings.get('host', 'localhost')}:{port}/{settings.get('dbname', '')}, schema {schema!r}"
        """For errors and logs: no user, no password."""
        names = {"connect_timeout": CONNECT_TIMEOUT_S, "application_name": f"evsync {schema}"}
        self._settings = {**CLIENT, **names, **settings}
        self._patience_s = patience_s
        self._readers: AsyncConnectionPool[AsyncConnection[Any]] | None = None
        self._opening = asyncio.Lock()
        self._settled: set[str] | None = None
        """The settings of a session that nobody else has chosen; None before the first."""

    async def connect(self) -> AsyncConnection[Any]:
        """A new connection in autocommit mode. Raises StoreUnavailable when patience has run out."""

        async def attempt() -> AsyncConnection[Any]:
            connection = await AsyncConnection.connect(autocommit=True, **self._settings)
            try:
                await self._configure(connection)
            except BaseException:
                await connection.close()
                raise
            return connection

        return await self._again(attempt)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection[Any]]:
        """A connection of one's own for the length of a block."""
        connection = await self.connect()
        try:
            yield connection
        finally:
            await connection.close()

    async def patiently(
        self, work: Callable[[AsyncConnection[Any]], Awaitable[T]], *, undone: str = "nothing was stored"
    ) -> T:
        """What `work` returns; tried again on another connection when one breaks. It may be done twice then.

        Raises as `translated`, which tells what `undone` says.
        """

        async def attempt() -> T:
            pool = await self.readers()
            async with pool.connection(timeout=CONNECT_TIMEOUT_S) as connection:
                return await work(connection)

        try:
            return await self._again(attempt)
        except psycopg.Error as e:
            raise translated(self.where, e, undone) from e

    async def readers(self) -> AsyncConnectionPool[AsyncConnection[Any]]:
        """The connections kept for reading; the first one is made beside what else goes on."""
        async with self._opening:
            if self._readers is None:
                self._readers = AsyncConnectionPool(
                    kwargs={"autocommit": True, **self._settings}, configure=self._configure,
                    min_size=1, max_size=READERS, open=False,
                )  # fmt: skip
                await self._readers.open()
            return self._readers

    async def _again(self, attempt: Callable[[], Awaitable[T]]) -> T:
        deadline, pause_s = time.monotonic() + self._patience_s, _FIRST_PAUSE_S
        while True:
            try:
                return await attempt()
            except (psycopg.OperationalError, PoolTimeout) as e:
                if time.monotonic() + pause_s > deadline:
                    raise StoreUnavailable(
                        f"{self.where} does not answer: {words(e)}. Nothing was stored; try again when it is back."
                    ) from e
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _configure(self, connection: AsyncConnection[Any]) -> None:
        if self._settled is None:
            cursor = await connection.execute(server_settings())
            self._settled = {name for name, _ in await cursor.fetchall()}
        elif self._settled:
            await connection.execute(those_again(self._settled))

    async def close(self) -> None:
        """Close the connections kept for reading."""
        if self._readers is not None:
            await self._readers.close()
