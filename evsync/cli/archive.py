"""`evsync archive`: what the archive makes superfluous elsewhere."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from evsync.archive.copies import Copy, verify_copy
from evsync.archive.targets import opened_targets
from evsync.cli.backup import policy_of, shard_of
from evsync.cli.loading import load
from evsync.cli.options import Debug, Json, Target
from evsync.cli.stream import connected, mirrored, tell
from evsync.cli.terminal import progress, reporting, say
from evsync.errors import ArchiveError, ArchiveIncomplete, ConfigurationError
from evsync.jetstream.trimming import trim_stream
from evsync.service import Service

app = typer.Typer(name="archive", help="Give up elsewhere what the archive holds.", no_args_is_help=True)


@app.command()
def trim(
    target: Target,
    to: Annotated[int, typer.Option(min=1, metavar="N", help="The last position that leaves the stream.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before the stream is made anew.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Take the beginning of a service's log out of its JetStream stream.

    Refused unless as many copies as the BackupPolicy needs hold it; they are read from end to end. The store keeps
    everything: aggregates are made of their events, however old. The stream is made anew, and the rest published into
    it; consumers that are farther back need archives= among their settings.

    \b
        evsync archive trim shop.users:users --to 1000000
    """
    with reporting(debug):
        service = load(target)
        shard_of(service)
        if not yes:
            say(f"The stream of service {service.name} will be made anew, beginning at position {to + 1}.")
            if not sys.stdin.isatty():
                raise ConfigurationError("nothing was done: there is no terminal to ask at. Give --yes to agree")
            typer.confirm("Go on?", abort=True, err=True)
        if not asyncio.run(_trim(service, to, json)):
            raise typer.Exit(1)


async def _trim(service: Service, position: int, json: bool) -> bool:
    policy = policy_of(service)
    async with service.inspect(), opened_targets(policy.targets) as targets:
        (log,) = mirrored(service).values()
        if position > (head := await log.head()):
            raise ConfigurationError(
                f"log {log.identity.name!r} ends at position {head}, before {position}; the stream was not touched"
            )
        connection = await connected(service)
        whole: list[str] = []
        found: list[str] = []
        for place in targets:
            try:
                with progress(f"Reading {place.url}") as advance:
                    report = await verify_copy(Copy(place, log.identity.name, log.identity.incarnation), advance)
            except ArchiveError as e:
                found.append(str(e))
                continue
            found += [str(problem) for problem in report.problems]
            if report.last >= position:
                whole.append(place.url)
        if len(whole) < policy.copies:
            raise ArchiveIncomplete(
                f"positions up to {position} are whole in {len(whole)} places ({', '.join(whole) or 'none'}), and the "
                f"policy needs {policy.copies}; the stream was not touched. Make a backup, or mend the others. "
                + " ".join(found)
            )
        with progress("Publishing") as advance:
            made = await trim_stream(log, connection, position, advance)
        return tell(log, made, f"beyond position {position} published anew and compared with the log", json)
