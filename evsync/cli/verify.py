"""`evsync verify`: whether read models hold exactly the events of their logs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from evsync.cli.events import as_object, of_log
from evsync.cli.loading import load
from evsync.cli.options import Debug, Json, Target
from evsync.cli.terminal import counted, plain, print_json, print_lines, progress, reporting, table
from evsync.definition import projection_of, stored_projections
from evsync.errors import ConfigurationError
from evsync.operations.verification import VerifyReport
from evsync.operations.verification import verify as verify_projection
from evsync.projections.checking.verify import Finding, LogReport
from evsync.service import Service


def verify(
    target: Target,
    projection: Annotated[
        str | None,
        typer.Argument(metavar="PROJECTION", help="Its name; all of the service without one.", show_default=False),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Check that read models hold exactly their logs' events, once.

    Each log is read again up to the projection's checkpoints, and count and digest of its events are compared with
    what the checkpoints say, group by group. Where they differ, the events are named as far as sums can tell. Nothing
    is changed, and workers may go on meanwhile. The exit code is 1 if a difference was found.

    \b
        evsync verify shop.orders:orders
        evsync verify shop.orders:orders customers --json
    """
    with reporting(debug):
        reports = asyncio.run(_verify(load(target), projection))
        if json:
            print_json({"ok": all(r.ok for r in reports), "projections": [_as_object(r) for r in reports]})
        else:
            for report in reports:
                _show(report)
        if not all(r.ok for r in reports):
            raise typer.Exit(1)


async def _verify(service: Service, name: str | None) -> list[VerifyReport]:
    chosen = [projection_of(service, name)] if name is not None else stored_projections(service)
    if not chosen:
        raise ConfigurationError(f"service {service.name!r} has no projection whose read model is stored")
    async with service.inspect(followers=True):
        reports = []
        for projection in chosen:
            with progress(f"Reading for {projection.name}") as advance:
                reports.append(await verify_projection(service.runtime, projection, advance))
        return reports


def _show(report: VerifyReport) -> None:
    for log in report.logs:
        print_lines(plain(f"{report.projection}, log {log.log}: {_verdict(log)}"))
        for finding in log.findings:
            print_lines(plain(f"  {finding.text}"))
            if finding.events:
                print_lines(_events(finding))
    if report.parked or report.skipped:
        print_lines(
            plain(f"{report.projection}: of these, {report.parked:,} are parked and {report.skipped:,} were skipped")
        )
    if not report.logs:
        print_lines(plain(f"{report.projection}: nothing was applied yet"))


def _verdict(log: LogReport) -> str:
    end = max((g.position for g in log.groups), default=0)
    if log.ok:
        events = counted(log.events, "event")
        return f"exactly the {events} up to position {end}, once" if log.groups else "nothing applied yet"
    if any(f.kind == "unread" for f in log.findings):
        return f"NOT known up to position {end}: the log cannot be read so far"
    wrong = sum(not g.ok for g in log.groups)
    groups = f"{wrong} of {len(log.groups)} groups differ" if wrong else "the sums are right"
    return f"NOT exactly the {counted(log.events, 'event')} up to position {end}; {groups}"


def _events(finding: Finding) -> Any:
    rows: Sequence[Sequence[object]] = [(e.position, e.type, e.stream, e.version) for e in finding.events]
    if more := len(finding.positions) - len(rows):
        rows = [*rows, ("…", f"and {more:,} more", "", "")]
    return table(("position", "type", "stream", "version"), rows, right=("position",))


def _as_object(report: VerifyReport) -> dict[str, Any]:
    return {**asdict(report), "ok": report.ok, "logs": [_log_as_object(log) for log in report.logs]}


def _log_as_object(log: LogReport) -> dict[str, Any]:
    return {
        **asdict(log),
        "ok": log.ok,
        "events": log.events,
        "groups": [
            {**asdict(g), "ok": g.ok, "digest": f"{g.digest:016x}", "digest_of_log": f"{g.digest_of_log:016x}"}
            for g in log.groups
        ],
        "findings": [_finding_as_object(f, log.log) for f in log.findings],
    }


def _finding_as_object(finding: Finding, log: str) -> dict[str, Any]:
    events = [as_object(of_log(e, log)) for e in finding.events]
    return {**asdict(finding), "positions": list(finding.positions), "events": events}
