"""`evsync archive`: what the archive makes superfluous elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from typing import Annotated

import typer

from evsync.archive.policy import BackupPolicy
from evsync.archive.targets import opened_targets
from evsync.cli.loading import load
from evsync.cli.options import Debug, Json, Target, Yes
from evsync.cli.stream import connected, mirrored, tell
from evsync.cli.terminal import agree, counted, plain, print_json, print_lines, progress, reporting, say
from evsync.errors import ConfigurationError
from evsync.jetstream.trimming import trim_stream
from evsync.operations.backups import policy_of, shards_of
from evsync.operations.trimming import TrimReport, check_end, trim_store, verified_copies
from evsync.ports import Progress
from evsync.service import Service

app = typer.Typer(name="archive", help="Give up elsewhere what the archive holds.", no_args_is_help=True)


@app.command()
def trim(
    target: Target,
    to: Annotated[int, typer.Option(min=1, metavar="N", help="The last position that leaves.")],
    store: Annotated[
        bool, typer.Option("--store", help="Trim the service's store, not its stream: what snapshots hold leaves it.")
    ] = False,
    yes: Yes = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Take the beginning of a log out of its stream, or its store.

    Refused unless as many copies as the BackupPolicy needs hold it; they are read from end to end. The stream is made
    anew, and the rest published into it; consumers that are farther back need archives= among their settings.

    With --store, a store in SQLite or PostgreSQL gives up the events that an aggregate's snapshot holds, and those of
    aggregates that were discarded. Everything else stays, and whoever asks for what is gone is given it from the
    archive, slowly.

    \b
        evsync archive trim shop.users:users --to 1000000
        evsync archive trim shop.users:users --to 1000000 --store
    """
    with reporting(debug):
        service = load(target)
        if len(shards := shards_of(service)) > 1:
            raise ConfigurationError(
                f"service {service.name!r} has {len(shards)} shards ({', '.join(shards)}), and what shards have is not "
                "trimmed in this version: a slot that moves takes its whole history along"
            )
        policy = policy_of(service)  # before anybody is asked
        if not yes:
            say(
                f"Events up to position {to} will leave the store of service {service.name} for its archive alone."
                if store
                else f"The stream of service {service.name} will be made anew, beginning at position {to + 1}."
            )
            agree()
        if store:
            _show(asyncio.run(_trim_store(service, policy, to)), json)
        elif not asyncio.run(_trim(service, policy, to, json)):
            raise typer.Exit(1)


async def _trim(service: Service, policy: BackupPolicy, position: int, json: bool) -> bool:
    async with service.inspect(), opened_targets(policy.targets) as targets:
        (log,) = mirrored(service).values()
        if position > (head := await log.head()):
            raise ConfigurationError(
                f"log {log.identity.name!r} ends at position {head}, before {position}; the stream was not touched"
            )
        connection = await connected(service)
        with ExitStack() as bars:
            await verified_copies(log, targets, policy.copies, position, _bars(bars))
        with progress("Publishing") as advance:
            made = await trim_stream(log, connection, position, advance)
        return tell(log, made, f"beyond position {position} published anew and compared with the log", json)


async def _trim_store(service: Service, policy: BackupPolicy, position: int) -> TrimReport:
    async with service.inspect(), opened_targets(policy.targets) as targets:
        runtime = service.runtime
        await check_end(runtime.store, position)
        with ExitStack() as bars:
            copies = await verified_copies(runtime.store, targets, policy.copies, position, _bars(bars))
        with progress("Comparing") as advance:
            return await trim_store(runtime.store, copies, position, service.codec, runtime.snapshots, advance)


def _bars(stack: ExitStack) -> Callable[[str], Progress]:
    """A progress bar for each thing that is begun, the one before ended."""

    def begin(what: str) -> Progress:
        stack.close()
        return stack.enter_context(progress(what))

    return begin


def _show(report: TrimReport, json: bool) -> None:
    if json:
        print_json(asdict(report))
        return
    print_lines(
        plain(
            f"log {report.log}: trimmed up to position {report.position}; {counted(report.dropped, 'event')} of "
            f"{counted(report.streams, 'stream')} left the store"
        ),
        f"{report.kept:,} streams keep their older events: there is no snapshot that holds them",
    )
