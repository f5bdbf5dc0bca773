"""A read model in memory: whatever object you like, made anew in each process from the logs' beginning."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import ClassVar, Generic, TypeVar

from evsync.errors import ConfigurationError
from evsync.projections.batch import Settle
from evsync.projections.handlers import Handlers
from evsync.projections.models.claims import Claim, Holding, Observation
from evsync.projections.models.database import ViewsDatabase
from evsync.projections.models.parked_streams import ParkedStreams
from evsync.projections.models.read_model import Outcome, ReadModel
from evsync.projections.parking import ParkedEvent
from evsync.records import Checkpoint, Position

S = TypeVar("S")


class MemoryModel(ReadModel[S], Generic[S]):
    """A read model that is an object in memory: `MemoryModel(Totals)`, `MemoryModel(dict)`.

    Each process has its own and fills it from the beginning of the logs. It is changed by whole batches between two
    steps of the event loop, so that a coroutine never sees half of one; other threads may.
    """

    def __init__(self, factory: Callable[[], S]) -> None:
        """`factory` makes an empty state: once when the service is opened, and again after a batch has failed."""
        if not callable(factory):
            raise ConfigurationError(f"MemoryModel takes a function that makes an empty state, not {factory!r}")
        self._factory = factory

    def open(self, claim: Claim, database: ViewsDatabase | None) -> MemorySession[S]:
        """See ReadModel. No database is needed."""
        return MemorySession(self._factory, claim.groups)


class MemorySession(Generic[S]):
    """One state and its checkpoints. Implements ModelSession.

    A batch that fails may have changed half of the state, and there is no way back: the state is discarded, and with it
    the checkpoints, so that the runner reads the logs from their beginning again. Nobody else can reach the state, so
    there is nothing to fence off.
    """

    growth: ClassVar[int] = 1  # it keeps the event loop for a whole batch
    lasting: ClassVar[bool] = False

    def __init__(self, factory: Callable[[], S], groups: int) -> None:
        self._factory, self._groups = factory, groups
        self._token = 0
        self._parked: list[ParkedEvent] = []
        self._checkpoints: dict[tuple[str, int], Checkpoint] = {}
        self._state = factory()
        self._held = False
        self._halted: str | None = None

    @property
    def state(self) -> S:
        """A fold over whole batches from the beginning of the logs."""
        return self._state

    async def prepare(self) -> None:
        """Nothing: the state was made with the session."""

    async def balance(self, holding: Holding | None, reason: str | None) -> Holding:
        """See ModelSession. All groups, always."""
        if holding is None:
            self._held, self._halted = True, None
            self._token += 1
            parked = list({p.as_stream for p in self._parked})
            holding = Holding(dict.fromkeys(range(self._groups), self._token), list(self._checkpoints.values()), parked)
        return holding

    async def apply(
        self,
        holding: Holding,
        before: Collection[Checkpoint],
        work: Callable[[S, Settle | None], Outcome],
        *,
        one_by_one: bool = False,
    ) -> None:
        """See ModelSession. Does not leave the event loop, so that no coroutine sees half a batch."""
        try:
            applied = work(self._state, None)
        except BaseException:
            self._state = self._factory()
            self._checkpoints.clear()
            self._parked.clear()  # they are parked again when the log has been read that far
            raise
        self._checkpoints.update(((c.log, c.group), c) for c in applied.checkpoints)
        self._parked += applied.parked

    async def leave(self, halted: str | None = None) -> None:
        """See ModelSession."""
        self._held, self._halted = False, halted

    async def observe(self) -> Observation:
        """See ModelSession."""
        return Observation(list(self._checkpoints.values()), self._held, self._halted, len(self._parked))

    async def parked_at(self, position: Position) -> ParkedEvent | None:
        """See ModelSession."""
        for parked in self._parked:
            e = parked.event
            known = (parked.log, e.incarnation) == (position.log, position.incarnation)
            if known and e.position <= position.number <= e.position + e.remaining:
                return parked
        return None

    def parked_streams(self, handlers: Handlers) -> ParkedStreams:
        """There is nothing to be done from outside: raises ConfigurationError."""
        raise ConfigurationError(
            "a read model in memory forgets what is parked when its process ends: mend the handler and start it again"
        )
