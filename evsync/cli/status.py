"""`evsync status`: how far everything is, and what stands in the way."""

from __future__ import annotations

import asyncio
from typing import Any

from evsync.cli.loading import load
from evsync.cli.options import Debug, Json, Target
from evsync.cli.terminal import plain, print_json, print_lines, reporting, table
from evsync.errors import BrokerError, RelayError
from evsync.jetstream import streams
from evsync.jetstream.connection import Connection
from evsync.jetstream.verification import check_state
from evsync.projections.status import FollowerStatus
from evsync.records import LogIdentity
from evsync.service import Service

CONNECT_S = 2.0


def status(target: Target, json: Json = False, debug: Debug = False) -> None:
    """Show how far the parts of a service are, and what stands in their way.

    It only looks: nothing is run or made, and processes that run the service are not disturbed. Of the relay it sees
    what has arrived in the stream.

    \b
        evsync status shop.orders:orders
        evsync status shop.orders:orders --json
    """
    with reporting(debug):
        found = asyncio.run(_status(load(target)))
        if json:
            print_json(found)
        else:
            _show(found)


async def _status(service: Service) -> dict[str, Any]:
    async with service.inspect(followers=True):
        runtime = service.runtime
        identity, head = runtime.store.identity, await runtime.store.head()
        reactions = {r.name for r in service.reactions}
        return {
            "service": service.name,
            "log": identity.name,
            "incarnation": identity.incarnation,
            "head": head,
            "nats": runtime.connection.settings.shown if runtime.connection is not None else None,
            "relay": await _relay(runtime.connection, identity, head) if runtime.connection is not None else None,
            "followers": [
                {"kind": "reaction" if f.name in reactions else "projection", **_follower(f)}
                for f in (await service.status()).followers
            ],
        }


async def _relay(connection: Connection, identity: LogIdentity, head: int) -> dict[str, Any]:
    """The relay as its stream shows it: a relay belongs to a process, what it has done can be seen from everywhere."""
    found: dict[str, Any] = {
        "stream": streams.stream_name(identity), "state": "unreachable", "confirmed": None, "lag": None, "reason": None,
    }  # fmt: skip
    try:
        await connection.ready(CONNECT_S)
        state = await streams.info(connection, streams.stream_name(identity))
    except BrokerError as e:
        return found | {"reason": str(e)}
    if state is None:
        other = await streams.occupant(connection, identity)
        reason = (
            f"stream {other.name} has the log's subjects and is not its stream: it belongs to another incarnation of "
            "the log, or to another store under the same name"
            if other
            else "no relay has made the stream yet"
        )
        return found | {"state": "faulty" if other else "behind", "confirmed": 0, "lag": head, "reason": reason}
    problem: str | None = None
    try:
        streams.check_config(state.config, identity)
        check_state(state, identity)
    except RelayError as e:
        problem = str(e)
    if state.last > head and problem is None:
        problem = f"the stream holds positions up to {state.last}, and the log ends at {head}"
    return found | {
        "state": "faulty" if problem else "behind" if state.last < head else "current",
        "confirmed": state.last,
        "lag": max(0, head - state.last),
        "reason": problem,
    }


def _follower(found: FollowerStatus) -> dict[str, Any]:
    return {
        "name": found.name,
        "state": found.state,
        "reason": found.reason,
        "waiting_for": list(found.waiting_for),
        "workers": [{"owner": w.owner, "groups": w.groups, "reason": w.reason} for w in found.workers],
        "parked": found.parked,
        "logs": [
            {"log": at.log, "position": at.position, "head": at.head, "lag": at.lag_events, "state": at.state,
             "reason": at.reason}
            for at in found.logs
        ],
    }  # fmt: skip


def _show(found: dict[str, Any]) -> None:
    rows: list[tuple[Any, ...]] = []
    reasons: dict[str, None] = {}  # each once, in order
    notes: list[str] = []
    if relay := found["relay"]:
        rows.append(("relay", found["log"], relay["confirmed"], found["head"], relay["lag"], relay["state"]))
        if relay["reason"]:
            reasons[f"relay: {relay['reason']}"] = None
    for follower in found["followers"]:
        name, logs = follower["name"], follower["logs"]
        rows += [(name, at["log"], at["position"], at["head"], at["lag"], at["state"]) for at in logs]
        rows += [(name, f"{service}.?", None, None, None, "waiting") for service in follower["waiting_for"]]
        if workers := follower["workers"]:
            shares = ", ".join(f"{':'.join(w['owner'].split(':')[:2])} ({w['groups']} groups)" for w in workers)
            notes.append(f"{name}: {len(workers)} worker{'s' * (len(workers) > 1)}: {shares}")
        if follower["parked"]:
            notes.append(f"{name}: {follower['parked']} events are parked; see `evsync parked list`")
        for reason in [follower["reason"], *(at["reason"] for at in logs)]:
            if reason:
                reasons[f"{name}: {reason}"] = None
    headings = ("part", "log", "position", "head", "lag", "state")
    cells = [["-" if cell is None else cell for cell in row] for row in rows]
    print_lines(
        plain(f"log {found['log']}, incarnation {found['incarnation']}, head {found['head']}"),
        f"NATS {found['nats'] or 'none: EVSYNC_NATS is not set'}",
        *([table(headings, cells, right=("position", "head", "lag"))] if rows else ()),
        *map(plain, notes),
        *map(plain, reasons),
    )
