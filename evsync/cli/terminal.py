"""What people and pipes get to see: tables, values, errors.

A terminal gets colours, and lines that fit. A pipe gets neither: whole lines without frames, for grep and awk.
"""

from __future__ import annotations

import logging
import sys
import traceback
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from evsync.codec.json_form import as_json
from evsync.errors import ConfigurationError, EvsyncError, redacted
from evsync.ports import Progress as ProgressCallback
from evsync.ports import unheard

_UNLIMITED = 1 << 30
_CONTROL = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories of what moves a cursor, hides or reorders text, or cannot be written at all."""
STYLES = {"halted": "bold red", "faulty": "bold red", "retrying": "yellow", "unreachable": "yellow", "behind": "yellow"}
"""Colours of states; all others have none."""


def console(*, stderr: bool = False) -> Console:
    """Where to write: what is asked for to standard output, everything about it to standard error."""
    file = sys.stderr if stderr else sys.stdout
    # Without a terminal rich would take it for 80 columns wide and cut there.
    width = None if file.isatty() else _UNLIMITED
    return Console(file=file, width=width, highlight=False, markup=False, emoji=False)


def say(text: str, style: str = "") -> None:
    """A line about what is done, to standard error: standard output is for what was asked for."""
    console(stderr=True).print(plain(text), style=style)


def agree(question: str = "Go on?") -> None:
    """Ask at the terminal, and end the command unless the answer is yes. Raises ConfigurationError without one."""
    if not sys.stdin.isatty():
        raise ConfigurationError("nothing was done: there is no terminal to ask at. Give --yes to agree beforehand")
    typer.confirm(question, abort=True, err=True)


def plain(text: str) -> str:
    """Text that comes from anywhere, with what a terminal would obey (escape sequences, line ends) made visible."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if unicodedata.category(c) not in _CONTROL else ascii(c)[1:-1] for c in text)


def as_utc(time: datetime) -> str:
    """A time in UTC, exact, as `--at` takes it."""
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


def counted(n: int, thing: str) -> str:
    """A number of things: 1 event, 2,000 events."""
    return f"{n:,} {thing}{'s' * (n != 1)}"


def print_json(value: Any, *, flush: bool = False) -> None:
    """One line of JSON to standard output."""
    sys.stdout.write(as_json(value) + "\n")
    if flush:
        sys.stdout.flush()


def table(headings: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()) -> Table:
    """A table without a frame. Cells are text of any origin; `right` names the columns of numbers."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in headings:
        made.add_column(
            heading, justify="right" if heading in right else "left", no_wrap=heading != headings[-1], overflow="fold"
        )
    for row in rows:
        made.add_row(*(Text(plain(str(cell)), style=STYLES.get(str(cell), "")) for cell in row))
    return made


def print_table(
    headings: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = (), below: Sequence[str] = ()
) -> None:
    """A table to standard output. Where it is wider than the terminal, the columns `below` go under their row."""
    to = console()
    columns = list(zip(headings, *rows, strict=True))
    width = sum(max(cell_len(plain(str(cell))) for cell in column) + 2 for column in columns)
    if not to.is_terminal or width <= to.width:
        print_lines(table(headings, rows, right=right))
        return
    for row in rows:
        cells = {name: str(cell) for name, cell in zip(headings, row, strict=True)}
        print_lines(plain("  ".join(cell for name, cell in cells.items() if name not in below)))
        for name in below:
            print_lines(plain(f"    {name}: {cells[name]}"))


def print_lines(*parts: Any, flush: bool = False) -> None:
    """Tables and texts to standard output, without the spaces that fill up their lines."""
    to = console()
    with to.capture() as captured:
        for part in parts:
            to.print(part)
    for line in captured.get().splitlines():
        sys.stdout.write(line.rstrip(" ") + "\n")
    if flush:
        sys.stdout.flush()


@contextmanager
def progress(what: str, *, long: bool = False) -> Iterator[ProgressCallback]:
    """A bar on standard error while the block runs, if that is a terminal. Gives what to call with (done, total).

    For what takes `long` with the time that is left, by the pace so far, rather than the time since the beginning.
    """
    to = console(stderr=True)
    if not to.is_terminal:
        yield unheard
        return
    time = TimeRemainingColumn(elapsed_when_finished=True) if long else TimeElapsedColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), time)
    with Progress(*columns, console=to, transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def reporting(debug: bool, *, log_level: int = logging.CRITICAL) -> Iterator[None]:
    """End the command on an EvsyncError: its text to standard error, and 1 as exit code (2 for ConfigurationError).

    What evsync logs is shown from `log_level` on. `debug` shows everything, and tracebacks.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Redacting("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(_is_for_people)
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    own = logging.getLogger("evsync")
    before = own.level
    own.setLevel(logging.DEBUG if debug else log_level)
    try:
        yield
    except EvsyncError as e:
        if debug:
            sys.stderr.write(redacted("".join(traceback.format_exception(e))))
        report(e)
        raise typer.Exit(2 if isinstance(e, ConfigurationError) else 1) from None
    finally:
        own.setLevel(before)


def report(error: EvsyncError) -> None:
    """An error's text, to standard error."""
    to = console(stderr=True)
    lines = [plain(line) for line in redacted(str(error)).splitlines()]
    to.print(Text("Error: ", style="bold red").append("\n".join(lines), style="not bold default"))


class _Redacting(logging.Formatter):
    """Log lines without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


def _is_for_people(record: logging.LogRecord) -> bool:
    """False for the record of an error that ended a service: the command ends with it, and tells it once. And for what
    asyncio warns of at the end of each TLS connection of nats-py, which has no consequence."""
    if record.name == "asyncio":
        return "eof_received() has no effect" not in record.getMessage()
    return not (record.name == "evsync" and record.exc_info and isinstance(record.exc_info[1], EvsyncError))
