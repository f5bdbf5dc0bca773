"""`evsync explain`: which events made a row."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any

import typer

from evsync.cli.events import as_object
from evsync.cli.loading import load
from evsync.cli.options import Debug, EventTypes, Json, Target
from evsync.cli.terminal import as_utc, counted, plain, print_json, print_lines, print_table, progress, reporting
from evsync.codec.json_form import as_json
from evsync.operations.explanation import RowReport
from evsync.operations.explanation import explain as explain_row
from evsync.projections.checking.explain import Cause, Chosen
from evsync.projections.checking.recorder import Change
from evsync.service import Service


def explain(
    target: Target,
    table_name: Annotated[str, typer.Argument(metavar="TABLE", help="A table of a read model.", show_default=False)],
    key: Annotated[
        list[str],
        typer.Argument(metavar="KEY", help="The row's primary key, a value for each column.", show_default=False),
    ],
    stream: Annotated[str | None, typer.Option(metavar="ID", help="Only events of this stream.")] = None,
    type: EventTypes = "*",
    last: Annotated[int | None, typer.Option("--last", "-n", metavar="N", min=1, help="Only the last N.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show which events made a row of a read model.

    The projection's handlers are run again over its logs, up to its checkpoints, and what they do to the row is noted
    rather than written. Where handlers execute statements of their own, that is done in scratch tables, which takes
    longer: such a statement is shown if the row was another after it. --stream and --type leave out events
    before they are looked at. Nothing is changed.

    \b
        evsync explain shop.orders:orders customers 42
        evsync explain shop.orders:orders daily 2026-01-31 paid --type '*.Paid'
    """

    def chosen(event: Any) -> bool:
        return (stream is None or event.stream == stream) and fnmatchcase(event.type, type)

    with reporting(debug):
        for report in asyncio.run(_explain(load(target), table_name, key, chosen)):
            causes = report.explanation.causes[-last:] if last else report.explanation.causes
            if json:
                print_json(_as_object(report, causes))
            else:
                _show(report, causes)


async def _explain(service: Service, name: str, key: list[str], chosen: Chosen) -> list[RowReport]:
    async with service.inspect(followers=True):
        with progress("Going through history") as advance:
            return await explain_row(service.runtime, name, key, chosen=chosen, advance=advance)


def _show(report: RowReport, causes: Sequence[Cause]) -> None:
    found = report.explanation
    named = ", ".join(f"{name}={as_json(value)}" for name, value in found.key.items())
    state = "is not there now" if report.row is None else f"is {as_json(report.row)}"
    print_lines(plain(f"{found.table} {named} {state}"))
    total = len(found.causes)
    shown = "" if len(causes) == total else f", the last {len(causes):,} of them here"
    print_lines(plain(f"{counted(total, 'event')} of projection {report.projection} touched it{shown}"))
    if found.executed:
        print_lines("Handlers executed statements of their own: shown where the row was another afterwards")
    if causes:
        print_lines("")
        headings = ("log", "position", "time", "type", "stream", "data", "did")
        print_table(headings, [_cells(c) for c in causes], right=("position",), below=("stream", "data", "did"))


def _cells(cause: Cause) -> tuple[object, ...]:
    e = cause.event
    did = "; ".join(_did(change) for change in cause.changes)
    return (e.position.log, e.position.number, as_utc(e.time), e.type, e.stream_id, as_json(e.data), did)


def _did(change: Change) -> str:
    match change.verb:
        case "delete":
            return "delete"
        case "execute":
            return f"execute {as_json(_other(change.values, change.before))}"
        case verb:
            return f"{verb} {as_json(change.values)}"


def _other(after: Mapping[str, Any], before: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The columns that a statement changed, as they were left; an empty object for a row that it deleted."""
    return {name: value for name, value in after.items() if not before or before.get(name) != value}


def _as_object(report: RowReport, causes: Sequence[Cause]) -> dict[str, Any]:
    found = report.explanation
    return {
        "projection": report.projection,
        "table": found.table,
        "key": found.key,
        "row": report.row,
        "executed": found.executed,
        "events": len(found.causes),
        "causes": [
            {
                **as_object(c.event),
                "changes": [{"verb": x.verb, "values": x.values, "before": x.before} for x in c.changes],
            }
            for c in causes
        ],
    }
