"""`evsync shards`: where the slots of a service are, and moving them while it runs."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any

import typer

from evsync.cli.loading import load
from evsync.cli.options import Debug, Json, Target
from evsync.cli.terminal import counted, plain, print_json, print_lines, reporting, say, table
from evsync.errors import ConfigurationError
from evsync.ports import Store
from evsync.service import Service
from evsync.sharding import HashRing, Router
from evsync.sharding.handover import Move, Step, bring_about, check_moves, moves_between, placement_of
from evsync.sharding.router import Placement
from evsync.sharding.splits import split_commits
from evsync.sharding.truth import Held, truth
from evsync.shards import open_home, open_shards, plan_of
from evsync.stores.memory import MemoryStore

app = typer.Typer(name="shards", help="Show where a service's slots are, and move them.", no_args_is_help=True)

DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan, and change nothing.")]
Shard = Annotated[
    str, typer.Argument(metavar="SHARD", show_default=False, help="The shard's name in the service's store=.")
]
Planner = Callable[[Router, Placement], Placement]

_SLOTS = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
SHOWN = 20
"""Commits that a dry run lists."""


@app.command()
def show(target: Target, json: Json = False, debug: Debug = False) -> None:
    """Show slots, streams, events and bytes by shard. A service with one store has one, "main".

    \b
        evsync shards show shop.users:users
    """
    with reporting(debug):
        rows = asyncio.run(_shown(load(target)))
        if json:
            for row in rows:
                print_json(row)
        else:
            names = ("shard", "slots", "leaving", "streams", "events", "bytes", "head")
            print_lines(table(names, [[row[name] for name in names] for row in rows], right=names[1:]))


@app.command()
def add(target: Target, shard: Shard, dry_run: DryRun = False, json: Json = False, debug: Debug = False) -> None:
    """Give a new shard its share of the slots.

    Its store is in the service's settings by now, beside the others. Slots move to it alone, as many as its weight in
    the service's router says.

    \b
        evsync shards add shop.users:users c --dry-run
    """

    def plan(router: Router, now: Placement) -> Placement:
        if shard in now:
            raise ConfigurationError(f"shard {shard!r} holds slots already; `evsync shards rebalance` evens them out")
        return _ring(router, (*dict.fromkeys(now), shard)).plan(now)

    _change(target, plan, shard, dry_run, json, debug)


@app.command()
def drain(target: Target, shard: Shard, dry_run: DryRun = False, json: Json = False, debug: Debug = False) -> None:
    """Move all slots of a shard to the others.

    Its log ends, and stays part of the history: keep its store in the service's settings.

    \b
        evsync shards drain shop.users:users b
    """

    def plan(router: Router, now: Placement) -> Placement:
        others = tuple(name for name in dict.fromkeys(now) if name != shard)
        if not others:
            raise ConfigurationError(f"{shard!r} is the last shard that holds slots: they have nowhere to go")
        return _ring(router, others).plan(now)

    _change(target, plan, shard, dry_run, json, debug)


@app.command()
def move(
    target: Target,
    slots: Annotated[str, typer.Argument(metavar="SLOTS", show_default=False, help="Such as 7 or 0-63,128.")],
    shard: Shard,
    dry_run: DryRun = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Move some slots to a shard.

    \b
        evsync shards move shop.users:users 0-63,128 b
    """

    def plan(router: Router, now: Placement) -> Placement:
        chosen = _parse_slots(slots, len(now))
        return tuple(shard if slot in chosen else owner for slot, owner in enumerate(now))

    _change(target, plan, shard, dry_run, json, debug)


@app.command()
def rebalance(target: Target, dry_run: DryRun = False, json: Json = False, debug: Debug = False) -> None:
    """Move slots to where the service's router plans them.

    With as few moves as it can. Also finishes moves that somebody has begun and left.

    \b
        evsync shards rebalance shop.users:users --dry-run
    """
    _change(target, lambda router, now: router.plan(now), None, dry_run, json, debug)


def _change(target: str, plan: Planner, shard: str | None, dry_run: bool, json: bool, debug: bool) -> None:
    with reporting(debug):
        asyncio.run(_carry_out(load(target), plan, shard, dry_run, json))


async def _carry_out(service: Service, plan: Planner, shard: str | None, dry_run: bool, json: bool) -> None:
    urls = _urls(service)
    if shard is not None and shard not in urls:
        raise ConfigurationError(
            f"service {service.name!r} has no shard {shard!r}: its settings name {', '.join(map(repr, urls))}"
        )
    async with _planned(service, urls, shard) if dry_run else _open(service) as stores:
        now = await truth(stores)
        planned = plan(plan_of(stores, service.router), placement_of(now))
        moves = moves_between(now, planned)
        await check_moves(stores, moves, now)
        _print_plan(moves, now, json)
        if dry_run:
            if not moves and not json:
                print_lines("nothing to move")
            for line in await _split(stores, planned):
                say(line, "yellow")
            return
        count = await bring_about(stores, planned, _tell)
        if not json:
            print_lines(
                f"moved {counted(sum(len(m.slots) for m in moves), 'slot')} in {counted(count, 'step')}"
                if count
                else "nothing to move"
            )


def _print_plan(moves: list[Move], now: Mapping[int, Held], json: bool) -> None:
    totals: Counter[tuple[str, str]] = Counter()
    for m in moves:
        totals[m.source, m.to] += len(m.slots)
    for (source, to), slots in totals.items():
        left = sum(not now[s].is_open for m in moves if (m.source, m.to) == (source, to) for s in m.slots)
        if json:
            print_json({"from": source, "to": to, "slots": slots, "begun": left})
        else:
            print_lines(
                f"{source} -> {to}: {slots} slots" + (f", {left} of them begun by another move" if left else "")
            )


async def _split(stores: Mapping[str, Store], planned: Placement) -> list[str]:
    """Lines about past commits whose streams would be on several shards: saves like these would be refused."""
    found = await split_commits(stores, planned)
    lines = [plain(f"saved in one commit, and apart then: {', '.join(streams)}") for streams in found[:SHOWN]]
    if len(found) > SHOWN:
        lines.append(f"and {len(found) - SHOWN} more")
    return lines


def _tell(step: Step) -> None:
    slots = f"{len(step.move.slots)} slots from {step.move.source} to {step.move.to}"
    say(f"{step.what} {slots}, {step.events} events imported")


async def _shown(service: Service) -> list[dict[str, Any]]:
    async with service.inspect():
        stores = service.stores
        now = await truth(stores)
        rows = []
        for shard, store in stores.items():
            held = [h for h in now.values() if h.shard == shard]
            size = await store.slot_size()
            rows.append(
                {
                    "shard": shard,
                    "slots": sum(h.is_open for h in held),
                    "leaving": sum(not h.is_open for h in held),
                    "streams": size.streams,
                    "events": size.events,
                    "bytes": size.size_bytes,
                    "head": await store.head(),
                }
            )
        return rows


@asynccontextmanager
async def _open(service: Service) -> AsyncIterator[Mapping[str, Store]]:
    async with service.open(run="none"):
        yield service.stores


@asynccontextmanager
async def _planned(service: Service, urls: Mapping[str, str], shard: str | None) -> AsyncIterator[Mapping[str, Store]]:
    """The stores that are there. Nothing is made: an empty one stands for that of a shard which is to come."""
    async with AsyncExitStack() as stack:
        stores = await open_shards(urls, service.name, stack, create=False, planned=shard)
        await open_home(stores, service.router, stack, place=False)
        if shard is not None and isinstance(stores[shard], MemoryStore):
            say(f"Shard {shard} has no store yet, or it does not answer: planned as an empty one", "yellow")
        yield stores


def _urls(service: Service) -> Mapping[str, str]:
    given = service.settings()["store"]
    if isinstance(given, str):
        raise ConfigurationError(
            f"service {service.name!r} has one store and no shards: give store= a URL for each shard by name. The one "
            f'that is there is shard "main": {{"main": URL, "b": URL}}'
        )
    return given


def _ring(router: Router, shards: tuple[str, ...]) -> HashRing:
    """A ring of these shards, by the weights that the router has for them if it has any."""
    if not isinstance(router, HashRing):
        raise ConfigurationError(
            f"{router!r} says by hand where slots are: change it, and use `evsync shards rebalance`, or move slots"
        )
    weights = {name: weight for name, weight in router.weights.items() if name in shards}
    return HashRing(shards, weights=weights, slots=router.slots)


def _parse_slots(text: str, slots: int) -> set[int]:
    chosen: set[int] = set()
    for part in text.split(","):
        if (found := _SLOTS.fullmatch(part.strip())) is None:
            raise ConfigurationError(f"{part!r} is not a slot, nor a range of slots such as 0-63")
        begin, end = int(found[1]), int(found[2] or found[1])
        if begin > end:
            raise ConfigurationError(f"{part!r} ends before it begins; write {end}-{begin} for the slots between")
        if end >= slots:
            raise ConfigurationError(f"{part!r}: slots are 0 to {slots - 1}")
        chosen.update(range(begin, end + 1))
    return chosen
