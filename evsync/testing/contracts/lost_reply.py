"""A store whose replies can be lost: for tests of what must happen then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from evsync.errors import Conflict, OutcomeUnknown
from evsync.ports import Store
from evsync.records import Commit


class LostReply:
    """A Store in front of another one, which does the rest. While `lose` is set, every append raises OutcomeUnknown.

    "reply" stores what it is given first, "request" does not: a caller cannot tell the two apart.
    """

    def __init__(self, store: Store) -> None:
        self.lose: Literal["nothing", "request", "reply"] = "nothing"
        self._store = store

    async def append(self, commits: Sequence[Commit]) -> list[int | Conflict]:
        """See EventStore."""
        if self.lose == "request":
            raise OutcomeUnknown("the connection broke before the store had the commits, but who knows that")
        outcomes = await self._store.append(commits)
        if self.lose == "reply":
            raise OutcomeUnknown("the connection broke after the store had the commits, but who knows that")
        return outcomes

    def __getattr__(self, name: str) -> Any:
        if name == "append_now":  # a way around `append`
            raise AttributeError(name)
        return getattr(self._store, name)
