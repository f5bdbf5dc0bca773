"""`evsync contracts`: what a service publishes, written down, and what a change of it breaks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from evsync.cli.loading import load
from evsync.cli.options import Debug, Json, Target
from evsync.cli.terminal import console, counted, print_json, print_lines, reporting, say, table
from evsync.contracts.asyncapi import asyncapi_of
from evsync.contracts.changes import Change, changes, is_breaking
from evsync.contracts.document import Document, document_of, events_of, read, service_of, write
from evsync.contracts.python import python_of
from evsync.contracts.readers import Reader, readers_of
from evsync.errors import ConfigurationError

app = typer.Typer(
    name="contracts", help="Write down what a service publishes; check changes of it.", no_args_is_help=True
)


@app.command()
def export(
    target: Target,
    asyncapi: Annotated[bool, typer.Option("--asyncapi", help="Print the AsyncAPI 3.0 document.")] = False,
    python: Annotated[
        bool,
        typer.Option(
            "--python", help="Print Contract classes for a consumer to start from; with --out write them too."
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write files into this directory instead of printing one.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write down the events that a service publishes.

    Printed is a JSON Schema (2020-12) of them all. Into a directory go SERVICE.schema.json, SERVICE.asyncapi.json, and
    with --python SERVICE_contracts.py. Nothing is opened. The same code always gives the same text: keep the files in
    your repository.

    \b
        evsync contracts export shop.users:users
        evsync contracts export shop.users:users --python > users_contracts.py
        evsync contracts export shop.users:users --python --out contracts
    """
    if asyncapi and python and out is None:
        raise typer.BadParameter("one of them can be printed; with --out both are written", param_hint="--asyncapi")
    with reporting(debug):
        document = document_of(load(target).codec)
        if out is None:
            text = python_of(document) if python else write(asyncapi_of(document) if asyncapi else document)
            typer.echo(text, nl=False)
            return
        _write(out, document, python)


def _write(directory: Path, document: Document, python: bool) -> None:
    name = service_of(document)
    files = {f"{name}.schema.json": write(document), f"{name}.asyncapi.json": write(asyncapi_of(document))}
    if python:
        files[f"{name.replace('-', '_')}_contracts.py"] = python_of(document)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (directory / file).write_text(text, encoding="utf-8")
    except OSError as e:
        raise ConfigurationError(f"{e.filename} cannot be written: {e.strerror}") from e
    written = ", ".join(str(directory / file) for file in files)
    say(f"{counted(len(events_of(document)), 'event type')} of {name} written to {written}")


@app.command()
def check(
    old: Annotated[str, typer.Argument(metavar="OLD", help="An exported .schema.json.", show_default=False)],
    new: Annotated[
        str, typer.Argument(metavar="NEW", help="Another one, or module:service for today's code.", show_default=False)
    ],
    readers: Annotated[
        list[str] | None,
        typer.Option(metavar="module:service", help="A service whose projections and reactions may read the events."),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Tell compatible changes of a service's events from breaking ones.

    A change breaks *consumers* if a contract made before it may fail at, or miss, an event written after it. It breaks
    *history* if a contract made after it may fail at an event that is stored already. With --readers it says whose
    contracts name the field. The exit code is 1 if a change breaks anything.

    \b
        evsync contracts check contracts/users.schema.json shop.users:users
        evsync contracts check old/users.schema.json new/users.schema.json \\
            --readers shop.orders:orders
    """
    with reporting(debug):
        found = changes(_read(old), _read(new))
        known = [reader for target in readers or () for reader in _readers(target)]
    told = [(change, [r for r in known if r.reads(change.event, change.field)]) for change in found]
    if json:
        print_json({"compatible": not is_breaking(found), "changes": [_as_object(c, of) for c, of in told]})
    else:
        _show(told, bool(known))
    if is_breaking(found):
        raise typer.Exit(1)


def _read(which: str) -> Document:
    path = Path(which)
    if not path.exists() and ":" in which and path.suffix != ".json":
        return document_of(load(which).codec)
    try:
        return read(path.read_text(encoding="utf-8"), which)
    except OSError as e:
        raise ConfigurationError(f"{which} cannot be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise ConfigurationError(f"{which} is not text in UTF-8: {e}") from e


def _readers(target: str) -> list[Reader]:
    service = load(target)
    return list(readers_of(service.name, (*service.projections, *service.reactions)))


def _show(told: Sequence[tuple[Change, list[Reader]]], with_readers: bool) -> None:
    if not told:
        print_lines("no difference")
        return
    headings = ["breaks", "event", "field", "what", "from what to what"] + ["read by"] * with_readers
    rows = [
        [" and ".join(c.breaks), c.event, c.where, c.what, c.detail] + [", ".join(map(str, of))] * with_readers
        for c, of in told
    ]
    shown = table(headings, [[cell or "-" for cell in row] for row in rows])
    to = console()
    if to.measure(shown, options=to.options.update(width=1 << 20)).maximum > to.width:
        # A terminal without room for it: fewer columns, more lines.
        shown = table(("breaks", "what"), [(row[0] or "-", _sentence(*row[1:])) for row in rows])
    breaking = sum(bool(c.breaks) for c, _ in told)
    count = counted(len(told), "change")
    print_lines(shown, "", f"{count}, {breaking} of them breaking" if breaking else f"{count}, compatible")


def _sentence(event: str, field: str, what: str, detail: str, readers: str = "") -> str:
    said = f"{event} {field}".rstrip() + f": {what}" + (f", {detail}" if detail else "")
    return said + (f"; read by {readers}" if readers else "")


def _as_object(change: Change, readers: Sequence[Reader]) -> dict[str, Any]:
    return {
        "event": change.event,
        "field": change.where or None,
        "what": change.what,
        "detail": change.detail,
        "breaks": list(change.breaks),
        "readers": [
            {"service": r.service, "kind": r.kind, "name": r.follower, "contract": r.contract.__name__} for r in readers
        ],
    }
