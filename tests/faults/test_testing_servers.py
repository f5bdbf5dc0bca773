"""Servers of tests end with the process that started them, however that ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.command_line import until

START = """
import sys, tempfile
from pathlib import Path
from evsync.testing.postgres import PostgresServer
server = PostgresServer(Path(sys.argv[1]))
print(server.pid, server.url, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """Not below pytest's own, which the server's user cannot enter where this is root."""
    with tempfile.TemporaryDirectory(prefix="evsync-postgres-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_postgres_ends_with_the_process_that_started_it(number: int, directory: Path) -> None:
    """Also while a client of another process is connected."""
    process = subprocess.Popen(
        [sys.executable, "-c", START, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pid, url = process.stdout.readline().split()
    try:
        with contextlib.closing(psycopg.connect(url, autocommit=True)) as client:
            client.execute("SELECT 1")
            process.send_signal(number)
            process.wait(30)
            until(lambda: not Path(f"/proc/{pid}").exists(), "PostgreSQL is still there")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGQUIT)
        process.kill()
        process.communicate()
