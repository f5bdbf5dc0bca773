"""The port between a runner and whatever holds a read model.

Laws of a read model
    A batch is applied whole or not at all, and its checkpoints with it.
    A batch is applied only while every token that it was begun under is the stored one. Taking a group raises its
    token and reads its checkpoints in one step, so that a worker that was slow, paused or cut off can never add to what
    its successor has begun from.
    A lease ends by the clock of the place that holds the read model. It saves work (only one worker at a time applies
    the events of a group); correctness rests on the tokens alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

from evsync.projections.batch import Settle
from evsync.projections.handlers import Handlers
from evsync.projections.models.claims import Claim, Holding, Observation
from evsync.projections.models.database import ViewsDatabase
from evsync.projections.models.parked_streams import ParkedStreams
from evsync.projections.parking import ParkedEvent
from evsync.records import Checkpoint, Position

S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a batch leaves beside the model itself, to be stored with it."""

    checkpoints: Sequence[Checkpoint]
    parked: Sequence[ParkedEvent] = ()


class ModelSession(Protocol[S_co]):
    """One runner's access to a read model. Its methods are called one at a time, except `observe`."""

    growth: ClassVar[int]
    """How many times as large batches may grow that are applied quickly: 1 where they are not cheaper for that."""
    lasting: ClassVar[bool]
    """Whether what was applied stays when a later batch fails. Else the model begins anew then."""

    async def prepare(self) -> None:
        """Make what is missing: tables, bookkeeping.

        Raises ConfigurationError for a read model made by another version of the projection or with another number of
        groups, WrongStore for bookkeeping of a newer evsync.
        """
        ...

    async def balance(self, holding: Holding | None, reason: str | None) -> Holding:
        """Show a sign of life; give back what is beyond the fair share, and take what is free within it.

        Returns what is held now: perhaps nothing, while others have all groups. With None, nothing is taken to be held,
        and what still stands under the claim's name is taken anew. `reason` is what stands in the worker's way, for
        others to see. Raises Fenced when a group of the holding has been taken by another, or its checkpoints are not
        those of the holding; DatabaseAway.
        """
        ...

    async def apply(
        self,
        holding: Holding,
        before: Collection[Checkpoint],
        work: Callable[[S_co, Settle | None], Outcome],
        *,
        one_by_one: bool = False,
    ) -> None:
        """Do the work and store what it returns, all or nothing, if tokens and checkpoints are still the stored ones.

        The work applies a batch to the model's state, and calls what it is given (if anything) after each event.
        `before` are the checkpoints of its log, from which it goes on.

        With `one_by_one`, nothing is gathered beyond an event. Raises Fenced, DatabaseAway, GatheredFailed, or the
        CannotApply of the work; nothing is applied then.
        """
        ...

    async def leave(self, halted: str | None = None) -> None:
        """Give back everything that stands under the claim's name, so that others may take over at once.

        `halted` is the word that is left why, if the projection halted.
        """
        ...

    async def observe(self) -> Observation:
        """The stored checkpoints and who holds them, without disturbing anybody. Raises DatabaseAway."""
        ...

    async def parked_at(self, position: Position) -> ParkedEvent | None:
        """A parked event of the commit that this position belongs to, if there is one. Raises DatabaseAway."""
        ...

    def parked_streams(self, handlers: Handlers) -> ParkedStreams:
        """What a person may do about parked streams. Raises ConfigurationError for a model that lives in memory."""
        ...

    @property
    def state(self) -> S_co:
        """The state of a model that lives in memory. Raises ConfigurationError for one that has to be queried."""
        ...


@runtime_checkable
class ReadModel(Protocol[S_co]):
    """What a projection's handlers write to: SqlModel, MemoryModel. `S_co` is what they get as second argument.

    A read model is inert until a runner opens it.
    """

    def open(self, claim: Claim, database: ViewsDatabase | None) -> ModelSession[S_co]:
        """This claim's access. Raises ConfigurationError where a database is needed and there is none."""
        ...
