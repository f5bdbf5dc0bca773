"""`evsync store`: the event store of a service, made, described and checked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any, NamedTuple

import typer

from evsync.cli.loading import load
from evsync.cli.options import Debug, Json, OneShard, of_shards
from evsync.cli.terminal import counted, plain, print_json, print_lines, progress, reporting, table
from evsync.codec.events import EventCodec
from evsync.config import Deployment, resolve
from evsync.errors import ConfigurationError, StoreUnavailable
from evsync.inspection import Inspectable
from evsync.opening import open_store
from evsync.operations.store_check import StoreReport, check_store, reader
from evsync.ports import Store
from evsync.sharding import Router
from evsync.sharding.truth import check_all_there
from evsync.shards import open_home, open_shards
from evsync.urls import urls_by_shard

app = typer.Typer(name="store", help="Make a service's event store, look at it, check it.", no_args_is_help=True)

Named = Annotated[
    str,
    typer.Argument(
        metavar="SERVICE",
        show_default=False,
        help="module:service, or with --store the name alone of a service that has no Service object.",
    ),
]
Url = Annotated[
    str | None,
    typer.Option("--store", metavar="URL", help="The store, where the settings do not say it or say another."),
]


@app.command()
def init(target: Named, store: Url = None, json: Json = False, debug: Debug = False) -> None:
    """Make a service's event store, if it is not there yet.

    Or those of all its shards. A service makes it by itself when it is opened. This is for those who give the service's
    user less rights than making schemas or streams takes, and for finding out that URL and rights are right.

    \b
        evsync store init shop.users:users
        evsync store init users --store "postgresql://ada@db/shop?schema=users"
    """
    with reporting(debug):
        for made in asyncio.run(_init(_located(target, store))):
            if json:
                print_json(made)
                continue
            log, incarnation, slots = (made[key] for key in ("log", "incarnation", "slots"))
            done = "made" if made["made"] else "is there already"
            print_lines(plain(f"the store of {log} {done}: incarnation {incarnation}, {slots} slots"))


@app.command()
def info(target: Named, store: Url = None, shard: OneShard = None, json: Json = False, debug: Debug = False) -> None:
    """Show which log a store holds, and how much of it.

    \b
        evsync store info shop.users:users
    """
    with reporting(debug):
        for n, found in enumerate(asyncio.run(_info(_located(target, store), shard))):
            if json:
                print_json(found)
            else:
                _show(found, below=n > 0)


@app.command()
def check(target: Named, store: Url = None, shard: OneShard = None, json: Json = False, debug: Debug = False) -> None:
    """Read a whole log, and prove that it is as it must be.

    Positions count up without a gap, and so do the versions of each stream (where another library gave them, none
    comes twice); commits are whole, ids, slots and incarnation are right, and every event can be read and is of a type
    that the service knows. Each slot is in one shard. Nothing is changed, and the service may run
    meanwhile. The exit code is 1 if anything is wrong; the first ten things of a log are told.

    \b
        evsync store check shop.users:users
        evsync store check bank_accounts --store sqlite:///bank_accounts.db
    """
    with reporting(debug):
        if not asyncio.run(_check(_located(target, store), shard, json)):
            raise typer.Exit(1)


class _Located(NamedTuple):
    """Whose stores are where, and what is known of what is in them."""

    service: str
    urls: Mapping[str, str]
    """By shard."""
    codec: EventCodec | None
    router: Router | None


def _located(target: str, url: str | None) -> _Located:
    override: Deployment = {"store": url} if url else {}
    if ":" in target:
        service = load(target)
        urls = urls_by_shard(service.settings(**override)["store"])
        found = _Located(service.name, urls, service.codec, service.router)
    else:
        found = _Located(target, urls_by_shard(resolve(target, {}, override)["store"]), None, None)
    if any(given.startswith("memory:") for given in found.urls.values()):
        raise ConfigurationError("a store in memory lives and ends with its process: no other can look at it")
    return found


async def _init(at: _Located) -> list[dict[str, Any]]:
    async with AsyncExitStack() as stack:
        there: set[str] = set()
        for shard, url in at.urls.items():
            with contextlib.suppress(StoreUnavailable):  # not there; should it be out of reach, the next lines say so
                await (await open_store(url, service=at.service, shard=shard, create=False)).close()
                there.add(shard)
        stores = await open_shards(at.urls, at.service, stack, create=True, router=at.router)
        if len(stores) > 1:
            await open_home(stores, at.router, stack, place=True)
        return [{**_identity(store), "made": shard not in there} for shard, store in stores.items()]


def _identity(store: Store) -> dict[str, Any]:
    log = store.identity
    return {"log": log.name, "incarnation": log.incarnation, "slots": log.slots}


@asynccontextmanager
async def _opened(at: _Located, shard: str | None) -> AsyncIterator[Mapping[str, Store]]:
    """The stores that are there, of all shards or of one."""
    async with AsyncExitStack() as stack:
        yield await open_shards(of_shards(at.urls, shard), at.service, stack, create=False)


def _inspectable(store: Store) -> Inspectable:
    if not isinstance(store, Inspectable):
        raise ConfigurationError(f"a {type(store).__name__} cannot be looked at from outside")
    return store


async def _info(at: _Located, shard: str | None) -> list[dict[str, Any]]:
    found = []
    async with _opened(at, shard) as stores:
        for store in stores.values():
            facts = await _inspectable(store).facts()
            checkpoints = [{"follower": f, **asdict(c), "digest": f"{c.digest:016x}"} for f, c in facts.checkpoints]
            found.append({**_identity(store), **asdict(facts), "checkpoints": checkpoints})
    return found


async def _check(at: _Located, shard: str | None, json: bool) -> bool:
    """Whether all is well."""
    ok = True
    async with _opened(at, shard) as stores:
        for store in stores.values():
            with progress(f"Checking {store.identity.name}") as advance:
                report = await check_store(_inspectable(store), reader(at.codec), advance)
            ok &= report.ok
            if json:
                print_json({**asdict(report), "ok": report.ok, "problems": [p._asdict() for p in report.problems]})
            else:
                _tell(report)
        if shard is None:
            await check_all_there(stores)
    return ok


def _show(found: dict[str, Any], *, below: bool) -> None:
    counts = ("head", "events", "streams", "snapshots")
    rows = [(key, found[key]) for key in ("log", "incarnation", "kind", "where", "schema", "slots")]
    rows += [(key, f"{found[key]:,}") for key in counts] + [("size", _size(found["size_bytes"]))]
    if found["trimmed"]:
        rows.append(("trimmed up to", f"{found['trimmed']:,}"))
    parts: list[Any] = [*([""] if below else ()), table(("store", ""), rows)]
    if found["checkpoints"]:
        names = ("follower", "log", "group", "position")
        kept = [tuple(c[name] for name in names) for c in found["checkpoints"]]
        parts += ["", table(names, kept, right=("group", "position"))]
    print_lines(*parts)


def _size(size_bytes: int) -> str:
    size, units = float(size_bytes), ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:,.0f} {units[0]}" if units[0] == "bytes" else f"{size:,.1f} {units[0]}"


def _tell(report: StoreReport) -> None:
    given = f", {report.given:,} of them by another library" if report.given else ""
    print_lines(
        plain(
            f"{report.log}: {counted(report.checked, 'event')} of {counted(report.streams, 'stream')} read{given}, "
            + (counted(len(report.problems), "problem") if report.problems else "all is well")
        ),
        plain(f"incarnation {report.incarnation}; the log's head is {report.head:,}"),
        *(plain(str(problem)) for problem in report.problems),
        *dict.fromkeys(problem.remedy for problem in report.problems),
    )
