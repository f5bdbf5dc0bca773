"""`evsync` as a process of its own for every command, begun with everything imported: a server forks it.

Most of the time of a short command is Python's imports, and the tests run hundreds of them. Who wants one connects to
the server and sends its arguments, directory and environment, and the files that it is to have open; then hears the id
of the process, and how it ended. A process that nobody waits for any more is killed. `run` does so from Python;
tests/forked.py is a program that does, for terminals and shells.
"""

from __future__ import annotations

import gc
import json
import os
import pkgutil
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

from tests.forked import ask

ROOT = Path(__file__).parents[1]
MOST = 1 << 20
MEASURED = "COVERAGE_PROCESS_CONFIG"
NEW = [sys.executable, "-m", "evsync.cli"]


def run(
    arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run `evsync` to its end, its input empty, its output kept. Raises TimeoutExpired, as `subprocess.run` does."""
    if _needs_a_new_process(env):
        return subprocess.run(
            [*NEW, *arguments], cwd=cwd, env=env, text=True, stdin=subprocess.DEVNULL, capture_output=True,
            timeout=timeout_s, check=False,
        )  # fmt: skip
    with open(os.devnull, "rb") as nothing, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        files = [nothing.fileno(), out.fileno(), err.fileno()]
        with ask(_server()[0], list(arguments), str(cwd), dict(env), files) as reply:
            reply.settimeout(timeout_s)
            try:
                reply.recv(100)
                code = int(reply.recv(100))
            except TimeoutError:
                raise subprocess.TimeoutExpired(list(arguments), timeout_s) from None
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess(list(arguments), code, out.read().decode(), err.read().decode())


def program(env: Mapping[str, str]) -> list[str]:
    """The words of a program that is `evsync`, whatever arguments stand behind them. For these variables."""
    if _needs_a_new_process(env):
        return NEW
    return [sys.executable, "-IS", str(ROOT / "tests" / "forked.py"), _server()[0]]


def _needs_a_new_process(env: Mapping[str, str]) -> bool:
    """Whether Python itself would begin differently, or is measured: coverage does not follow forks of processes."""
    changed = {name for name, _ in env.items() ^ os.environ.items()} - {"PYTHONPATH", "PYTHONUNBUFFERED"}
    return MEASURED in env or any(name.startswith(("PYTHON", "LC_", "LANG")) for name in changed)


@cache
def _server() -> tuple[str, subprocess.Popen[bytes]]:
    """The address of this process's server, which ends with it, and the server, whose input is to stay open."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("")  # Linux finds a name, and there is no file of it
        listener.listen(100)
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.forks", str(listener.fileno())], pass_fds=[listener.fileno()], cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        return listener.getsockname()[1:].decode(), server


class Server:
    """Forks, until its own input ends."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._wanted = selectors.DefaultSelector()
        self._wanted.register(sys.stdin, selectors.EVENT_READ, self._end)
        self._wanted.register(listener, selectors.EVENT_READ, self._fork)
        self._running: dict[socket.socket, int] = {}

    def serve(self) -> None:
        """Until whoever started it is gone, and then every process with it."""
        while True:
            for key, _ in self._wanted.select():
                key.data()

    def _end(self) -> None:
        for pid in self._running.values():
            os.kill(pid, signal.SIGKILL)
        sys.exit()

    def _fork(self) -> None:
        asker, _ = self._listener.accept()
        order, fds, _, _ = socket.recv_fds(asker, MOST, 3)
        if (pid := os.fork()) == 0:
            for held in (self._listener, self._wanted, asker, *self._running):
                held.close()
            _carry_out(json.loads(order), fds)
        for fd in fds:
            os.close(fd)
        self._running[asker] = pid
        ending = os.pidfd_open(pid)
        self._wanted.register(ending, selectors.EVENT_READ, lambda: self._ended(asker, ending))
        self._wanted.register(asker, selectors.EVENT_READ, lambda: self._left(asker))
        _tell(asker, pid)

    def _left(self, asker: socket.socket) -> None:
        if asker in self._running:
            self._wanted.unregister(asker)
            os.kill(self._running[asker], signal.SIGKILL)

    def _ended(self, asker: socket.socket, ending: int) -> None:
        _, status = os.waitpid(self._running.pop(asker), 0)
        _tell(asker, os.waitstatus_to_exitcode(status))
        self._wanted.unregister(ending)
        if asker in self._wanted.get_map():
            self._wanted.unregister(asker)
        os.close(ending)
        asker.close()


def _tell(asker: socket.socket, number: int) -> None:
    with suppress(OSError):  # it has left
        asker.send(str(number).encode())


def _import_all() -> None:
    import evsync.cli

    for module in pkgutil.walk_packages(evsync.__path__, "evsync."):
        if not module.name.startswith(("evsync.testing", "evsync.cli.__main__")):
            import_module(module.name)
    gc.freeze()  # so that forks do not copy what they only look at


def _carry_out(order: Mapping[str, object], fds: Sequence[int]) -> None:
    from evsync.cli import main

    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
            os.close(fd)
        os.chdir(str(order["cwd"]))
        os.environ.clear()
        os.environ.update(order["env"])  # type: ignore[call-overload]  # a mapping of texts
        sys.path[0:1] = [str(order["cwd"]), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        sys.argv = ["evsync", *order["arguments"]]  # type: ignore[misc]  # a list of texts
        at_once = os.isatty(1) or "PYTHONUNBUFFERED" in os.environ
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", buffering=1 if at_once else -1, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        main()
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _import_all()
    with socket.socket(fileno=int(sys.argv[1])) as given:
        Server(given).serve()
