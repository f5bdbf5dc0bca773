"""`evsync restore`: a log from its archive."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated

import typer

from evsync.archive.marks import find_mark
from evsync.archive.restore import Archive, RestoreReport, Until
from evsync.archive.targets import opened_targets
from evsync.cli.backup import log_of, policy_of
from evsync.cli.loading import load
from evsync.cli.options import Debug, Json, Target, parse_time
from evsync.cli.stream import CONNECT_S
from evsync.cli.tail import as_utc
from evsync.cli.terminal import plain, print_json, print_lines, progress, reporting
from evsync.config import broker_files, broker_url
from evsync.errors import ConfigurationError, redacted
from evsync.jetstream.connection import Connection
from evsync.jetstream.settings import NatsSettings
from evsync.operations.recovery import restore_log
from evsync.records import to_datetime, to_time_us
from evsync.service import Service


def restore(
    target: Target,
    to: Annotated[str, typer.Option(metavar="URL", help="The new store, such as sqlite:///restored.db.")],
    position: Annotated[int | None, typer.Option(min=0, metavar="N", help="Only up to this position.")] = None,
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only as it was then, such as 2026-01-31T12:00:00Z.")
    ] = None,
    mark: Annotated[
        str | None, typer.Option(metavar="NAME", help="To this mark, which `evsync backup mark` has made.")
    ] = None,
    places: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="PLACE", help="Read this place, not those of the policy. May be repeated."),
    ] = None,
    incarnation: Annotated[
        str | None, typer.Option(metavar="ID", help="This incarnation, not the one archived last.")
    ] = None,
    from_stream: Annotated[
        bool, typer.Option("--from-stream", help="Take what the archive does not have from the stream on EVSYNC_NATS.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Restore a service's log from its archive into a new store.

    Into a store of any kind, from any copy; a segment that is damaged in one is taken from another. Stop the service
    first. The log goes on as a new incarnation: who follows it and had not come farther goes on by itself, who had
    stops with an error that says what mends it. An existing store is never touched. May be broken off and begun again.

    \b
        evsync restore shop.users:users --to sqlite:///restored.db
        evsync restore shop.users:users --at 2026-01-31T12:00:00Z \\
            --to postgresql://localhost/shop?schema=users2
        evsync restore shop.users:users --to sqlite:///restored.db --from-stream
        evsync restore shop.users:users --to sqlite:///restored.db --mark monday
    """
    if mark is not None and (position is not None or at is not None or incarnation is not None or from_stream):
        raise typer.BadParameter(
            "a mark says itself up to where, and of which incarnation: leave --position, --at, --incarnation and "
            "--from-stream out",
            param_hint="--mark",
        )
    until = Until(position=position, time_us=to_time_us(parse_time(at, "--at")) if at is not None else None)
    with reporting(debug):
        report = asyncio.run(_restore(load(target), to, until, mark, places or [], incarnation, from_stream))
    if json:
        print_json(asdict(report))
        return
    stream = f", {report.from_stream:,} of them from the stream" if report.from_stream else ""
    lines = [
        f"log {report.log}: {report.events:,} events of incarnation {report.parent} restored{stream}, up to position "
        f"{report.position}",
    ]
    if report.events:
        lines.append(f"the latest event is of {as_utc(to_datetime(report.latest_us))}")
    lines += [
        f"it goes on as incarnation {report.incarnation} in {redacted(to)}, in {report.seconds:.1f} s",
        *(f"worked around: {e}" for e in report.worked_around),
    ]
    print_lines(*map(plain, lines))


async def _restore(
    service: Service,
    to: str,
    until: Until,
    mark: str | None,
    places: list[str],
    incarnation: str | None,
    from_stream: bool,
) -> RestoreReport:
    log = log_of(service)
    connection = None
    async with opened_targets(places or policy_of(service).targets) as targets:
        marked = (await find_mark(targets, log, mark)).logs[log] if mark is not None else None
        archive = await Archive.find(targets, log, marked.incarnation if marked is not None else incarnation)
        try:
            if from_stream:
                connection = await _connect(service)
            with progress("Restoring") as advance:
                return await restore_log(archive, to, until, marked=marked, connection=connection, tell=advance)
        finally:
            if connection is not None:
                await connection.close()


async def _connect(service: Service) -> Connection:
    url = broker_url()
    if url is None:
        raise ConfigurationError("--from-stream needs a NATS server: set EVSYNC_NATS, such as nats://127.0.0.1:4222")
    connection = await Connection.open(NatsSettings(url, **broker_files()), service.name)
    try:
        await connection.ready(CONNECT_S)
    except BaseException:
        await connection.close()
        raise
    return connection
