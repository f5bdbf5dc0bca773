"""`evsync diff`: the rows that a read model's code would make otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from evsync.cli.loading import load
from evsync.cli.options import Debug, Json, ProjectionName, Target
from evsync.cli.terminal import plain, print_json, print_lines, progress, reporting, table
from evsync.codec.json_form import as_json
from evsync.definition import projection_of
from evsync.operations.difference import DiffReport, diff_with
from evsync.operations.difference import diff as diff_with_live
from evsync.projections.checking.diff import LIMIT, RowDifference, TableDifference
from evsync.service import Service


def diff(
    target: Target,
    projection: ProjectionName,
    other: Annotated[
        str | None,
        typer.Option("--with", metavar="module:service", help="Compare with this code instead of the read model."),
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=0, help="Show so many rows of a table at most.")] = LIMIT,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the rows that code makes otherwise than they are.

    History is run through its handlers, into tables that are thrown away, and these are compared with the read model
    as it is: what a rebuild would change. Or, with --with, with what the projection of the same name in another module
    makes of the same history. Nothing is changed, and workers may go on meanwhile. The exit code is 1 if anything
    differs.

    \b
        evsync diff shop.orders:orders customers
        evsync diff shop.orders:orders customers --with old_shop.orders:orders
    """
    with reporting(debug):
        report = asyncio.run(_diff(load(target), projection, load(other) if other else None, limit))
        if json:
            print_json(_as_object(report))
        else:
            _show(report)
        if not report.same:
            raise typer.Exit(1)


async def _diff(service: Service, name: str, other: Service | None, limit: int) -> DiffReport:
    projection = projection_of(service, name)
    theirs = projection_of(other, name) if other is not None else None
    async with service.inspect(followers=True):
        with progress("Going through history", long=True) as advance:
            if theirs is None:
                return await diff_with_live(service.runtime, projection, limit=limit, advance=advance)
            return await diff_with(service.runtime, projection, theirs, limit=limit, advance=advance)


def _show(report: DiffReport) -> None:
    for found in report.tables:
        print_lines(plain(f"{report.projection}, table {found.table}: {_verdict(found)}"))
        if rows := _rows(found):
            print_lines(table(("key", "column", "old", "new"), rows))
            shown, all_ = len(found.rows), found.changed + found.only_old + found.only_new
            if shown < all_:
                print_lines(f"and {all_ - shown:,} rows more (--limit)")
    print_lines("", plain(f"old: {report.old}; new: what the code as it is now makes of history"))


def _verdict(found: TableDifference) -> str:
    if found.old_rows is None or found.new_rows is None:
        return f"there is no such table in the {'old' if found.old_rows is None else 'new'} model"
    counted = (
        (found.changed, "differ"),
        (found.only_old, "are in the old one alone"),
        (found.only_new, "are in the new one alone"),
    )
    parts = [f"{n:,} rows {what}" for n, what in counted if n]
    for names, which in ((found.columns_only_old, "old"), (found.columns_only_new, "new")):
        if names:
            parts.append(f"only the {which} one has column {', '.join(names)}")
    return "; ".join(parts) or f"the same {found.new_rows:,} rows"


def _rows(found: TableDifference) -> Sequence[Sequence[object]]:
    rows: list[Sequence[object]] = []
    for row in found.rows:
        key = ", ".join(f"{name}={as_json(value)}" for name, value in row.key.items())
        if row.kind == "changed":
            rows += [(key, name, as_json(old), as_json(new)) for name, (old, new) in row.columns.items()]
        else:
            side = 0 if row.kind == "only_old" else 1
            whole = as_json({name: both[side] for name, both in row.columns.items()})
            rows.append((key, "(row)", whole if side == 0 else "-", whole if side == 1 else "-"))
    return rows


def _as_object(report: DiffReport) -> dict[str, Any]:
    return {
        **asdict(report),
        "same": report.same,
        "tables": [{**asdict(t), "same": t.same, "rows": [_row_as_object(r) for r in t.rows]} for t in report.tables],
    }


def _row_as_object(row: RowDifference) -> dict[str, Any]:
    columns = {name: {"old": old, "new": new} for name, (old, new) in row.columns.items()}
    return {"kind": row.kind, "key": row.key, "columns": columns}
