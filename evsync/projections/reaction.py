"""Reactions: handlers that answer events with changes of their own service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from evsync.errors import ConfigurationError
from evsync.projections.contracts import Contract
from evsync.projections.event import Event
from evsync.projections.handlers import Handlers
from evsync.projections.projection import check_number
from evsync.records import check_name

if TYPE_CHECKING:  # a handler is handed the service that runs it, which is assembled from parts like this one
    from evsync.domain import BaseAggregate
    from evsync.service import Service

C = TypeVar("C", bound=Contract)

Changes: TypeAlias = "BaseAggregate[Any] | Sequence[BaseAggregate[Any]] | None"


class Reaction:
    """Answers events with changes of its own service: an async function that may call out and is never replayed.

    The aggregates it returns are saved in one commit with its checkpoint: exactly once. What it calls meanwhile is
    called at least once: again after a crash, after a conflict, or where its answer was None.

    `since` says from which events on it answers: "beginning"; "now", the end of each log when the reaction is opened
    for the first time, kept from then on; or the first time (aware datetime) an event may have. An event whose handler
    fails is tried again `retries` times with growing pauses, then the reaction halts.
    """

    def __init__(
        self,
        name: str,
        *,
        since: Literal["beginning", "now"] | datetime,
        retries: int = 5,
        then: Literal["halt", "park"] = "halt",
    ) -> None:
        self.name = check_name("reaction", name)
        if isinstance(since, datetime):
            if since.utcoffset() is None:
                raise ConfigurationError(
                    f"reaction {name!r}: since={since!r} has no time zone: use an aware datetime, such as "
                    "datetime(2026, 1, 1, tzinfo=UTC)"
                )
        elif since not in ("beginning", "now"):
            raise ConfigurationError(f"reaction {name!r}: since= takes 'beginning', 'now' or a datetime, not {since!r}")
        self.since: Literal["beginning", "now"] | datetime = since
        self.retries = check_number(f"retries of reaction {name!r}", retries, 0, 1_000_000)
        if then != "halt":
            says = "parking is not available for reactions in this version" if then == "park" else "is not known"
            raise ConfigurationError(f"reaction {name!r}: then={then!r}: {says}; use 'halt', the default")
        self.handlers = Handlers(f"reaction {name!r}", awaited=True)

    def __repr__(self) -> str:
        return f"<Reaction {self.name} since {self.since}>"

    @property
    def sources(self) -> tuple[str, ...]:
        """The services whose logs it reads."""
        return self.handlers.services

    def on(
        self, contract: type[C], /
    ) -> Callable[
        [Callable[[Event[C], Service], Awaitable[Changes]]], Callable[[Event[C], Service], Awaitable[Changes]]
    ]:
        """Register an async handler for the events that the contract names. Raises as Projection.on does."""
        return self.handlers.on(contract)
