"""`evsync stream`: the JetStream stream that mirrors a service's log."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

import typer

from evsync.cli.loading import load
from evsync.cli.options import Debug, Json, Target
from evsync.cli.terminal import plain, print_json, print_lines, progress, reporting, say
from evsync.errors import ConfigurationError
from evsync.jetstream import streams
from evsync.jetstream.connection import Connection
from evsync.jetstream.rebuild import rebuild_stream
from evsync.jetstream.verification import StreamReport, check_stream
from evsync.opening import is_on_nats
from evsync.service import Service

CONNECT_S = 3.0

app = typer.Typer(
    name="stream", help="Check the stream that mirrors a service's log, or make it anew.", no_args_is_help=True
)


@app.command()
def check(target: Target, json: Json = False, debug: Debug = False) -> None:
    """Compare a service's stream with its log.

    The whole stream is read, and every message compared with the event at its position. Nothing is changed, and the
    service may run meanwhile. The exit code is 1 if a difference was found.

    \b
        evsync stream check shop.users:users
    """
    with reporting(debug):
        report = asyncio.run(_check(load(target)))
        tell(report, "compared with the log", json)


@app.command()
def rebuild(
    target: Target,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before the stream is deleted.")] = False,
    allow_loss: Annotated[
        bool, typer.Option("--allow-loss", help="Also where the stream holds events that the log does not have.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a service's stream anew from its log.

    The stream is deleted, the whole log published into a new one, and the two are compared. The log is only read.
    Consumers wait meanwhile and go on where they were; so does a relay that runs or has halted.
    May be broken off and begun again. Refused where the stream may hold the only copy of events.

    \b
        evsync stream rebuild shop.users:users
        evsync stream rebuild shop.users:users --yes
    """
    with reporting(debug):
        service = load(target)
        if not yes:
            _ask(asyncio.run(_planned(service)))  # outside of the event loop: a connection would not outlive the wait
        report = asyncio.run(_rebuild(service, allow_loss))
        tell(report, "published anew and compared with the log", json)


async def _check(service: Service) -> StreamReport:
    async with service.inspect():
        connection = await connected(service)
        with progress("Comparing") as advance:
            return await check_stream(service.runtime.store, connection, advance)


async def _rebuild(service: Service, allow_loss: bool) -> StreamReport:
    async with service.inspect():
        connection = await connected(service)
        with progress("Publishing") as advance:
            return await rebuild_stream(service.runtime.store, connection, advance, allow_loss=allow_loss)


async def _planned(service: Service) -> str | None:
    """What a rebuild would delete, and what it would put there; None if nothing would be deleted."""
    async with service.inspect():
        connection, log = await connected(service), service.runtime.store
        old = await streams.info(connection, streams.stream_name(log.identity))
        old = old or await streams.occupant(connection, log.identity)
        if old is None or old.last < old.first:
            return None
        return (
            f"Stream {old.name} at {connection.settings.shown} holds positions {old.first} to {old.last}. It will be "
            f"deleted, and the {await log.head()} events of log {log.identity.name} published into a new one."
        )


def _ask(planned: str | None) -> None:
    if planned is None:
        return
    say(planned)
    if not sys.stdin.isatty():
        raise ConfigurationError("nothing was done: there is no terminal to ask at. Give --yes to agree beforehand")
    typer.confirm("Delete it?", abort=True, err=True)


async def connected(service: Service) -> Connection:
    """The service's connection. Raises ConfigurationError where it has none, or where the stream is its store."""
    if is_on_nats(str(service.runtime.settings["store"])):
        raise ConfigurationError(
            f"the events of service {service.name!r} are in a stream and nowhere else: there is no log to compare it "
            "with, or to make it anew from"
        )
    connection = service.runtime.connection
    if connection is None:
        raise ConfigurationError(
            f"service {service.name!r} has no NATS server: set EVSYNC_NATS, such as nats://127.0.0.1:4222"
        )
    await connection.ready(CONNECT_S)
    return connection


def tell(report: StreamReport, done: str, json: bool) -> None:
    """Print what became of a stream; exit with 1 if it is not as its log."""
    if json:
        print_json(_as_object(report))
    else:
        print_lines(
            f"{report.stream}: {report.compared} messages {done}, "
            + (f"{len(report.problems)} problems" if report.problems else "no difference"),
            f"positions {report.first} to {report.last}; the log's head is {report.head}",
            *(plain(str(problem)) for problem in report.problems),
        )
    if not report.ok:
        raise typer.Exit(1)


def _as_object(report: StreamReport) -> dict[str, Any]:
    return {
        "stream": report.stream,
        "ok": report.ok,
        "first": report.first,
        "last": report.last,
        "head": report.head,
        "compared": report.compared,
        "problems": [{"error": type(p).__name__, "text": str(p)} for p in report.problems],
    }
