"""`evsync` as a process of its own for every command, begun with everything imported: a server forks it.

Most of the time of a short command is Python's imports, and the tests run hundreds of them.
"""

from __future__ import annotations

import gc
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
OK = b"ended "
MOST = 1 << 20


def run(
    arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run `evsync` to its end, its input empty, its output kept. Raises TimeoutExpired, as `subprocess.run` does."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with mine, theirs, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        order = json.dumps({"arguments": list(arguments), "cwd": str(cwd), "env": dict(env)}).encode()
        socket.send_fds(_server(), [order], [theirs.fileno(), out.fileno(), err.fileno()])
        theirs.close()
        mine.settimeout(timeout_s)
        pid = int(mine.recv(100))
        try:
            said = mine.recv(100)
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(list(arguments), timeout_s) from None
        for file in (out, err):
            file.seek(0)
        text, trouble = out.read().decode(), err.read().decode()
    assert said.startswith(OK), f"evsync {' '.join(arguments)} was killed; it printed\n{text}\n{trouble}"
    return subprocess.CompletedProcess(list(arguments), int(said.removeprefix(OK)), text, trouble)


@cache
def _server() -> socket.socket:
    """The way to this process's server, which ends with it."""
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (mine, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MOST)
    with theirs:
        subprocess.Popen(
            [sys.executable, "-m", "tests.forks", str(theirs.fileno())], pass_fds=[theirs.fileno()], cwd=ROOT,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    return mine


def serve(orders: socket.socket) -> None:
    """Fork for each order, until whoever gives them is gone."""
    _import_all()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that have ended
    while True:
        order, fds, _, _ = socket.recv_fds(orders, MOST, 3)
        if not order:
            return
        if os.fork() == 0:
            orders.close()
            _carry_out(json.loads(order), *fds)
        for fd in fds:
            os.close(fd)


def _import_all() -> None:
    import evsync.cli

    for module in pkgutil.walk_packages(evsync.__path__, "evsync."):
        if not module.name.startswith(("evsync.testing", "evsync.cli.__main__")):
            import_module(module.name)
    gc.freeze()  # so that forks do not copy what they only look at


def _carry_out(order: Mapping[str, object], reply_fd: int, out: int, err: int) -> None:
    from evsync.cli import main

    code = 1
    with socket.socket(fileno=reply_fd) as reply:
        reply.set_inheritable(False)
        reply.send(str(os.getpid()).encode())
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.close(out)
        os.close(err)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.chdir(str(order["cwd"]))
        os.environ.clear()
        os.environ.update(order["env"])  # type: ignore[call-overload]  # a mapping of texts
        sys.path[0] = str(order["cwd"])
        sys.argv = ["evsync", *order["arguments"]]  # type: ignore[misc]  # a list of texts
        try:
            main()
            code = 0
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else int(e.code is not None)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            reply.send(OK + str(code).encode())
            os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
