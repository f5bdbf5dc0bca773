"""`evsync import`: an application of the eventsourcing library moves into an evsync store."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated

import typer

from evsync.cli.options import Debug, Json
from evsync.cli.terminal import print_json, print_lines, progress, reporting
from evsync.interop.importing import ImportReport, compare_events, copy_events
from evsync.interop.table import StoredEventsTable
from evsync.opening import open_store


def import_(
    source: Annotated[
        str, typer.Option("--from", metavar="PATH|URL", help="The SQLite file, or postgresql://… database, to read.")
    ],
    to: Annotated[str, typer.Option(metavar="URL", help="The evsync store to fill, such as sqlite:///shop.db.")],
    service: Annotated[str, typer.Option(metavar="NAME", help="The service whose events they become.")],
    table: Annotated[str, typer.Option(metavar="NAME", help="The table, or schema.table.")] = "stored_events",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Copy an eventsourcing application's events into a store.

    Ids, versions, topics and states stay as they are, and the order of the log. Stop the application first. If it is
    broken off, give the same command again: it goes on where the copy ends. At the end table and log are compared,
    event by event.

    \b
        evsync import --from bank.db --to sqlite:///accounts.db --service accounts
        evsync import --from postgresql://localhost/bank \\
            --table public.bankaccounts_events \\
            --to postgresql://localhost/evsync --service accounts
    """
    with reporting(debug):
        report = asyncio.run(_import(source, table, to, service))
    if json:
        print_json(asdict(report))
        return
    lines = [
        f"{report.log}: {report.copied:,} events copied, {report.events:,} in all, no difference",
        f"digest {report.digest}",
    ]
    if report.renumbered:
        lines.append(
            f"{report.renumbered:,} events have another position than their notification id was: followers of this "
            "application that keep ids must begin anew"
        )
    if report.whole:
        lines.append(f"{report.whole:,} states are compressed, encrypted or not JSON: the application alone reads them")
    print_lines(*lines)


async def _import(source: str, table: str, to: str, service: str) -> ImportReport:
    stored = StoredEventsTable.open(source, table)
    try:
        store = await open_store(to, service=service)
        try:
            with progress("Copying") as tell:
                copied = await copy_events(stored, store, tell)
            with progress("Comparing") as tell:
                return await compare_events(stored, store, copied, tell)
        finally:
            await store.close()
    finally:
        stored.close()
