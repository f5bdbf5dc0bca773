"""`evsync reset`: a follower that was ahead of a log that was restored."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from evsync.cli.loading import load
from evsync.cli.options import Debug, Target, Yes
from evsync.cli.terminal import agree, plain, print_lines, reporting, say
from evsync.operations.resets import reset_follower
from evsync.service import Service


def reset(
    target: Target,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The projection or reaction.", show_default=False)],
    yes: Yes = False,
    debug: Debug = False,
) -> None:
    """Let a follower go on that was ahead of a restored log.

    For what had come farther than the log that it follows was restored to. A projection's tables are dropped, and made
    anew from the log by the process that runs it next; stop its processes first. A reaction goes on behind the last
    event that it has in common with the log.

    \b
        evsync reset shop.orders:orders customers
    """
    with reporting(debug):
        service = load(target)
        if not yes:
            _ask(service, name)
        print_lines(*map(plain, asyncio.run(_reset(service, name))))


async def _reset(service: Service, name: str) -> list[str]:
    async with service.inspect(followers=True):
        return await reset_follower(service.runtime, name)


def _ask(service: Service, name: str) -> None:
    if any(p.name == name for p in service.projections):
        say(f"The tables of projection {name} will be dropped, and made anew from its logs when it runs next.")
    elif any(r.name == name for r in service.reactions):
        say(f"Reaction {name} will go on behind the last event that it has in common with the logs that it follows.")
    else:
        return  # there is none, and `reset_follower` says which there are
    agree()
