"""`evsync backup`: the archive of a service's logs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import product
from typing import Annotated, Any

import typer
from rich.table import Table

from evsync.archive.backup import BackupReport
from evsync.archive.marking import MarkReport, ToMark, make_mark
from evsync.archive.marks import name_for
from evsync.archive.schedule import problem_of
from evsync.archive.targets import opened_targets
from evsync.archive.verification import CopyReport
from evsync.archiving import backups_of, read_past
from evsync.cli.loading import load
from evsync.cli.options import Debug, Json, OneShard, Target, of_shards
from evsync.cli.terminal import as_utc, plain, print_json, print_lines, progress, reporting, table
from evsync.errors import ArchiveIncomplete
from evsync.opening import open_store
from evsync.operations.backups import Archived, Trouble, look_at, policy_of, shards_of, verify_archive
from evsync.operations.recovery import DrillReport, drill
from evsync.records import to_datetime
from evsync.service import Service
from evsync.urls import urls_by_shard

NICENESS = 10
"""Of `backup run`: a service on the same machine has the processor first."""

_REMEDY = (
    "delete the files of damaged segments: the next `evsync backup run` writes them anew, from the log. "
    "Those of an older incarnation come from another place: copy its directory"
)

app = typer.Typer(
    name="backup", help="Archive a service's log, and see what the archive is worth.", no_args_is_help=True
)


@app.command("run")
def run(target: Target, shard: OneShard = None, json: Json = False, debug: Debug = False) -> None:
    """Bring what is new of a log to every place of its policy.

    Of each shard's log, where there are several. A service that runs does this by itself; this is for a scheduler of
    your own, or for now. What is old enough is merged into longer segments. The exit code is 1 if fewer places than
    needed hold everything.

    \b
        evsync backup run shop.users:users
    """
    with reporting(debug):
        if hasattr(os, "nice"):
            os.nice(NICENESS)
        reports = asyncio.run(_run(load(target), shard))
    for report in reports:
        if json:
            print_json({**asdict(report), "ok": report.ok})
        else:
            _show_run(report)
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


@app.command("list")
def list_(target: Target, shard: OneShard = None, json: Json = False, debug: Debug = False) -> None:
    """Show what is archived, place by place.

    Reads the headers of segments; nothing is verified. Needs the places, not the store.

    \b
        evsync backup list shop.users:users
    """
    with reporting(debug):
        found = asyncio.run(_list(load(target), shard))
    if json:
        print_json([_found_as_object(f) for f in found])
    else:
        _show_list(found)


@app.command()
def verify(target: Target, shard: OneShard = None, json: Json = False, debug: Debug = False) -> None:
    """Read every byte of the archive.

    Whatever is damaged, missing, doubled or in another's place is named, and a copy that ends before another one. Needs
    the places, not the store. The exit code is 1 if anything was found.

    \b
        evsync backup verify shop.users:users
    """
    with reporting(debug):
        reports, problems = asyncio.run(_verify(load(target), shard))
    if json:
        print_json({"ok": not problems, "copies": [_copy_as_object(r) for r in reports], "problems": problems})
    else:
        _show_verified(reports, problems)
    if problems:
        raise typer.Exit(1)


@app.command("drill")
def drill_(target: Target, json: Json = False, debug: Debug = False) -> None:
    """Restore the archive into a scratch store, and compare.

    Every aggregate is rebuilt from its restored events, the digest of the restored log compared with the live one's.
    How much would be lost now, and how long a restore takes, is measured, shown, and kept beside the archive. The
    scratch store is an SQLite file in the directory for temporary files. Shards are restored together, as `evsync
    restore` does. The exit code is 1 if there is a difference.

    \b
        evsync backup drill shop.users:users
    """
    with reporting(debug):
        reports = asyncio.run(_drill(load(target)))
    for report in reports:
        if json:
            print_json(asdict(report))
        else:
            _show_drill(report)
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


@app.command()
def mark(
    targets: Annotated[
        list[str],
        typer.Argument(metavar="module:service", show_default=False, help="All services that follow one another."),
    ],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Of the mark; the present time if none is given.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Mark a place in several logs, to restore them to it together.

    No log has an answer there to what another one has not, and no shard a slot that another one still has. All logs are
    brought to their places up to the mark, and the mark is put beside them. The services go on meanwhile.

    \b
        evsync backup mark shop.orders:orders shop.payments:payments --name monday
        evsync restore shop.orders:orders --to sqlite:///orders2.db --mark monday
        evsync restore shop.payments:payments --to sqlite:///payments2.db \\
            --mark monday
    """
    with reporting(debug):
        services = [load(target) for target in targets]
        report = asyncio.run(_mark(services, name or name_for(datetime.now(UTC))))
        left_out = _left_out(services)
    if json:
        print_json({**asdict(report), "left_out": left_out})
    else:
        _show_mark(report, left_out)


def _logs_of(service: Service, shard: str | None) -> list[str]:
    """The names of these shards' logs, or of that shard's."""
    return list(of_shards({s: f"{service.name}.{s}" for s in shards_of(service)}, shard).values())


async def _run(service: Service, shard: str | None) -> list[BackupReport]:
    policy, reports = policy_of(service), []
    async with opened_targets(policy.targets) as targets, AsyncExitStack() as stack:
        if shard is None:
            await stack.enter_async_context(service.inspect())
            stores = service.stores
        else:  # alone: another one may be lost
            settings = service.settings()
            stores = {}
            for url in of_shards(urls_by_shard(settings["store"]), shard).values():
                stores[shard] = await open_store(url, service=service.name, shard=shard, create=False)
                stack.push_async_callback(stores[shard].close)
            read_past(service, settings, stores)
        for store in stores.values():
            with progress(f"Archiving {store.identity.name}") as advance:
                reports.append(await backups_of(service, store, targets, policy).run(advance))
        return reports


async def _mark(services: Sequence[Service], name: str) -> MarkReport:
    async with AsyncExitStack() as stack:
        logs = []
        for service in services:
            policy = policy_of(service)
            await stack.enter_async_context(service.inspect())
            targets = await stack.enter_async_context(opened_targets(policy.targets))
            followers = [reaction.name for reaction in service.reactions]
            logs += [ToMark(store, targets, policy, followers) for store in service.stores.values()]
        with progress("Archiving") as advance:
            return await make_mark(name, logs, advance)


def _left_out(services: Sequence[Service]) -> dict[str, list[str]]:
    """Services whose events these answer and that are not among them, each with those that do."""
    names = {service.name for service in services}
    found: dict[str, list[str]] = {}
    for service in services:
        for source in dict.fromkeys(s for reaction in service.reactions for s in reaction.sources if s not in names):
            found.setdefault(source, []).append(service.name)
    return found


async def _list(service: Service, shard: str | None) -> list[Archived | Trouble]:
    async with opened_targets(policy_of(service).targets) as targets:
        places = product(_logs_of(service, shard), targets)
        return [found for log, target in places async for found in look_at(target, log)]


async def _verify(service: Service, shard: str | None) -> tuple[list[CopyReport], list[str]]:
    async with opened_targets(policy_of(service).targets) as targets:
        return await verify_archive(_logs_of(service, shard), targets, progress)


async def _drill(service: Service) -> list[DrillReport]:
    async with service.inspect(), opened_targets(policy_of(service).targets) as targets:
        if not targets:
            raise ArchiveIncomplete("there is no place to restore from")
        with progress("Restoring") as advance:
            return await drill(service.stores, targets, service.codec, advance)


# ---- showing


def _show_run(report: BackupReport) -> None:
    rows = [(t.target, t.end, t.written, t.merged, "failed" if t.error else "") for t in report.targets]
    problem = problem_of(report)
    print_lines(
        plain(
            f"log {report.log}, incarnation {report.incarnation}: archived up to position {report.backed_up} of "
            f"{report.head} in {report.copies} places"
        ),
        table(("place", "position", "new", "merged", ""), rows, right=("position", "new", "merged")),
        *([plain(problem)] if problem else ()),
    )


def _show_mark(report: MarkReport, left_out: Mapping[str, list[str]]) -> None:
    rows = [
        (m.log, m.incarnation, m.position, m.head - m.position, len(m.places), ", ".join(m.places)) for m in report.logs
    ]
    headings = ("log", "incarnation", "position", "left out", "places", "")
    print_lines(
        plain(f"mark {report.name}"),
        table(headings, rows, right=("position", "left out", "places")),
        *(plain(f"log {m.log}: {problem}") for m in report.logs for problem in m.problems),
        *(
            plain(f"{source} is not marked: restored, {' and '.join(by)} would answer its later events once more")
            for source, by in left_out.items()
        ),
    )


def _found_as_object(found: Archived | Trouble) -> dict[str, Any]:
    if isinstance(found, Trouble):
        return asdict(found)
    return {
        "log": found.log,
        "target": found.target,
        "incarnation": found.incarnation,
        "segments": found.segments,
        "last": found.last,
        "latest_event": as_utc(to_datetime(found.latest_us)),
        "made": as_utc(to_datetime(found.made_us)),
        "drill": found.drill,
        "marks": [
            {
                "name": mark.name,
                "made": as_utc(to_datetime(mark.made_us)),
                "position": mark.logs[found.log].position,
                "logs": {name: part.position for name, part in mark.logs.items()},
            }
            for mark in found.marks
        ],
    }


def _show_list(found: Sequence[Archived | Trouble]) -> None:
    archived = [f for f in found if isinstance(f, Archived)]
    rows = [
        (f.log, f.target, f.incarnation, f.segments, f.last, as_utc(to_datetime(f.latest_us)), _drilled(f.drill))
        for f in archived
    ]
    headings = ("log", "place", "incarnation", "segments", "position", "latest event", "last drill")
    marks = [
        (
            f.log,
            m.name,
            m.logs[f.log].position,
            ", ".join(f"{log} {at.position}" for log, at in m.logs.items()),
            f.target,
        )
        for f in archived
        for m in f.marks
    ]
    print_lines(
        *([_of_logs(headings, rows, right=("segments", "position"))] if rows else ()),
        *(["", _of_logs(("log", "mark", "position", "of", "place"), marks, right=("position",))] if marks else ()),
        *(plain(f"{f.target}: {f.problem}") for f in found if isinstance(f, Trouble)),
    )


def _of_logs(headings: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str]) -> Table:
    """A table whose first column, the log, is left out where there is only one."""
    begin = 0 if len({row[0] for row in rows}) > 1 else 1
    return table(headings[begin:], [row[begin:] for row in rows], right=right)


def _drilled(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return "never"
    said = "no difference" if record.get("ok") else "a difference"
    return f"{record.get('at', '?')[:19]}Z: {said}, restored in {record.get('restore_seconds', '?')} s"


def _show_verified(reports: list[CopyReport], problems: list[str]) -> None:
    rows = [
        (r.log, r.target, r.incarnation, r.segments, r.last, r.events, f"{r.size_bytes:,}", len(r.problems) or "none")
        for r in reports
    ]
    headings = ("log", "place", "incarnation", "segments", "whole up to", "events", "bytes", "problems")
    print_lines(
        *([_of_logs(headings, rows, right=headings[3:])] if rows else ()),
        *map(plain, problems),
        *([_REMEDY] if any(r.problems for r in reports) else ()),
    )


def _copy_as_object(report: CopyReport) -> dict[str, Any]:
    return {**asdict(report), "problems": [str(problem) for problem in report.problems]}


def _show_drill(report: DrillReport) -> None:
    print_lines(
        plain(f"log {report.log}, incarnation {report.incarnation}: restored up to position {report.position}"),
        f"recovery point: {report.events_behind:,} events would be lost; the last one restored is "
        f"{report.seconds_behind:,.1f} s old",
        f"recovery time: {report.restore_seconds:,.2f} s to restore, {report.replay_seconds:,.2f} s to rebuild "
        f"{report.aggregates:,} aggregates",
        plain(report.problem or f"no difference to the live log up to there, digest {report.digest}"),
        *(plain(f"worked around: {e}") for e in report.worked_around),
    )
