"""Follows a page as its reader would: writes its files, types its commands, compares what they print."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests import forks
from tests.docs.pages import ROOT, Block, Page
from tests.ports import free_ports

PATIENCE_S = 60.0
ELLIPSIS = "…"
PORTS = ("4222", "8001", "8002")
"""What a reader types; the test puts free ports in their place."""


@dataclass(slots=True)
class Command:
    """A line behind `$`, and the lines that it is said to print."""

    line: str
    output: list[str] = field(default_factory=list)


def commands_of(block: Block) -> list[Command]:
    """The commands of a console block. A line that ends in a backslash goes on in the next."""
    commands: list[Command] = []
    continues = False
    for line in block.text.splitlines():
        if continues:
            commands[-1].line += "\n" + line
            continues = line.endswith("\\")
        elif line.startswith("$ "):
            commands.append(Command(line[2:]))
            continues = line.endswith("\\")
        else:
            assert commands, f"{block.where}: output without a command"
            commands[-1].output.append(line)
    return commands


class Terminal:
    """One reader in one directory. Ends everything that was left running when the reading is over."""

    def __init__(self, directory: Path) -> None:
        """The directory is made. Beside it stands one for the program that the reader types."""
        self._directory = directory
        directory.mkdir()
        self._running: list[tuple[subprocess.Popen[bytes], Path]] = []
        self._ports = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
        kept = {k: v for k, v in os.environ.items() if not k.startswith("EVSYNC_")}
        (programs := directory.with_name("programs")).mkdir()
        places = [str(programs), str(Path(sys.executable).parent), kept.get("PATH", "")]
        self._environment = kept | {
            "PATH": os.pathsep.join(places), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1",
            "COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb",
        }  # fmt: skip
        evsync = programs / "evsync"
        evsync.write_text(f'#!/bin/sh\nexec {shlex.join(forks.program(self._environment))} "$@"\n')
        evsync.chmod(0o755)

    def follow(self, page: Page) -> None:
        """Do what the page says, block by block."""
        for block in page.blocks():
            if block.file:
                self._write(block)
            elif block.language == "python":
                compile(block.text, block.where, "exec")
            elif block.language == "console" and "background" in block.words:
                self._start(block)
            elif block.language == "console" and "shown" not in block.words:
                for command in commands_of(block):
                    self._run(block, command)

    def _write(self, block: Block) -> None:
        assert block.file
        path = self._directory / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_text() if path.exists() and not block.begins_anew else ""
        # Two blank lines between blocks, as a reader would leave them; a traceback's line numbers do not matter.
        path.write_text(before + ("\n\n" if before else "") + self._with_free_ports(block.text))

    def _run(self, block: Block, command: Command) -> None:
        done = subprocess.run(
            ["bash", "-c", self._with_free_ports(command.line)],
            cwd=self._directory, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        printed = self._with_shown_ports(done.stdout.decode())
        if not matches(command.output, printed):
            raise self._wrong(block, command, printed, done.returncode)

    def _start(self, block: Block) -> None:
        [command] = commands_of(block)
        log = self._directory / f"terminal-{len(self._running)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", self._with_free_ports(command.line)],
                cwd=self._directory, env=self._environment, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
                # A test run that was itself started in the background would pass on that Ctrl-C is ignored.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
            )  # fmt: skip
        self._running.append((process, log))
        deadline = time.monotonic() + PATIENCE_S
        while not contains(command.output, printed := self._with_shown_ports(log.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                raise self._wrong(block, command, printed, process.poll())
            time.sleep(0.02)

    def _wrong(self, block: Block, command: Command, printed: str, code: int | None) -> AssertionError:
        said = "\n".join(command.output)
        logs = "".join(f"\n--- {log.name}\n{log.read_text()}" for _, log in self._running)
        return AssertionError(
            f"{block.where}: $ {command.line}\n--- is said to print\n{said}\n--- and printed (exit code {code})\n"
            f"{printed}{logs}"
        )

    def _with_free_ports(self, text: str) -> str:
        for shown, free in self._ports.items():
            text = re.sub(rf"\b{shown}\b", free, text)
        return text

    def _with_shown_ports(self, text: str) -> str:
        for shown, free in self._ports.items():
            text = re.sub(rf"\b{free}\b", shown, text)
        return text

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process, _ in reversed(self._running):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)  # Ctrl-C, as the reader would press it
        for process, log in self._running:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                assert error is not None, f"a command did not end at Ctrl-C; it printed\n{log.read_text()}"


def matches(expected: list[str], printed: str) -> bool:
    """Whether this is what was to be printed. `…` stands for any text in a line; alone, for any lines."""
    return re.fullmatch(_pattern(expected), printed.rstrip() + "\n" if printed.strip() else "") is not None


def contains(expected: list[str], printed: str) -> bool:
    """Whether these lines have been printed, in this order, among others."""
    lines: Iterator[str] = iter(printed.splitlines())
    return all(any(re.fullmatch(_in_line(e), line.rstrip()) for line in lines) for e in expected)


def _pattern(expected: list[str]) -> str:
    while expected and not expected[-1].strip():
        expected = expected[:-1]
    return "".join(r"(?:.*\n)*" if line.strip() == ELLIPSIS else _in_line(line) + r"[ \t]*\n" for line in expected)


def _in_line(line: str) -> str:
    return ".*".join(re.escape(part) for part in line.rstrip().split(ELLIPSIS))
