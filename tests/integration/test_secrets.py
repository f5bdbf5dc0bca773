"""Passwords are used, and shown nowhere: settings of NATS and PostgreSQL, and everything that is said about them."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from evsync import EvsyncError, Service
from evsync.archive.targets import open_target
from evsync.cli.terminal import print_json
from evsync.errors import ConfigurationError, StoreUnavailable
from evsync.jetstream.server import EmbeddedServer
from evsync.projections.failures import DatabaseAway
from evsync.projections.models.database import ViewsDatabase
from evsync.stores.postgres.store import PostgresStore
from evsync.testing.postgres import PostgresServer
from tests.cli_shop import items, stock, view
from tests.command_line import Shop, item
from tests.relaying import eventually

pytestmark = pytest.mark.anyio

SECRET = "geheim/7%ü"
ENCODED = "geheim%2F7%25%C3%BC"
PARTS = ("geheim", "%2F7%25")


def assert_untold(text: str) -> None:
    """Nothing of the password is in it, in neither form."""
    for part in PARTS:
        assert part not in text, text[max(text.index(part) - 300, 0) :][:600]


@pytest.fixture
def locked(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a PostgreSQL that asks the role for its password, up to the options."""
    rules = postgres_server._data / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text(f"host all locked 127.0.0.1/32 scram-sha-256\n{before}")
    with psycopg.connect(postgres_server.url, autocommit=True) as admin:
        admin.execute(psycopg.sql.SQL("CREATE ROLE locked LOGIN PASSWORD {}").format(SECRET))
        admin.execute("GRANT CREATE ON DATABASE postgres TO locked")
        admin.execute("SELECT pg_reload_conf()")
        yield f"postgresql://locked:{ENCODED}@127.0.0.1:{postgres_server.port}/postgres?sslmode=prefer"
        rules.write_text(before)
        admin.execute("DROP OWNED BY locked CASCADE")
        admin.execute("DROP ROLE locked")
        admin.execute("SELECT pg_reload_conf()")


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    """The URL of a NATS server that asks for a password."""
    config = f'authorization {{ users: [ {{ user: ada, password: "{SECRET}" }} ] }}'
    with EmbeddedServer.start(tmp_path / "nats", extra_config=config) as server:
        yield server.url.replace("nats://", f"nats://ada:{ENCODED}@")


def everything_about(service: Service) -> str:
    """The repr of whatever the open service is made of."""
    runtime = service.runtime
    parts: list[Any] = [service, runtime, *runtime.stores.values(), runtime.connection, runtime.views, runtime.home]
    parts += [runtime.relay, *runtime.projections.values(), *runtime.reactions.values(), *runtime.sources.values()]
    parts += [vars(part) for part in parts if hasattr(part, "__dict__") and part is not runtime and part is not service]
    return "\n".join(map(repr, parts))


async def test_a_service_with_passwords_everywhere_tells_none(
    locked: str, guarded: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """It works with store and read models in PostgreSQL and a broker; log, status and reprs are clean."""
    caplog.set_level(logging.DEBUG)
    settings: Any = {"store": f"{locked}&schema=secret_store", "views": f"{locked}&schema=secret_views"}
    async with stock.open(**settings, nats=guarded, run=["relay", "items"]) as service:
        position = await service.save(item("a", 5))
        assert (await service.query(sa.select(items.c.id), after=position)).scalars().all() == ["a"]
        relay = service.runtime.relay
        assert relay is not None
        await eventually(lambda: relay.confirmed >= position.number, "the relay at the head")
        status = await service.status()
        print_json(status)
        assert_untold(f"{status!r} {capsys.readouterr().out} {everything_about(service)}")
    assert_untold(caplog.text)
    assert "connected to NATS" in caplog.text


def test_the_command_line_tells_none(locked: str, guarded: str, tmp_path: Path) -> None:
    """Neither for people nor as JSON nor with --debug, when all is well and when nothing is."""
    shop = Shop(tmp_path, guarded)
    where = {"EVSYNC_STOCK_STORE": f"{locked}&schema=secret_cli", "EVSYNC_STOCK_VIEWS": f"{locked}&schema=secret_cli_v"}
    made = shop.evsync("store", "init", "tests.cli_shop:stock", **where)
    wrong = {"EVSYNC_NATS": guarded.replace(ENCODED, f"{ENCODED}x")}
    told = shop.evsync("status", "tests.cli_shop:stock", "--json", "--debug", **where, **wrong)
    assert "Authorization Violation" in told.stderr
    assert_untold(made.stdout + made.stderr + told.stdout + told.stderr)


async def test_a_wrong_password_is_not_told(locked: str, caplog: pytest.LogCaptureFixture) -> None:
    """The database says whose it is."""
    with pytest.raises(StoreUnavailable, match="password authentication failed") as raised:
        await PostgresStore.open(locked.replace(ENCODED, f"{ENCODED}x"), service="stock", patience_s=0.1)
    assert_untold("".join(traceback.format_exception(raised.value)) + caplog.text)


LOGIN = f"ada:{ENCODED}@127.0.0.1:1"


@pytest.mark.parametrize(
    "settings",
    [
        {"store": f"postgresql://{LOGIN}/db?connect_timeout=1"},
        {"store": f"postgresql://{LOGIN}/db?nonsense=1"},
        {"store": f"postgresql://127.0.0.1:1/db?password={ENCODED}&nonsense=1"},
        {"store": f"postgresql://ada:{ENCODED}@127.0.0.1:port/db"},
        {"store": f"mysql://{LOGIN}/db"},
        {"store": f"nats://{LOGIN}/?stream=a.b"},
        {"store": f"nats://{LOGIN}/?nonsense=1"},
        {"store": f"nats://{LOGIN}/path"},
        {"store": '{"a": "postgresql://' + LOGIN},
        {"store": {"a": f"postgresql://{LOGIN}/db", "b": f"postgresql://{LOGIN}/db"}},
        {"store": [f"postgresql://{LOGIN}/db"]},
        {"store": {"a": [f"postgresql://{LOGIN}/db"]}},
        {"store": "memory://", "views": f"mysql://{LOGIN}/db"},
        {"store": "memory://", "views": f"postgresql://{LOGIN}/db?schema=a&schema=b"},
        {"store": "memory://", "views": f"postgresql://127.0.0.1:1/db?password={ENCODED}&schema=a&schema=b"},
        {"store": "memory://", "views": f"postgresql://{LOGIN}/db?connect_timeout=1"},
        {"store": "memory://", "views": [f"postgresql://{LOGIN}/db"]},
        {"store": "memory://", "nats": [f"nats://{LOGIN}"]},
        {"store": "memory://", "nats": f"http://{LOGIN}"},
        {"store": "memory://", "nats": f"nats://{LOGIN},nats://bob:{ENCODED}@127.0.0.1:2"},
        {"store": "memory://", "sources": f"nats://{LOGIN}"},
        {"store": "memory://", "sources": {"stock": f"mysql://{LOGIN}"}},
        {"store": "memory://", "run": f"nats://{LOGIN}"},
    ],
    ids="-".join,
)
async def test_no_error_about_a_setting_tells_a_password(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its text, nor its repr, nor the errors behind it, as a traceback shows them."""
    caplog.set_level(logging.DEBUG)
    patience: dict[str, Any] = PostgresStore.open.__func__.__kwdefaults__  # type: ignore[attr-defined]
    monkeypatch.setitem(patience, "patience_s", 0.1)
    reader = Service("reader", projections=[view])
    with pytest.raises(EvsyncError) as raised:
        async with reader.open(**settings):
            await reader.rebuild()
    assert_untold(f"{raised.value} {raised.value!r} {''.join(traceback.format_exception(raised.value))} {caplog.text}")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("EVSYNC_READER_SOURCES", json.dumps({"stock": [f"nats://{LOGIN}"]})),
        ("EVSYNC_READER_SOURCES", json.dumps([f"nats://{LOGIN}"])),
        ("EVSYNC_READER_SOURCES", '{"stock": "nats://' + LOGIN),
        ("EVSYNC_READER_ARCHIVES", json.dumps({"stock": f"s3://{LOGIN}"})),
        ("EVSYNC_READER_STORE", '{"a": "nats://' + LOGIN),
    ],
)
def test_no_error_about_the_environment_tells_a_password(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The value that cannot be read is not repeated."""
    monkeypatch.setenv("EVSYNC_READER_STORE", "memory://")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as raised:
        Service("reader", projections=[view]).settings()
    assert_untold(f"{raised.value!r} {''.join(traceback.format_exception(raised.value))}")
    assert "JSON" in str(raised.value)  # which is what to do


@pytest.mark.parametrize(
    "url",
    [
        f"https://{LOGIN}/bucket", f"s3://{LOGIN}/bucket", f"s3://bucket?endpoint=http://{LOGIN}",
        f"s3://bucket?secret={ENCODED}", f"ftp://{LOGIN}",
    ],
)  # fmt: skip
def test_no_error_about_a_place_for_backups_tells_a_password(url: str) -> None:
    """A login in the URL is refused: it would be shown with it."""
    with pytest.raises(ConfigurationError) as raised:
        open_target(url)
    assert_untold(f"{raised.value!r} {''.join(traceback.format_exception(raised.value))}")


async def test_how_tls_is_asked_for_reaches_postgresql(postgres_server: PostgresServer) -> None:
    """A server without TLS is refused by sslmode=require, for the store and for the read models."""
    url = postgres_server.url.replace("sslmode=disable", "sslmode=require&connect_timeout=2")
    with pytest.raises(StoreUnavailable, match="does not support SSL"):
        await PostgresStore.open(f"{url}&schema=secret_tls", service="stock", patience_s=0.1)
    views = ViewsDatabase(f"{url}&schema=secret_tls")
    try:
        with pytest.raises(DatabaseAway, match="does not support SSL"):
            await views.write(lambda connection: connection.execute(sa.text("SELECT 1")))
    finally:
        await views.close()
