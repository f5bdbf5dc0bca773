"""`evsync rebuild`: a read model made anew, while the old one is in use."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated

import typer

from evsync.cli.loading import load
from evsync.cli.options import Debug, Json, ProjectionName, Target
from evsync.cli.terminal import plain, print_json, print_lines, progress, reporting, say
from evsync.definition import projection_of
from evsync.errors import redacted
from evsync.operations.rebuilding import rebuild as rebuild_model
from evsync.projections.rebuilding.rebuild import GRACE_S, RebuildReport, drop_old_copies
from evsync.service import Service


def rebuild(
    target: Target,
    projection: ProjectionName,
    grace: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="How long the old copy is kept afterwards.")
    ] = GRACE_S,
    anew: Annotated[bool, typer.Option("--anew", help="Do not go on with what an earlier attempt has filled.")] = False,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="Give up when nothing has come for so long; 0: never.")
    ] = 60.0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a read model anew from history, while it is in use.

    A second copy of its tables is filled by the code as it is now, and takes the place of the old one in a single
    transaction when it shows as much; workers go on with it. Whoever reads meets the one or the other, whole. If it is
    broken off, give the same command again: it goes on where it was, as long as the code is the same. The old copy is
    dropped when its grace is over, by this command, or by whoever runs the service if this has ended. What it has to
    wait for, such as a broker that is away, is said.

    \b
        evsync rebuild shop.orders:orders customers
        evsync rebuild shop.orders:orders customers --grace 0
    """
    with reporting(debug):
        asyncio.run(_rebuild(load(target), projection, grace, anew, timeout or None, json))


async def _rebuild(
    service: Service, name: str, grace_s: float, anew: bool, timeout_s: float | None, json: bool
) -> None:
    projection = projection_of(service, name)
    async with service.inspect(followers=True):
        runtime = service.runtime
        with progress(f"Filling {name}", long=True) as advance:
            report = await rebuild_model(
                service, projection, runtime.views, runtime.sources, anew=anew, grace_s=grace_s,
                timeout_s=timeout_s, advance=advance,
                tell=lambda reason: say(f"Waiting: {redacted(reason)}", "yellow"),
            )  # fmt: skip
        if json:
            print_json(asdict(report), flush=True)
        else:
            print_lines(plain(_told(report)), flush=True)
        if grace_s:
            say(f"The old copy is dropped in {grace_s:g} s; Ctrl-C leaves that to whoever runs the service")
            await asyncio.sleep(grace_s + 0.01)
        if runtime.views is not None:
            await drop_old_copies(runtime.views)


def _told(report: RebuildReport) -> str:
    gone_on = ", going on with an earlier attempt" if report.resumed else ""
    return (
        f"{report.projection} version {report.version}: {report.events:,} events applied in {report.seconds:.1f} s"
        f"{gone_on}; the new model is in place. Workers stood still for {report.frozen_s * 1_000:.0f} ms"
    )
