"""Who stops in the middle of a transaction of PostgreSQL does not keep what it has locked."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from evsync import liveness
from evsync.projections import Event, ProjectionRunner, Tables, ViewsDatabase
from evsync.projections.checking.scratch import scratch
from evsync.projections.models import sql_model as module
from evsync.stores.postgres.store import PostgresStore
from evsync.testing.contracts.samples import one
from tests.integration.test_projection_runner import at, running
from tests.projection_logs import Ledger, ListSource, Paid, bank_events, fold_bank
from tests.projection_processes import Workers, until

SHOW = (
    "SELECT current_setting('idle_in_transaction_session_timeout'), current_setting('tcp_keepalives_idle'), "
    "current_setting('tcp_keepalives_interval'), current_setting('tcp_keepalives_count'), "
    "current_setting('tcp_user_timeout')"
)


def test_a_worker_that_stops_in_the_middle_of_a_transaction_is_taken_over_from(
    postgres_url: str, tmp_path: Path
) -> None:
    """Its groups are locked by a session that is alive; the server ends that, and when it wakes it finds its place."""
    workers = Workers(f"{postgres_url}&schema=stopped", tmp_path, 4_000)
    position = next(e.position for e in workers.log if e.position > 500 and e.type.endswith("Paid"))
    try:
        sleeper = workers.start("--stop-at", str(position), "--idle-s", "1")
        until(lambda: Path(f"/proc/{sleeper.pid}/stat").read_text().split()[2] == "T")
        heir = workers.start("--idle-s", "1", pace_ms=2)
        until(lambda: workers.shares() == {str(heir.pid): 16})
        until(lambda: workers.position() > position)
        os.kill(sleeper.pid, signal.SIGCONT)
        until(lambda: sorted(workers.shares().values()) == [8, 8])
        until(lambda: workers.position() == workers.events)
        assert workers.assert_is_a_fold_over_the_log() == workers.events
        assert sleeper.poll() is heir.poll() is None
    finally:
        workers.end()


@pytest.mark.anyio
async def test_a_worker_that_stops_between_the_statements_of_a_pipeline_is_taken_over_from(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session is active to the server, whose time limit does not hold: whoever waits for the groups ends it."""
    monkeypatch.setattr(liveness, "IDLE_S", 1)
    url = f"{postgres_url}&schema=pipeline"
    views, source, ledger = ViewsDatabase(url), ListSource("bank", bank_events(40, 1)), Ledger()
    async with running(runner := ProjectionRunner(ledger.projection, views, [source], lease_s=0.4)):
        await runner.wait(at(40), 15)
    silent = psycopg.connect(postgres_url, application_name=liveness.VIEWS, autocommit=True)
    silent.pgconn.enter_pipeline_mode()
    for statement in (b"BEGIN", b"SELECT * FROM pipeline.evsync_leases FOR UPDATE"):
        silent.pgconn.send_query_params(statement, None)
    silent.pgconn.send_flush_request()
    silent.pgconn.flush()
    held = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND wait_event = 'ClientRead'"
    until(lambda: _one(postgres_url, held) == 1)
    async with running(heir := ProjectionRunner(ledger.projection, views, [source], lease_s=0.4)):
        source.add("bank.Account.Paid", "late", amount=1)
        await heir.wait(at(41), 15)
    assert _one(postgres_url, held) == 0
    silent.close()
    await views.close()


def _one(url: str, select: str) -> Any:
    with psycopg.connect(url) as c:
        return c.execute(select).fetchone()[0]  # type: ignore[index, arg-type]


@pytest.mark.anyio
async def test_handlers_that_are_slow_in_a_transaction_are_not_taken_for_dead(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They show that they are at work, in the next attempt at the latest."""
    monkeypatch.setattr(liveness, "IDLE_S", 1)
    monkeypatch.setattr(module, "IDLE_S", 1)
    views = ViewsDatabase(f"{postgres_url}&schema=slow")
    source, ledger = ListSource("bank", bank_events(40, 1)), Ledger()

    def slow(e: Event[Paid], db: Tables) -> None:
        time.sleep(0.04)
        ledger.paid(e, db)

    ledger.projection.handlers._of[Paid] = slow
    async with running(runner := ProjectionRunner(ledger.projection, views, [source], lease_s=1.0)):
        await runner.wait(at(40), 15)
        for n in range(40):
            source.add("bank.Account.Paid", f"late-{n}", amount=1)
        await runner.wait(at(80), 15)
    assert await views.read(ledger.rows) == fold_bank(source.events)
    await views.close()


@pytest.mark.anyio
async def test_a_session_that_is_silent_while_it_holds_a_log_is_ended(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other processes can append again; a store that was silent for long is as good as new."""
    monkeypatch.setattr(liveness, "IDLE_S", 1)
    url = f"{postgres_url}&schema=silent"
    silent = await PostgresStore.open(url, service="users")
    other = await PostgresStore.open(url, service="users")
    connection = await silent._database.connect()
    await connection.execute("BEGIN")
    await connection.execute("SELECT head FROM silent.log FOR UPDATE")
    async with asyncio.timeout(10):
        assert await other.append([one("u1")]) == [1]
    with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
        await connection.execute("SELECT 1")
    await connection.close()
    async with asyncio.timeout(10):
        assert await silent.append([one("u2")]) == [2]
    await asyncio.gather(silent.close(), other.close())


@pytest.mark.anyio
async def test_both_ends_of_every_connection_look_after_each_other(postgres_url: str) -> None:
    """Of the store and of the read models, for writing and reading; but what the URL says goes before."""
    store = await PostgresStore.open(f"{postgres_url}&schema=alive", service="users")
    views = ViewsDatabase(f"{postgres_url}&schema=alive_views")
    expected = ("30s", "10", "5", "3", "25000")
    of_driver = {name: str(value) for name, value in liveness.CLIENT.items()}

    async def of_pool(c: psycopg.AsyncConnection[object]) -> object:
        assert of_driver.items() <= c.info.get_parameters().items()
        return await (await c.execute(SHOW)).fetchone()

    def of_views(c: sa.Connection) -> object:
        driver = c.connection.dbapi_connection
        assert of_driver.items() <= driver.info.get_parameters().items()  # type: ignore[union-attr]
        return tuple(c.execute(sa.text(SHOW)).one())

    async with store._database.connection() as connection:
        assert await of_pool(connection) == expected
    assert await store._database.patiently(of_pool) == expected
    assert await views.write(of_views) == await views.read(of_views) == expected
    with scratch(views.place, sa.MetaData()) as c:  # where history is gone through, however slowly
        assert c.execute(sa.text(SHOW)).one()[0] == "0"
        assert c.execute(sa.text("SHOW application_name")).scalar_one() != liveness.VIEWS
    await asyncio.gather(store.close(), views.close())

    views = ViewsDatabase(
        f"{postgres_url}&schema=alive_views&keepalives_idle=77&options=-c%20idle_in_transaction_session_timeout%3D7s"
    )

    def of_url(c: sa.Connection) -> object:
        driver = c.connection.dbapi_connection
        return driver.info.get_parameters()["keepalives_idle"], c.execute(sa.text(SHOW)).one()[0]  # type: ignore[union-attr]

    assert await views.read(of_url) == ("77", "7s")
    await views.close()
