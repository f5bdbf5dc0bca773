"""`evsync replay`: an aggregate as it is, or as it was."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.table import Table

from evsync.cli.events import as_object
from evsync.cli.loading import load
from evsync.cli.options import Debug, Json, Target, parse_time
from evsync.cli.terminal import as_utc, console, plain, print_json, print_lines, reporting, table
from evsync.codec.json_form import as_json, in_json
from evsync.domain import AnyAggregate, NamedAggregate
from evsync.errors import ConfigurationError
from evsync.projections import Event
from evsync.service import Service

BESIDE_CELLS = 120
"""A terminal of this width has room for the history beside the attributes."""


def replay(
    target: Target,
    aggregate: Annotated[str, typer.Argument(metavar="Aggregate", help="Name of its class.", show_default=False)],
    id: Annotated[str, typer.Argument(metavar="ID", help="Its id.", show_default=False)],
    version: Annotated[int | None, typer.Option(min=1, metavar="N", help="As it was at this version.")] = None,
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="As it was then, such as 2026-01-31T12:00:00Z.")
    ] = None,
    as_objects: Json = False,
    debug: Debug = False,
) -> None:
    """Show an aggregate as it is, or as it was.

    It is rebuilt from its events: the attributes they give it are shown, and the events beside them. At a TIME, events
    of that very microsecond have happened.

    \b
        evsync replay shop.stock:stock Item sku-42
        evsync replay shop.stock:stock Item sku-42 --version 2
        evsync replay shop.stock:stock Item sku-42 --at 2026-01-31T12:00:00Z
    """
    if version is not None and at is not None:
        raise typer.BadParameter("give either --version or --at", param_hint="--at")
    when: dict[str, Any] = {}
    if version is not None:
        when["version"] = version
    if at is not None:
        when["at"] = parse_time(at, "--at")
    with reporting(debug):
        asyncio.run(_replay(load(target), aggregate, id, when, as_objects))


async def _replay(service: Service, name: str, id: str, when: dict[str, Any], as_objects: bool) -> None:
    cls = _class(service, name)
    async with service.inspect():
        found = await service.get(cls, id, **when)
        history = await service.history(cls, id)
    until = history[: found.version]
    if as_objects:
        print_json(
            {
                "aggregate": type(found).__name__,
                "id": str(found.id),
                "version": found.version,
                "latest_version": len(history),
                "created_on": as_utc(found.created_on),
                "modified_on": as_utc(found.modified_on),
                "state": _attributes(found),
                "history": [as_object(e) for e in until],
            }
        )
    else:
        _show(type(found).__name__, found, until, len(history))


def _class(service: Service, name: str) -> type[AnyAggregate]:
    known = {cls.__name__: cls for cls in service.codec.aggregates}
    if name not in known:
        raise ConfigurationError(
            f"service {service.name!r} has no aggregate {name!r}; it has {', '.join(known) or 'none at all'}"
        )
    return known[name]


class _Bare(NamedAggregate):
    """Has nothing but what every aggregate has."""

    def __init__(self, id: str) -> None:
        pass


def _attributes(found: AnyAggregate) -> dict[str, Any]:
    """The attributes that the aggregate's own code has set. One that JSON cannot hold is text (see as_json)."""
    of_all = vars(_Bare(id="bare"))
    return {name: in_json(value) for name, value in vars(found).items() if name not in of_all}


def _show(name: str, found: AnyAggregate, history: Sequence[Event[Any]], latest: int) -> None:
    at = f"version {found.version}" + (f" of {latest}" if found.version < latest else "")
    state = table(
        ("attribute", "value"),
        [(key, json.dumps(value, ensure_ascii=False)) for key, value in _attributes(found).items()],
    )
    events = table(
        ("version", "time", "event", "data"),
        [(e.version, as_utc(e.time), e.type.rpartition(".")[2], as_json(e.data)) for e in history],
        right=("version",),
    )
    parts: list[Any] = [state, "", events]
    if console().is_terminal and console().width >= BESIDE_CELLS:
        beside = Table.grid(padding=(0, 4, 0, 0))
        beside.add_row(state, events)
        parts = [beside]
    print_lines(plain(f"{name} {found.id}, {at}, modified {as_utc(found.modified_on)}"), "", *parts)
