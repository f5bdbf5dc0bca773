"""Real servers as pytest fixtures. Loaded by pytest wherever evsync is installed, so it imports nothing heavy."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from evsync.jetstream.server import EmbeddedServer
    from evsync.testing.postgres import PostgresServer


@pytest.fixture
def nats_server() -> Iterator[EmbeddedServer]:
    """A nats-server with JetStream of its own for the test, on a free port; nothing of it stays behind.

    `.url` is where to connect; `.kill()` is a crash, `.stop()` a clean end, `.restart()` brings it back on the same
    port and directory.
    """
    from evsync.jetstream.server import EmbeddedServer  # noqa: PLC0415  (tests without a server pay nothing)

    with (
        tempfile.TemporaryDirectory(prefix="evsync-nats-") as directory,
        EmbeddedServer.start(Path(directory)) as server,
    ):
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL of its own for the whole run, on a free port; nothing of it stays behind.

    Tests share it, each with a schema or database of its own. Needs the package pgserver.
    """
    from evsync.testing.postgres import PostgresServer  # noqa: PLC0415  (tests without a database pay nothing)

    with (
        tempfile.TemporaryDirectory(prefix="evsync-postgres-", ignore_cleanup_errors=True) as directory,
        PostgresServer(Path(directory)) as server,
    ):
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    """The URL of that server, with room for options behind it: `postgres_url + "&schema=mine"`."""
    return postgres_server.url
