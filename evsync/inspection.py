"""What a store shows of itself to whoever looks at it from outside: `evsync store info` and `evsync store check`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from evsync.records import Checkpoint, LogIdentity, StoredEvent


class Unreadable(NamedTuple):
    """What stands at a position and is no event of the log."""

    position: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFacts:
    """A store at one moment, for people."""

    kind: str
    where: str
    """Without user and password."""
    schema: int
    """Version of the tables, or of the stream's form."""
    head: int
    events: int
    streams: int
    size_bytes: int
    """What the store takes, indexes and snapshots included, as far as the database tells."""
    snapshots: int
    checkpoints: Sequence[tuple[str, Checkpoint]]
    """Of all followers, each with the follower's name."""
    trimmed: int = 0
    """The position up to which events may be in the archive alone."""


@runtime_checkable
class Inspectable(Protocol):
    """A store that can be looked at from outside."""

    identity: LogIdentity

    async def head(self) -> int:
        """See EventLog.head."""
        ...

    async def facts(self) -> StoreFacts:
        """How much it holds."""
        ...

    async def scan(self, after: int, limit: int) -> Sequence[StoredEvent | Unreadable]:
        """What is stored at up to `limit` positions after `after`, in order, as it is: nothing is made of gaps, and
        commits may be cut. [] at the end. Raises WrongStore where the database itself cannot go on."""
        ...

    async def self_check(self) -> Sequence[str]:
        """What the database itself finds wrong with its files, as far as it can tell."""
        ...
