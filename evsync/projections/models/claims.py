"""Who works on which groups of a projection: what a worker wants, what it has, and what anybody may see of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evsync.projections.parking import ParkedStream
from evsync.records import Checkpoint


@dataclass(frozen=True, slots=True)
class Claim:
    """Who wants to work on what."""

    projection: str
    version: int
    groups: int
    owner: str
    """Host, process and something unique to one runner: a lease is known to be one's own, and a person can find it."""
    lease_s: float


@dataclass(frozen=True, slots=True)
class Holding:
    """The groups that a worker has: the token of each, and its checkpoints."""

    tokens: Mapping[int, int]
    """By group. A group that is taken again has another token."""
    checkpoints: Sequence[Checkpoint]
    """As they were when the group was taken, or as batches have moved them since."""
    parked: Sequence[ParkedStream]
    """The parked streams of those groups that were taken by the call that returned this."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A process that works on a projection, or stands by for it."""

    owner: str
    """Host, process id and something unique, with colons between them."""
    groups: int
    """How many of the projection's groups it has."""
    reason: str | None
    """What stands in its way, if anything does."""


@dataclass(frozen=True, slots=True)
class Observation:
    """A projection as anybody may see it."""

    checkpoints: Sequence[Checkpoint]
    held: bool
    """Whether a lease of another worker than the one that looks is running."""
    halted: str | None
    """What a worker said when it halted (see evsync.projections.halt), until another takes its groups over; or that the
    model was made anew by later code than that of whoever looks."""
    parked: int = 0
    """How many events are parked."""
    workers: Sequence[Worker] = ()
    """Those that have shown a sign of life lately, also such as hold no group."""
