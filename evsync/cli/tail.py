"""`evsync tail`: the events of a service, one line each."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Annotated, Any, NamedTuple

import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from evsync.cli.loading import load
from evsync.cli.options import Debug, Json, Target
from evsync.cli.terminal import console, plain, print_json, reporting, say
from evsync.codec.json_form import as_json
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
        int | None, typer.Option("--last", "-n", metavar="N", min=0, help="Only the last N events.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more, until Ctrl-C.")] = False,
    type: Annotated[
        str, typer.Option(metavar="PATTERN", help="Only events of these types; * stands for any text: 'users.User.*'")
    ] = "*",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Print the events of a service, one line each.

    A line has position, time, type, stream and data, in the order of the log. Without --after or --last it begins at
    the log's beginning. Times are in UTC. On a terminal a line is cut to its
    width; into a pipe it goes whole. With --json each line is an object; what JSON lacks (times, UUIDs, decimals) is
    text in it.

    \b
        evsync tail shop.users:users --last 10 --follow
        evsync tail shop.users:users --after 4200 --type 'users.User.*' --json
    """
    if after is not None and last is not None:
        raise typer.BadParameter("give either --after or --last", param_hint="--last")
    with reporting(debug):
        service = load(target)
        if not any(fnmatchcase(known, type) for known in service.codec.types):
            say(f"No event type of {service.name} matches {type!r}; it has {', '.join(service.codec.types)}", "yellow")
        asyncio.run(_tail(service, after, last, follow, type, json))


async def _tail(service: Service, after: str | None, last: int | None, follow: bool, pattern: str, json: bool) -> None:
    async with service.inspect():
        head = await service.runtime.store.head()
        begin = _begin(service.runtime.store.identity, head, after, last)
        to = console()
        cells = _Cells(len(f"{head}"), max(map(len, service.codec.types), default=0))
        async for e in service.log(after=begin, follow=follow):
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


class _Cells(NamedTuple):
    """How wide two columns are, so that lines stand under one another."""

    number: int
    type: int


def _begin(log: LogIdentity, head: int, after: str | None, last: int | None) -> Position:
    if last is not None:
        return log.at(max(0, head - last))
    if after is None:
        return log.at(0)
    if after.isascii() and after.isdigit():
        return log.at(int(after))
    try:
        return Position.parse(after)
    except ValueError as e:
        raise typer.BadParameter(f"{e}, or like 42", param_hint="--after") from None


def as_object(e: Event[Any]) -> dict[str, Any]:
    """An event as a JSON object has it."""
    return {
        "position": str(e.position),
        "number": e.position.number,
        "time": as_utc(e.time),
        "type": e.type,
        "stream": e.stream_id,
        "version": e.version,
        "id": e.id,
        "data": e.data,
        "metadata": e.metadata,
    }


def as_utc(time: datetime) -> str:
    """A time in UTC, exact, as `--at` takes it."""
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


def _words(e: Event[Any]) -> tuple[str, str, str]:
    return plain(e.type), plain(e.stream_id), plain(as_json(e.data))


def _for_pipe(e: Event[Any], cells: _Cells) -> str:
    type, stream, data = _words(e)
    return f"{e.position.number:>{cells.number}}  {as_utc(e.time)}  {type:<{cells.type}}  {stream}  {data}"


def _for_terminal(e: Event[Any], to: Console, cells: _Cells) -> Text:
    type, stream, data = _words(e)
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"{e.position.number:>{cells.number}}  {e.time:%Y-%m-%d %H:%M:%S}  ", "dim")
    line.append(f"{type:<{cells.type}}  ", "bold")
    room = max(STREAM_CELLS, to.width - line.cell_len - DATA_CELLS)
    return line.append(_cut(stream, room), "dim").append("  " + _cut(data, max(1, to.width - line.cell_len - 2)))


def _cut(text: str, cells: int) -> str:
    return text if cell_len(text) <= cells else set_cell_size(text, cells - 1) + "…"
