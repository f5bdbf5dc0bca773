"""Servers of tests end with the process that started them, however that ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_postgres_ends_with_the_process_that_started_it(
    tmp_path_factory: pytest.TempPathFactory, number: int
) -> None:
    """Also while a client of another process is connected."""
    directory = tmp_path_factory.mktemp("server")
    for parent in (directory, *directory.parents[:2]):
        parent.chmod(0o755)  # the server runs as another user where this is root
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
