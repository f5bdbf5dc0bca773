"""`evsync parked`: streams that a projection has set aside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any

import typer

from evsync.cli.events import as_object, of_log
from evsync.cli.loading import load
from evsync.cli.options import Debug, Json, ProjectionName, Target
from evsync.cli.terminal import as_utc, counted, plain, print_json, print_lines, reporting, say, table
from evsync.codec.json_form import as_json
from evsync.errors import ConfigurationError, EvsyncError, Parked
from evsync.projections import SqlModel
from evsync.projections.models.parked_rows import ParkedSummary
from evsync.projections.models.parked_streams import ParkedStreams
from evsync.projections.parking import ParkedEvent
from evsync.records import to_datetime
from evsync.service import Service

app = typer.Typer(
    name="parked",
    help="Look at streams that were set aside, and set them going.",
    no_args_is_help=True,
)

Stream = Annotated[str, typer.Argument(metavar="STREAM", show_default=False, help="Id of the aggregate.")]
Of = Annotated[
    str | None,
    typer.Option("--of", metavar="SERVICE", help="Whose stream, where streams of several services have this id."),
]


@app.command("list")
def list_(
    target: Target,
    projection: Annotated[
        str | None, typer.Argument(metavar="PROJECTION", show_default=False, help="Only this projection.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show which streams are parked, since when and why.

    A stream is parked when one of its events could not be applied: that event and all later ones of the stream wait, in
    order, and other streams go on. Only projections with then="park" do that.

    \b
        evsync parked list shop.orders:orders
        evsync parked list shop.orders:orders customers --json
    """
    with reporting(debug):
        found = asyncio.run(_list(load(target), projection))
        if json:
            for name, summaries, _ in found:
                for summary in summaries:
                    print_json(_as_object(name, summary))
            return
        rows = [
            (name, s.service, s.stream, s.events, s.first.event.position, s.first.event.type,
             as_utc(_since(s)), s.first.reason or "")
            for name, summaries, _ in found
            for s in summaries
        ]  # fmt: skip
        headings = ("projection", "service", "stream", "events", "position", "type", "since", "reason")
        skipped = [plain(f"{name}: {counted(n, 'event')} skipped for good") for name, _, n in found if n]
        print_lines(
            *([table(headings, rows, right=("events", "position"))] if rows else ["nothing is parked"]), *skipped
        )


@app.command()
def show(
    target: Target, projection: ProjectionName, stream: Stream, of: Of = None, json: Json = False, debug: Debug = False
) -> None:
    """Show the parked events of one stream, in order, with their data.

    \b
        evsync parked show shop.orders:orders customers 5b5f0ad0-…
    """
    with reporting(debug):
        events = asyncio.run(_show(load(target), projection, stream, of))
        if json:
            for parked in events:
                print_json(_event(parked))
            return
        rows = [
            (e.position.number, e.version, e.type, as_json(e.data), parked.reason or "behind the first")
            for parked in events
            for e in [of_log(parked.event, parked.log)]
        ]
        print_lines(table(("position", "version", "type", "data", "reason"), rows, right=("position", "version")))


@app.command()
def retry(
    target: Target,
    projection: ProjectionName,
    stream: Annotated[
        str | None, typer.Argument(metavar="STREAM", show_default=False, help="Id of the aggregate.")
    ] = None,
    of: Of = None,
    every: Annotated[bool, typer.Option("--all", help="All streams, the one that was parked first in front.")] = False,
    debug: Debug = False,
) -> None:
    """Apply the parked events of a stream, with mended handlers.

    All of them in one transaction, in order; then the stream is free again. Where one still fails nothing changes,
    and the exit code is 1. Workers may run meanwhile: they need the mended handlers too, for what comes next.

    \b
        evsync parked retry shop.orders:orders customers 5b5f0ad0-…
        evsync parked retry shop.orders:orders customers --all
    """
    with reporting(debug):
        if (stream is None) != every:
            raise ConfigurationError("say which stream, or --all")
        failed = asyncio.run(_retry(load(target), projection, stream, of))
        for error in failed:
            say(f"Error: {error}", style="red")
        if failed:
            raise typer.Exit(1)


@app.command()
def skip(
    target: Target,
    projection: ProjectionName,
    stream: Stream,
    of: Of = None,
    every: Annotated[bool, typer.Option("--all", help="All parked events of the stream, not only the first.")] = False,
    debug: Debug = False,
) -> None:
    """Give up on the first parked event of a stream, for good.

    The read model will never show it. A record of it is kept, and `evsync parked list` counts it. The rest of the
    stream stays parked: go on with `evsync parked retry`.

    \b
        evsync parked skip shop.orders:orders customers 5b5f0ad0-…
    """
    with reporting(debug):
        n, left = asyncio.run(_skip(load(target), projection, stream, of, every))
        rest = f"{left} still parked: `evsync parked retry` applies the rest" if left else "it is free again"
        print_lines(plain(f"stream {stream}: {counted(n, 'event')} skipped, {rest}"))


@asynccontextmanager
async def _opened(service: Service, projection: str) -> AsyncIterator[ParkedStreams]:
    if projection not in (known := _names(service)):
        raise ConfigurationError(
            f"service {service.name!r} has no projection {projection!r} that keeps tables; it has: "
            f"{', '.join(known) or 'none'}"
        )
    async with service.inspect(followers=True):
        yield service.runtime.projections[projection].parked_streams


def _names(service: Service) -> list[str]:
    return [p.name for p in service.projections if isinstance(p.model, SqlModel)]


async def _list(service: Service, projection: str | None) -> list[tuple[str, Sequence[ParkedSummary], int]]:
    found = []
    for name in _names(service) if projection is None else [projection]:
        async with _opened(service, name) as streams:
            found.append((name, *await streams.summaries()))
    return found


async def _show(service: Service, projection: str, stream: str, of: str | None) -> Sequence[ParkedEvent]:
    async with _opened(service, projection) as streams:
        return await streams.events(await _owner(streams, stream, of), stream)


async def _retry(service: Service, projection: str, stream: str | None, of: str | None) -> list[EvsyncError]:
    failed: list[EvsyncError] = []
    async with _opened(service, projection) as streams:
        if stream is not None:
            chosen = [(await _owner(streams, stream, of), stream)]
        else:
            chosen = [(s.service, s.stream) for s in (await streams.summaries())[0] if of in (None, s.service)]
        for owner, name in chosen:
            try:
                n = await streams.retry(owner, name)
            except Parked as e:
                failed.append(e)
            else:
                print_lines(plain(f"stream {name}: {counted(n, 'event')} applied, it is free again"))
    return failed


async def _skip(service: Service, projection: str, stream: str, of: str | None, every: bool) -> tuple[int, int]:
    async with _opened(service, projection) as streams:
        owner = await _owner(streams, stream, of)
        before = len(await streams.events(owner, stream))
        n = await streams.skip(owner, stream, every=every)
        return n, before - n


async def _owner(streams: ParkedStreams, stream: str, of: str | None) -> str:
    """The service whose stream is meant."""
    owners = [s.service for s in (await streams.summaries())[0] if s.stream == stream]
    if of is not None:
        return of
    if len(owners) > 1:
        raise ConfigurationError(f"stream {stream!r} is parked for {' and '.join(owners)}: say which with --of")
    if not owners:
        raise ConfigurationError(f"stream {stream!r} is not parked; `evsync parked list` shows which are")
    return owners[0]


def _as_object(projection: str, summary: ParkedSummary) -> dict[str, Any]:
    return {
        "projection": projection,
        "service": summary.service,
        "stream": summary.stream,
        "group": summary.group,
        "events": summary.events,
        "since": as_utc(_since(summary)),
        "first": _event(summary.first),
    }


def _since(summary: ParkedSummary) -> datetime:
    return to_datetime(int(summary.since * 1e6))


def _event(parked: ParkedEvent) -> dict[str, Any]:
    return {**as_object(of_log(parked.event, parked.log)), "reason": parked.reason}
