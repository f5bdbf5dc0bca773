"""`evsync status`: how far everything is, and what stands in the way."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live

from evsync.cli.loading import load
from evsync.cli.options import Debug, Json, Target
from evsync.cli.terminal import as_utc, console, counted, plain, print_json, print_lines, reporting, table
from evsync.operations.relay_view import view_of
from evsync.projections.status import FollowerStatus, LogStatus
from evsync.service import Service
from evsync.urls import shards_on_nats


def status(
    target: Target,
    groups: Annotated[bool, typer.Option("--groups", help="A line for each group of a projection.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again and again, until Ctrl-C.")] = False,
    every_s: Annotated[
        float, typer.Option("--every", metavar="SECONDS", min=0.1, help="How often --watch looks.")
    ] = 1.0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show how far a service is, and what stands in its way.

    It only looks: nothing is run or made, and processes that run the service are not disturbed. Of the relay it sees
    what has arrived in the stream. Lag is told in events, and as the time since the first of them happened. With
    --watch it goes on; with --json too, that is an object on a line each time.

    \b
        evsync status shop.orders:orders
        evsync status shop.orders:orders --watch --groups
        evsync status shop.orders:orders --json
    """
    show = print_json if json else partial(_print, groups=groups)
    with reporting(debug):
        service = load(target)
        if watch:
            asyncio.run(_watch(service, every_s, json=json, groups=groups))
        else:
            show(asyncio.run(_status(service)))


async def _status(service: Service) -> dict[str, Any]:
    async with service.inspect(followers=True):
        return await _look(service)


async def _watch(service: Service, every_s: float, *, json: bool, groups: bool) -> None:
    to = console()
    async with service.inspect(followers=True):
        with (
            Live(console=to, auto_refresh=False, transient=False)
            if to.is_terminal and not json
            else nullcontext() as live
        ):
            while True:
                found = await _look(service)
                if live is not None:
                    live.update(
                        Group(*_rendered(found, groups=groups), plain(f"{as_utc(datetime.now(UTC))}")), refresh=True
                    )
                elif json:
                    print_json(found, flush=True)
                else:
                    print_lines(*_rendered(found, groups=groups), "", flush=True)
                await asyncio.sleep(every_s)


async def _look(service: Service) -> dict[str, Any]:
    runtime, status = service.runtime, await service.status()
    connection, logs = runtime.connection, {}
    own_streams = shards_on_nats(runtime.settings["store"])  # no relay fills them
    for shard, store in runtime.stores.items():
        identity, head, relay = store.identity, status.logs[store.identity.name].head, None
        if connection is not None and shard not in own_streams:
            view = await view_of(connection, store)
            relay, head = {**asdict(view), "lag": view.lag}, view.head
        logs[identity.name] = {"incarnation": identity.incarnation, "head": head, "relay": relay}
    reactions = {r.name for r in service.reactions}
    return {
        "service": service.name,
        "logs": logs,
        "nats": connection.settings.shown if connection is not None else None,
        "followers": [
            {"kind": "reaction" if f.name in reactions else "projection", **_follower(f)} for f in status.followers
        ],
    }


def _follower(found: FollowerStatus) -> dict[str, Any]:
    return {**asdict(found), "logs": [_log(at) for at in found.logs]}


def _log(at: LogStatus) -> dict[str, Any]:
    groups = [
        {"group": g.group, "position": g.position, "lag": g.lag_events, "lag_s": _rounded(g.lag_s), "count": g.count}
        for g in at.groups
    ]
    return {**asdict(at), "lag": at.lag_events, "lag_s": _rounded(at.lag_s), "groups": groups}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _duration(seconds: float | None) -> str:
    """As short as a person wants it: 0, 3.2 s, 4 min, 5 h, 12 d."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds else "0"
    for unit, size in (("min", 60), ("h", 3_600)):
        if seconds < 100 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def _print(found: dict[str, Any], *, groups: bool) -> None:
    print_lines(*_rendered(found, groups=groups))


def _rendered(found: dict[str, Any], *, groups: bool) -> list[Any]:
    rows: list[tuple[Any, ...]] = []
    reasons: dict[str, None] = {}  # each once, in order
    notes: list[str] = []
    for log, at in found["logs"].items():
        if relay := at["relay"]:
            rows.append(("relay", log, relay["confirmed"], at["head"], relay["lag"], "", relay["state"]))
            if relay["reason"]:
                of = f" of {log}" if len(found["logs"]) > 1 else ""
                reasons[f"relay{of}: {relay['reason']}"] = None
    for follower in found["followers"]:
        name, logs = follower["name"], follower["logs"]
        for at in logs:
            rows.append((name, at["log"], at["position"], at["head"], at["lag"], _duration(at["lag_s"]), at["state"]))
            if groups:
                rows += [
                    (f"  group {g['group']}", "", g["position"], "", g["lag"], _duration(g["lag_s"]), "")
                    for g in at["groups"]
                ]
        rows += [(name, f"{service}.?", None, None, None, "-", "waiting") for service in follower["waiting_for"]]
        if workers := follower["workers"]:
            shares = ", ".join(f"{':'.join(w['owner'].split(':')[:2])} ({w['groups']} groups)" for w in workers)
            notes.append(f"{name}: {counted(len(workers), 'worker')}: {shares}")
        if follower["parked"]:
            count = follower["parked"]
            notes.append(f"{name}: {count} event{'s are' if count > 1 else ' is'} parked; see `evsync parked list`")
        for reason in [follower["reason"], *(at["reason"] for at in logs)]:
            if reason:
                reasons[f"{name}: {reason}"] = None
    headings = ("part", "log", "position", "head", "lag", "behind", "state")
    cells = [["-" if cell is None else cell for cell in row] for row in rows]
    return [
        *(plain(f"log {log}, incarnation {at['incarnation']}, head {at['head']}") for log, at in found["logs"].items()),
        f"NATS {found['nats'] or 'none: EVSYNC_NATS is not set'}",
        *([table(headings, cells, right=("position", "head", "lag", "behind"))] if rows else ()),
        *map(plain, notes),
        *map(plain, reasons),
    ]
