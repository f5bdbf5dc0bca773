"""Read models do not wait for the disk: a PostgreSQL that is killed has lost their last commits when it is back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from evsync.projections import ProjectionRunner, ViewsDatabase
from evsync.testing.postgres import PostgresServer
from tests.integration.test_projection_runner import at, running
from tests.projection_logs import Ledger, ListSource, bank_events, fold_bank
from tests.relaying import eventually

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One that brings nothing to the disk by itself for as long as it can be told to wait."""
    with (
        tempfile.TemporaryDirectory(prefix="evsync-pg-", ignore_cleanup_errors=True) as directory,
        PostgresServer(Path(directory)) as server,
    ):
        for setting in ("wal_writer_delay = '10s'", "bgwriter_delay = '10s'", "autovacuum = off"):
            with psycopg.connect(server.url, autocommit=True) as c:
                c.execute(f"ALTER SYSTEM SET {setting}")
        server.stop()
        server.restart()
        yield server


async def _crash(server: PostgresServer) -> None:
    server.kill()
    server.restart()


@pytest.mark.parametrize("lease_s", [0.4, 30.0])
async def test_what_a_killed_server_has_lost_is_applied_again_also_by_a_worker_that_did_not_notice(
    server: PostgresServer, lease_s: float
) -> None:
    """Whether or not there are new events, and although nothing was being written when the server was killed.

    With the long lease the worker writes nothing until the next event. Then the database has other checkpoints than
    those that it goes on from, and the worker begins from what is stored.
    """
    schema = f"lost{lease_s:.0f}"
    views = ViewsDatabase(f"{server.url}&schema={schema}")
    source, ledger = ListSource("bank", bank_events(40, 1)), Ledger()
    async with running(runner := ProjectionRunner(ledger.projection, views, [source], lease_s=lease_s)):
        await runner.wait(at(40), 15)
        with psycopg.connect(server.url, autocommit=True) as c:
            c.execute("CHECKPOINT")  # so far it is on the disk
        for n in range(40):
            source.add("bank.Account.Paid", f"late-{n}", amount=1)
        await runner.wait(at(80), 15)
        await _crash(server)
        if lease_s > 1:
            assert _position(server, schema) == 40, "the server has lost nothing, and this test shows nothing"
            source.add("bank.Account.Paid", "later still", amount=1)
        last = len(source.events)
        await eventually(lambda: _position(server, schema) == last, "the end of the log", timeout_s=30)
        assert await views.read(ledger.rows) == fold_bank(source.events)
    await views.close()


def _position(server: PostgresServer, schema: str) -> int:
    with psycopg.connect(server.url) as c:
        found = c.execute(f"SELECT min(position) FROM {schema}.evsync_checkpoints").fetchone()
    return int(found[0]) if found and found[0] is not None else 0
