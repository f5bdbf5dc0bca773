"""Arguments that several commands have."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, TypeVar

import typer

from evsync.errors import ConfigurationError

T = TypeVar("T")

Target = Annotated[
    str,
    typer.Argument(
        metavar="module:service",
        show_default=False,
        help="The Service object, such as shop.users:users in shop/users.py.",
    ),
]
ProjectionName = Annotated[str, typer.Argument(metavar="PROJECTION", show_default=False, help="The projection's name.")]
EventTypes = Annotated[
    str,
    typer.Option("--type", metavar="PATTERN", help="Only events of these types; * stands for any text: 'users.User.*'"),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
OneShard = Annotated[
    str | None,
    typer.Option("--shard", metavar="NAME", show_default=False, help="Only this shard's log; else those of all."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show what evsync logs, and tracebacks of errors.")]


def of_shards(all_: Mapping[str, T], shard: str | None) -> Mapping[str, T]:
    """What there is of each shard, or of the one that was asked for. Raises ConfigurationError for one there is not."""
    if shard is None:
        return all_
    if shard not in all_:
        raise ConfigurationError(f"there is no shard {shard!r}: the service's settings name {', '.join(all_)}")
    return {shard: all_[shard]}


def parse_time(text: str, option: str) -> datetime:
    """An aware time. Raises BadParameter that says the form."""
    form = "write it as 2026-01-31T12:00:00Z, or with another offset: 2026-01-31T12:00:00.123456+01:00"
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a time; {form}", param_hint=option) from None
    if time.tzinfo is None:
        raise typer.BadParameter(f"{text!r} has no time zone; {form}", param_hint=option)
    return time
