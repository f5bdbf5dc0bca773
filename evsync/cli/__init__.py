"""The command line: one small file per noun."""

from __future__ import annotations

import platform
import sys
import traceback
from importlib.metadata import version
from io import TextIOWrapper
from typing import Annotated

import typer

from evsync.cli import (
    archive,
    backup,
    contracts,
    diff,
    explain,
    import_,
    nats,
    parked,
    rebuild,
    replay,
    reset,
    restore,
    run,
    shards,
    status,
    store,
    stream,
    tail,
    verify,
)
from evsync.cli.terminal import print_lines
from evsync.errors import redacted


def _version(asked: bool) -> None:
    if asked:
        print_lines(f"evsync {version('evsync')}, Python {platform.python_version()}")
        raise typer.Exit


app = typer.Typer(
    name="evsync",
    help="Run services, look at their events, and keep their streams in order.",
    epilog="`evsync COMMAND --help` shows examples.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain text: its frames would break grep
    pretty_exceptions_enable=False,
)


@app.callback()
def evsync(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version, and that of Python.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """What stands before the command."""


for command in (
    run.run,
    status.status,
    tail.tail,
    replay.replay,
    verify.verify,
    explain.explain,
    rebuild.rebuild,
    diff.diff,
):
    app.command()(command)
app.command("import")(import_.import_)
app.command()(restore.restore)
app.command()(reset.reset)
app.add_typer(nats.app)
app.add_typer(backup.app)
app.add_typer(archive.app)
app.add_typer(stream.app)
app.add_typer(parked.app)
app.add_typer(contracts.app)
app.add_typer(store.app)
app.add_typer(shards.app)


def main() -> None:
    """What the `evsync` program calls."""
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, TextIOWrapper):  # an encoding that lacks a character is no reason to fail
            output.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="evsync")
    except Exception:  # what evsync does not raise on purpose is shown as Python would, but for secrets
        sys.stderr.write(redacted(traceback.format_exc()))
        sys.exit(1)
