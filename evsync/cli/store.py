"""`evsync store`: the event store of a service, made, described and checked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any

import typer

from evsync.cli.loading import load
from evsync.cli.options import Debug, Json
from evsync.cli.terminal import plain, print_json, print_lines, progress, reporting, table
from evsync.codec.events import EventCodec
from evsync.config import Deployment, resolve
from evsync.errors import ConfigurationError, StoreUnavailable
from evsync.opening import open_store
from evsync.ports import Inspectable, Store
from evsync.store_check import StoreReport, check_store, reader

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

    A service makes it by itself when it is opened. This is for those who give the service's user less rights than
    making schemas or streams takes, and for finding out that URL and rights are right.

    \b
        evsync store init shop.users:users
        evsync store init users --store "postgresql://ada@db/shop?schema=users"
    """
    with reporting(debug):
        print_made = asyncio.run(_init(target, store))
        if json:
            print_json(print_made)
        else:
            log, incarnation, slots = (print_made[key] for key in ("log", "incarnation", "slots"))
            done = "made" if print_made["made"] else "is there already"
            print_lines(plain(f"the store of {log} {done}: incarnation {incarnation}, {slots} slots"))


@app.command()
def info(target: Named, store: Url = None, json: Json = False, debug: Debug = False) -> None:
    """Show which log a store holds, and how much of it.

    \b
        evsync store info shop.users:users
    """
    with reporting(debug):
        found = asyncio.run(_info(target, store))
        if json:
            print_json(found)
        else:
            _show(found)


@app.command()
def check(target: Named, store: Url = None, json: Json = False, debug: Debug = False) -> None:
    """Read a whole log, and prove that it is as it must be.

    Positions count up without a gap, and so do the versions of each stream (where another library gave them, none
    comes twice); commits are whole, ids, slots and incarnation are right, and every event can be read and is of a type
    that the service knows. Nothing is changed, and the service may run meanwhile. The exit code is 1 if anything is
    wrong; the first ten things are told.

    \b
        evsync store check shop.users:users
        evsync store check bank_accounts --store sqlite:///bank_accounts.db
    """
    with reporting(debug):
        report = asyncio.run(_check(target, store))
        if json:
            print_json({**asdict(report), "ok": report.ok, "problems": [p._asdict() for p in report.problems]})
        else:
            _tell(report)
        if not report.ok:
            raise typer.Exit(1)


def _settings(target: str, url: str | None) -> tuple[str, str, EventCodec | None]:
    """The service's name, its store's URL, and how its events are read if that is known."""
    override: Deployment = {"store": url} if url else {}
    if ":" in target:
        service = load(target)
        name, codec, settings = service.name, service.codec, service.settings(**override)
    else:
        name, codec, settings = target, None, resolve(target, {}, override)
    found = settings["store"]
    if not isinstance(found, str):
        raise ConfigurationError(f"store={found!r} is not a URL")
    if found.startswith("memory:"):
        raise ConfigurationError("a store in memory lives and ends with its process: no other can look at it")
    return name, found, codec


async def _init(target: str, url: str | None) -> dict[str, Any]:
    name, found, _ = _settings(target, url)
    made = False
    try:
        store = await open_store(found, service=name, create=False)
    except StoreUnavailable:  # it is not there; should it be out of reach, the next line says so
        store, made = await open_store(found, service=name), True
    try:
        identity = store.identity
        return {"log": identity.name, "incarnation": identity.incarnation, "slots": identity.slots, "made": made}
    finally:
        await store.close()


@asynccontextmanager
async def _opened(url: str, name: str) -> AsyncIterator[tuple[Store, Inspectable]]:
    store = await open_store(url, service=name, create=False)
    try:
        if not isinstance(store, Inspectable):
            raise ConfigurationError(f"a {type(store).__name__} cannot be looked at from outside")
        yield store, store
    finally:
        await store.close()


async def _info(target: str, url: str | None) -> dict[str, Any]:
    name, found, _ = _settings(target, url)
    async with _opened(found, name) as (store, inspectable):
        facts, identity = await inspectable.facts(), store.identity
    checkpoints = [{"follower": f, **asdict(c), "digest": f"{c.digest:016x}"} for f, c in facts.checkpoints]
    known = {"log": identity.name, "incarnation": identity.incarnation, "slots": identity.slots}
    return {**known, **asdict(facts), "checkpoints": checkpoints}


async def _check(target: str, url: str | None) -> StoreReport:
    name, found, codec = _settings(target, url)
    async with _opened(found, name) as (_, inspectable):
        with progress("Checking") as advance:
            return await check_store(inspectable, reader(codec), advance)


def _show(found: dict[str, Any]) -> None:
    counts = ("head", "events", "streams", "snapshots")
    rows = [(key, found[key]) for key in ("log", "incarnation", "kind", "where", "schema", "slots")]
    rows += [(key, f"{found[key]:,}") for key in counts] + [("size", _size(found["size_bytes"]))]
    parts: list[Any] = [table(("store", ""), rows)]
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
            f"{report.log}: {report.checked:,} events of {report.streams:,} streams read{given}, "
            + (f"{len(report.problems)} problems" if report.problems else "all is well")
        ),
        plain(f"incarnation {report.incarnation}; the log's head is {report.head:,}"),
        *(plain(str(problem)) for problem in report.problems),
        *dict.fromkeys(problem.remedy for problem in report.problems),
    )
