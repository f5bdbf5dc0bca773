"""`evsync tail`: the events of a service, one line each."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from fnmatch import fnmatchcase
from typing import Annotated, Any, NamedTuple

import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from evsync.cli.events import as_object
from evsync.cli.loading import load
from evsync.cli.options import Debug, EventTypes, Json, OneShard, Target, of_shards
from evsync.cli.terminal import as_utc, console, plain, print_json, reporting, say
from evsync.codec.json_form import as_json
from evsync.contracts.document import is_published
from evsync.errors import ConfigurationError
from evsync.projections import Event
from evsync.records import LogIdentity, Position
from evsync.service import Service

DATA_CELLS = 30
"""So much room is left for the data of an event where the terminal is narrow, at the cost of the stream's id."""
STREAM_CELLS = 12


def tail(
    target: Target,
    after: Annotated[
        str | None,
        typer.Option(metavar="N|POSITION", help="Begin behind this place: a number, or what save() returned."),
    ] = None,
    last: Annotated[
        int | None, typer.Option("--last", "-n", metavar="N", min=0, help="Only the last N events of a log.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more, until Ctrl-C.")] = False,
    type: EventTypes = "*",
    shard: OneShard = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Print the events of a service, one line each.

    A line has position, time, type, stream and data, in the order of the log. Without --after or --last it begins at
    the log's beginning. Times are in UTC. On a terminal a line is cut to its width; into a pipe it goes whole. With
    --json each line is an object; what JSON lacks (times, UUIDs, decimals) is text in it. Of a service with several
    shards, the logs come one after the other, and with --follow as they come: between two logs there is no order.

    \b
        evsync tail shop.users:users --last 10 --follow
        evsync tail shop.users:users --after 4200 --type 'users.User.*' --json
    """
    if after is not None and last is not None:
        raise typer.BadParameter("give either --after or --last", param_hint="--last")
    with reporting(debug):
        service = load(target)
        if not any(fnmatchcase(known, type) for known in service.codec.types):
            saved = ", ".join(known for known in service.codec.types if is_published(service.codec, known))
            say(f"No event type of {service.name} matches {type!r}; it has {saved}", "yellow")
        asyncio.run(_tail(service, after, last, follow, type, shard, json))


async def _tail(
    service: Service, after: str | None, last: int | None, follow: bool, pattern: str, shard: str | None, json: bool
) -> None:
    async with service.inspect():
        stores = service.runtime.stores
        chosen = of_shards(stores, shard)
        heads = {store.identity: await store.head() for store in chosen.values()}
        begins = _begins(heads, after, last)
        names = max(map(len, stores)) if len(stores) > 1 else 0
        cells = _Cells(names, len(f"{max(heads.values())}"), max(map(len, service.codec.types), default=0))
        to = console()
        async with aclosing(_events(service, begins, follow)) as events:
            async for e in events:
                if not fnmatchcase(e.type, pattern):
                    continue
                if json:
                    print_json(as_object(e), flush=follow)
                elif to.is_terminal:
                    to.print(_for_terminal(e, to, cells))
                else:
                    sys.stdout.write(_for_pipe(e, cells) + "\n")
                    if follow:
                        sys.stdout.flush()


async def _events(service: Service, begins: Sequence[Position], follow: bool) -> AsyncGenerator[Event[Any], None]:
    """What stands behind these places: one log after the other, or as it comes."""
    if not follow or len(begins) == 1:
        for begin in begins:
            async for e in service.log(after=begin, follow=follow):
                yield e
        return
    came: asyncio.Queue[Event[Any] | Exception] = asyncio.Queue(1)

    async def pass_on(begin: Position) -> None:
        try:
            async for e in service.log(after=begin, follow=True):
                await came.put(e)
        except Exception as e:
            await came.put(e)

    tasks = [asyncio.create_task(pass_on(begin)) for begin in begins]
    try:
        while True:
            if isinstance(found := await came.get(), Exception):
                raise found
            yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


class _Cells(NamedTuple):
    """How wide some columns are, so that lines stand under one another."""

    shard: int
    """0 where there is one only."""
    number: int
    type: int


def _begins(heads: Mapping[LogIdentity, int], after: str | None, last: int | None) -> list[Position]:
    """Behind which places to begin, one a log. A position is of one log, and says which."""
    if last is not None:
        return [log.at(max(0, head - last)) for log, head in heads.items()]
    if after is None:
        return [log.at(0) for log in heads]
    if after.isascii() and after.isdigit():
        if len(heads) > 1:
            raise ConfigurationError(
                f"--after {after}: that is a place in each of {len(heads)} logs. Say which with --shard, or give a "
                f"position such as {next(iter(heads)).at(int(after))}"
            )
        return [log.at(int(after)) for log in heads]
    try:
        return [Position.parse(after)]
    except ValueError as e:
        raise typer.BadParameter(f"{e}, or like 42", param_hint="--after") from None


def _words(e: Event[Any]) -> tuple[str, str, str]:
    return plain(e.type), plain(e.stream_id), plain(as_json(e.data))


def _place(e: Event[Any], cells: _Cells) -> str:
    """Its place in the log, behind the shard's name where there are several."""
    shard = f"{e.position.log.rpartition('.')[2]:<{cells.shard}}  " if cells.shard else ""
    return f"{shard}{e.position.number:>{cells.number}}"


def _for_pipe(e: Event[Any], cells: _Cells) -> str:
    type, stream, data = _words(e)
    return f"{_place(e, cells)}  {as_utc(e.time)}  {type:<{cells.type}}  {stream}  {data}"


def _for_terminal(e: Event[Any], to: Console, cells: _Cells) -> Text:
    type, stream, data = _words(e)
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"{_place(e, cells)}  {e.time:%Y-%m-%d %H:%M:%S}  ", "dim")
    line.append(f"{type:<{cells.type}}  ", "bold")
    room = max(STREAM_CELLS, to.width - line.cell_len - DATA_CELLS)
    return line.append(_cut(stream, room), "dim").append("  " + _cut(data, max(1, to.width - line.cell_len - 2)))


def _cut(text: str, cells: int) -> str:
    return text if cell_len(text) <= cells else set_cell_size(text, cells - 1) + "…"
