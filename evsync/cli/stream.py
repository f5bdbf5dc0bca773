"""`evsync stream`: the JetStream stream that mirrors a service's log."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Annotated

import typer

from evsync.cli.loading import load
from evsync.cli.options import Debug, Json, OneShard, Target, Yes, of_shards
from evsync.cli.terminal import agree, counted, plain, print_json, print_lines, progress, reporting, say
from evsync.errors import ConfigurationError
from evsync.jetstream import streams
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.rebuild import rebuild_stream
from evsync.jetstream.stream_settings import stream_name
from evsync.jetstream.verification import StreamReport, check_stream
from evsync.ports import Progress, Store
from evsync.service import Service
from evsync.urls import is_on_nats, urls_by_shard

CONNECT_S = 3.0

Work = Callable[[Store, Connection, Progress], Awaitable[StreamReport]]

app = typer.Typer(
    name="stream", help="Check the stream that mirrors a service's log, or make it anew.", no_args_is_help=True
)


@app.command()
def check(target: Target, shard: OneShard = None, json: Json = False, debug: Debug = False) -> None:
    """Compare a service's stream with its log.

    The whole stream is read, and every message compared with the event at its position. Nothing is changed, and the
    service may run meanwhile. The exit code is 1 if a difference was found.

    \b
        evsync stream check shop.users:users
    """
    with reporting(debug):
        done = "compared with the log"
        if not asyncio.run(_each(load(target), shard, json, check_stream, "Comparing", done)):
            raise typer.Exit(1)


@app.command()
def rebuild(
    target: Target,
    yes: Yes = False,
    allow_loss: Annotated[
        bool, typer.Option("--allow-loss", help="Also where the stream holds events that the log does not have.")
    ] = False,
    shard: OneShard = None,
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
        if not yes:  # outside of the event loop: a connection would not outlive the wait
            _ask(asyncio.run(_planned(service, shard)))
        work, done = partial(rebuild_stream, allow_loss=allow_loss), "published anew and compared with the log"
        if not asyncio.run(_each(service, shard, json, work, "Publishing", done)):
            raise typer.Exit(1)


async def _each(service: Service, shard: str | None, json: bool, work: Work, doing: str, done: str) -> bool:
    """Do this to every stream; whether all of them are as their logs then."""
    same = True
    async with service.inspect():
        logs, connection = mirrored(service, shard), await connected(service)
        for log in logs.values():
            with progress(f"{doing} {log.identity.name}") as advance:
                report = await work(log, connection, advance)
            same &= tell(log, report, done, json)
    return same


async def _planned(service: Service, shard: str | None) -> list[str]:
    """What a rebuild would delete, and what it would put there."""
    planned = []
    async with service.inspect():
        logs, connection = mirrored(service, shard), await connected(service)
        for log in logs.values():
            old = await streams.info(connection, stream_name(log.identity))
            old = old or await streams.occupant(connection, log.identity)
            if old is not None and old.last >= old.first:
                planned.append(
                    f"Stream {old.name} at {connection.settings.shown} holds positions {old.first} to {old.last}. It "
                    f"will be deleted, and the {await log.head()} events of log {log.identity.name} published into a "
                    "new one."
                )
    return planned


def _ask(planned: list[str]) -> None:
    if not planned:
        return
    for text in planned:
        say(text)
    agree("Delete it?" if len(planned) == 1 else "Delete them?")


def mirrored(service: Service, shard: str | None = None) -> Mapping[str, Store]:
    """The logs that a stream mirrors, by shard. Raises ConfigurationError where the stream is the log."""
    stores, urls = service.runtime.stores, urls_by_shard(service.runtime.settings["store"])
    chosen = of_shards(stores, shard)
    found = {name: store for name, store in chosen.items() if not is_on_nats(urls[name])}
    if found:
        return found
    whose = f"service {service.name!r}" if len(stores) == 1 else f"shard {', '.join(chosen)} of {service.name!r}"
    raise ConfigurationError(
        f"the events of {whose} are in a stream and nowhere else: there is no log to compare it with, or to make it "
        "anew from"
    )


async def connected(service: Service) -> Connection:
    """The service's connection. Raises ConfigurationError where it has none."""
    connection = service.runtime.connection
    if connection is None:
        raise ConfigurationError(
            f"service {service.name!r} has no NATS server: set EVSYNC_NATS, such as nats://127.0.0.1:4222"
        )
    await connection.ready(CONNECT_S)
    return connection


def tell(log: Store, report: StreamReport, done: str, json: bool) -> bool:
    """Print what became of a log's stream; whether it is as its log."""
    if json:
        problems = [{"error": type(p).__name__, "text": str(p)} for p in report.problems]
        print_json({"log": log.identity.name, "ok": report.ok, **asdict(report), "problems": problems})
    else:
        print_lines(
            f"{report.stream}: {report.compared} messages {done}, "
            + (counted(len(report.problems), "problem") if report.problems else "no difference"),
            f"positions {report.first} to {report.last}; the log's head is {report.head}",
            *(plain(str(problem)) for problem in report.problems),
        )
    return report.ok
