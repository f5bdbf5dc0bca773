"""`python -m benchmarks [NAME …]`: measure everything, or what is named, and print tables."""

from __future__ import annotations

import json
import runpy
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks import (
    archive,
    demo,
    jetstream,
    latency,
    memory,
    moving,
    postgres,
    projection,
    reading,
    relay,
    replay,
    routing,
    saves,
    workers,
)
from benchmarks.report import Section, as_json, filesystem, machine, page, table

MODULES = {
    "saves": saves,
    "replay": replay,
    "postgres": postgres,
    "jetstream": jetstream,
    "relay": relay,
    "reading": reading,
    "projection": projection,
    "workers": workers,
    "latency": latency,
    "archive": archive,
    "memory": memory,
    "routing": routing,
    "moving": moving,
    "demo": demo,
}
PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
PLOT = PAGE.parent / "plots" / "memory.py"


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"{', '.join(MODULES)}; all if none is named.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is measured; the median counts.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every number to this file.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Write docs/benchmarks.md anew. Measures everything.")] = False,
) -> None:
    """Measure evsync beside its peers: some minutes, best with nothing else going on on the machine."""
    chosen = names or list(MODULES)
    if unknown := [name for name in chosen if name not in MODULES]:
        raise typer.BadParameter(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(MODULES)}")
    if write and set(chosen) != set(MODULES):
        raise typer.BadParameter("--write measures everything: name no benchmarks with it")
    console = Console(width=None if sys.stdout.isatty() else 130)
    for name, value in machine().items():
        console.print(f"{name:16}{value}", style="dim", highlight=False)
    if filesystem(tempfile.gettempdir()) in ("tmpfs", "ramfs"):
        console.print(
            f"{tempfile.gettempdir()} is in memory, where an fsync costs nothing: set TMPDIR to a directory on a disk.",
            style="yellow",
        )
    sections = _measure(chosen, rounds, console)
    if json_file is not None:
        json_file.write_text(json.dumps(as_json(sections), indent=2) + "\n", encoding="utf-8")
    if write:
        PAGE.write_text(page(sections, rounds), encoding="utf-8")
        runpy.run_path(str(PLOT))["write"](as_json(sections))
        console.print(f"Wrote {PAGE} and the plot in it.")


def _measure(names: Sequence[str], rounds: int, console: Console) -> list[Section]:
    sections = []
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
    ) as progress:
        task = progress.add_task("")
        for name in names:
            module, began = MODULES[name], time.monotonic()
            rows = module.measure(rounds, lambda what, name=name: progress.update(task, description=f"{name}: {what}"))
            sections.append(Section(name, module.TITLE, module.NOTES, rows))
            progress.console.print(table(sections[-1]))
            progress.console.print(f"{name} took {time.monotonic() - began:.0f} s\n", style="dim")
    return sections


if __name__ == "__main__":
    typer.run(main)
