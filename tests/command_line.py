"""Running `evsync` as its users do: as a process, in a pipe or on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ
from typing import Any

from evsync import Position
from tests import forks
from tests.cli_shop import SUPPLIER, Item, stock

ROOT = Path(__file__).parents[1]
PATIENCE_S = 30.0
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Shop:
    """A directory with the services' stores, and the environment that says so."""

    def __init__(self, directory: Path, nats: str = "") -> None:
        self.directory = directory
        self.store = f"sqlite:///{directory}/stock.db"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("EVSYNC_", "COLUMNS", "NO_COLOR", "FORCE_"))}
        self.environment = kept | {
            "EVSYNC_STOCK_STORE": self.store, "EVSYNC_IDLE_STORE": f"sqlite:///{directory}/idle.db",
            "EVSYNC_NATS": nats, "PYTHONPATH": str(ROOT), "TERM": "xterm",
        }  # fmt: skip

    async def save(self, *items: Item) -> Position:
        """Save items as the service's application would, which relays and projects nothing."""
        async with stock.open(store=self.store, nats="", run="none"):
            return await stock.save(items[0], *items[1:])

    def evsync(self, *arguments: str, code: int | None = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, which must be with this exit code (None: with any)."""
        env = self.environment | environment
        done = forks.run(arguments, cwd=self.directory, env=env, timeout_s=PATIENCE_S)
        assert code in (done.returncode, None), f"code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *arguments: str, **environment: str) -> list[Any]:
        """The JSON lines that a command prints."""
        return [json.loads(line) for line in self.evsync(*arguments, "--json", **environment).stdout.splitlines()]

    @contextmanager
    def running(self, *arguments: str, **environment: str) -> Iterator[Running]:
        """A command that keeps running, until the block ends at the latest."""
        env = self.environment | environment
        process = subprocess.Popen(
            [*forks.program(env), *arguments], cwd=self.directory, env=env,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            # Tests that were started in the background would pass on that Ctrl-C is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )  # fmt: skip
        try:
            yield Running(process)
        finally:
            process.kill()
            process.communicate()

    def on_terminal(self, *arguments: str, columns: int = 80, answer: str = "") -> tuple[int, str]:
        """Run a command on a terminal; type `answer` when it asks. Its exit code, and what the screen was sent."""
        command = [*forks.program(self.environment), *arguments]
        pid, screen = pty.fork()
        if pid == 0:
            os.chdir(self.directory)
            os.execve(command[0], command, self.environment)
        ioctl(screen, TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        seen, deadline = b"", time.monotonic() + PATIENCE_S
        try:
            while True:
                assert time.monotonic() < deadline, f"it did not end; it printed\n{seen.decode()}"
                if not select.select([screen], [], [], 0.1)[0]:
                    continue
                with suppress(OSError):  # how a terminal says that nobody is left to write to it
                    if part := os.read(screen, 65536):
                        seen += part
                        if answer and b"[y/N]" in seen:
                            os.write(screen, answer.encode() + b"\n")
                            answer = ""
                        continue
                break
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if sys.exc_info()[0] else 0)
            _, status = os.waitpid(pid, 0)
            os.close(screen)
        return os.waitstatus_to_exitcode(status), seen.decode().replace("\r\n", "\n")


class Running:
    """A command under way."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._read = b""

    def line(self) -> str:
        """The next line of its standard output. Fails when it ends or says nothing."""
        out = self.process.stdout
        assert out is not None
        while b"\n" not in self._read:
            assert select.select([out], [], [], PATIENCE_S)[0], "it prints nothing"
            part = os.read(out.fileno(), 65536)
            assert part, f"it ended: {self.process.communicate()[1].decode()}"
            self._read += part
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        """Send a signal: its exit code, and what it still had to say to standard output and standard error."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str, str]:
        """Wait for its end: as `end`."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, (self._read + out).decode(), err.decode()


def item(id: str, *prices: int) -> Item:
    """An item with its history of prices."""
    made = Item(id, Decimal(prices[0]), SUPPLIER)
    for price in prices[1:]:
        made.reprice(Decimal(price), made.created_on.date())
    return made


def until(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of `condition`. Fails with `what` when there is none in time."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return value
