"""`evsync restore`: a log, or those of all shards, from the archive."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Annotated, NamedTuple

import typer

from evsync.archive.marks import MarkedLog, find_mark
from evsync.archive.restore import RestoreReport, Until
from evsync.archive.targets import opened_targets
from evsync.cli.loading import load
from evsync.cli.options import Debug, Json, Target, parse_time
from evsync.cli.stream import CONNECT_S
from evsync.cli.terminal import as_utc, plain, print_json, print_lines, progress, reporting
from evsync.config import broker_files, broker_url
from evsync.errors import ConfigurationError, redacted
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.settings import NatsSettings
from evsync.operations.backups import policy_of, shards_of
from evsync.operations.recovery import archives_of, restore_logs, restore_shard
from evsync.ports import BackupTarget
from evsync.records import to_datetime, to_time_us
from evsync.service import Service
from evsync.urls import urls_by_shard


def restore(
    target: Target,
    to: Annotated[
        list[str],
        typer.Option(
            metavar="[SHARD=]URL",
            help="The new store, such as sqlite:///restored.db. Of several shards one each, such as a=sqlite:///a.db.",
        ),
    ],
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

    The shards of a service are restored together: to a mark, or up to where their logs fit, so that each slot is in one
    of them with its whole history. Or one of them alone, beside the others that live on: it gets back, too, what these
    hold of it that its archive has not, and from then on they take nothing of the lost store.

    \b
        evsync restore shop.users:users --to sqlite:///restored.db
        evsync restore shop.users:users --at 2026-01-31T12:00:00Z \\
            --to postgresql://localhost/shop?schema=users2
        evsync restore shop.users:users --to sqlite:///restored.db --from-stream
        evsync restore shop.users:users --to sqlite:///restored.db --mark monday
        evsync restore shop.users:users --to a=sqlite:///a2.db \\
            --to "b=postgresql://localhost/shop?schema=b2"
        evsync restore shop.users:users --to a=sqlite:///a2.db
    """
    until = Until(position=position, time_us=to_time_us(parse_time(at, "--at")) if at is not None else None)
    if mark is not None and (until != Until() or incarnation is not None or from_stream):
        raise typer.BadParameter(
            "a mark says itself up to where, and of which incarnation: leave --position, --at, --incarnation and "
            "--from-stream out",
            param_hint="--mark",
        )
    with reporting(debug):
        service = load(target)
        stores = _stores(service, to)
        if len(stores) > 1 and (position is not None or incarnation is not None):
            raise ConfigurationError(
                f"--position and --incarnation are of one log, and service {service.name!r} has {len(stores)} shards: "
                "nothing was restored. Use --mark or --at, which are of all"
            )
        reports = asyncio.run(_restore(service, stores, until, _From(places, mark, incarnation, from_stream)))
    for shard, report in reports.items():
        if json:
            print_json(asdict(report))
        else:
            _show(report, stores[shard])


class _From(NamedTuple):
    """What is restored: see the options of these names."""

    places: list[str] | None
    mark: str | None
    incarnation: str | None
    stream: bool


def _show(report: RestoreReport, to: str) -> None:
    stream = f", {report.from_stream:,} of them from the stream" if report.from_stream else ""
    restored = f"{report.events:,} events of incarnation {report.parent} restored" if report.parent else "no event"
    lines = [f"log {report.log}: {restored}{stream}, up to position {report.position}"]
    if report.from_shards:
        lines.append(f"{report.from_shards:,} later events are brought back from the other shards, which hold them")
    if report.left_out:
        lines.append(f"{report.left_out:,} later events are left out: other shards' logs do not reach as far")
    if report.events:
        lines.append(f"the latest event is of {as_utc(to_datetime(report.latest_us))}")
    lines += [
        f"it goes on as incarnation {report.incarnation} in {redacted(to)}, in {report.seconds:.1f} s",
        *(f"worked around: {e}" for e in report.worked_around),
    ]
    print_lines(*map(plain, lines))


def _stores(service: Service, to: Sequence[str]) -> dict[str, str]:
    """The new store of each shard. Raises ConfigurationError unless each has one."""
    shards = shards_of(service)
    found: dict[str, str] = {}
    for given in to:
        named = _SHARD.match(given)
        if named is None and len(shards) > 1:
            raise ConfigurationError(
                f"service {service.name!r} has {len(shards)} shards ({', '.join(shards)}), and --to {redacted(given)} "
                f"does not say which: {_EACH.format(' '.join(f'--to {s}=URL' for s in shards))}"
            )
        shard, url = (named[1], given[named.end() :]) if named is not None else (shards[0], given)
        if shard in found:
            raise ConfigurationError(f"--to names two stores for shard {shard!r}: nothing was restored")
        found[shard] = url
    unknown = [shard for shard in found if shard not in shards]
    if unknown or (len(found) > 1 and len(found) < len(shards)):
        raise ConfigurationError(
            f"the shards of service {service.name!r} are {', '.join(shards)}, and --to names {', '.join(found)}: "
            f"{_EACH.format(' '.join(f'--to {s}=URL' for s in shards))}, or one alone, beside the others that live on"
        )
    return {shard: found[shard] for shard in shards if shard in found}


def _others(service: Service, restored: Mapping[str, str]) -> dict[str, str]:
    """The stores of the shards that live on."""
    shards = shards_of(service)
    if len(shards) == len(restored):
        return {}
    return {shard: url for shard, url in urls_by_shard(service.settings()["store"]).items() if shard not in restored}


_SHARD = re.compile(r"([a-z][a-z0-9_-]*)=")
_EACH = "all are restored together, each into a store of its own ({})"


async def _restore(service: Service, to: Mapping[str, str], until: Until, given: _From) -> Mapping[str, RestoreReport]:
    others = _others(service, to)
    async with AsyncExitStack() as stack:
        targets = await stack.enter_async_context(opened_targets(given.places or policy_of(service).targets))
        marked = await _marked(targets, service.name, list(to), given.mark) if given.mark is not None else {}
        incarnations = {shard: marked[shard].incarnation if marked else given.incarnation for shard in to}
        archives = await archives_of(targets, service.name, incarnations)
        connection = await _connect(service, stack) if given.stream else None
        with progress("Restoring") as advance:
            if not others:
                logs = {shard: (archive, marked.get(shard)) for shard, archive in archives.items()}
                return await restore_logs(logs, to, until, connection=connection, tell=advance)
            ((shard, archive),) = archives.items()
            part = marked.get(shard)
            report = await restore_shard(
                shard, archive, part, to[shard], others, until, connection=connection, tell=advance
            )
            return {shard: report}


async def _marked(
    targets: Sequence[BackupTarget], service: str, shards: Sequence[str], name: str
) -> dict[str, MarkedLog]:
    """The parts of a mark that are of these shards. Raises ConfigurationError where it is of others."""
    mark = await find_mark(targets, f"{service}.{shards[0]}", name)
    parts = {log.partition(".")[2]: part for log, part in mark.logs.items() if log.partition(".")[0] == service}
    if len(shards) == 1 and shards[0] in parts:
        return {shards[0]: parts[shards[0]]}
    if parts.keys() != set(shards):
        raise ConfigurationError(
            f"mark {name!r} is of shards {', '.join(parts)} of service {service!r}, and its stores are those of "
            f"{', '.join(shards)}: nothing was restored. Give the service the shards that it had then, until it is "
            "restored"
        )
    return {shard: parts[shard] for shard in shards}


async def _connect(service: Service, stack: AsyncExitStack) -> Connection:
    url = broker_url()
    if url is None:
        raise ConfigurationError("--from-stream needs a NATS server: set EVSYNC_NATS, such as nats://127.0.0.1:4222")
    connection = await Connection.open(NatsSettings(url, **broker_files()), service.name)
    stack.push_async_callback(connection.close)
    await connection.ready(CONNECT_S)
    return connection
