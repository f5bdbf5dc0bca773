"""The half of a JetStream store that moves slots: SlotStore and KeepsSlots over `slots`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import count
from typing import TypeVar

from evsync.jetstream.store.slots import Slots
from evsync.ports import Arrived, Place, SlotSize
from evsync.records import History, LogIdentity, Opening, SlotState, StoredEvent

T = TypeVar("T")


class MovableSlots:
    """What JetStreamStore is too. Implements SlotStore, whose docstrings say what its methods do."""

    _slots: Slots

    async def _ask(self, question: Callable[[], Awaitable[T]]) -> T:
        raise NotImplementedError

    async def check_leaving(self) -> None:
        """Raise ConfigurationError: a log that has begun keeps its slots."""
        await self._ask(self._slots.check_leaving)

    async def slot_states(self) -> Mapping[int, SlotState]:
        """What the store says of each slot that is, or was, open in it."""
        return await self._ask(self._slots.all_states)

    async def slot_state(self, slot: int) -> SlotState | None:
        """What the store says of one slot now."""
        return await self._ask(lambda: self._slots.state(slot))

    async def arrived(self, slots: Sequence[int]) -> Mapping[int, History]:
        """What has arrived of the slots' histories."""
        return await self._ask(lambda: self._slots.arrivals(slots))

    async def slot_events(self, slots: Sequence[int], after: Place, limit: int) -> list[Arrived]:
        """The next events of these slots, the imports first."""
        return await self._ask(lambda: self._slots.events(slots, after, limit))

    async def slot_size(self) -> SlotSize:
        """How much there is. Reads everything."""
        return await self._ask(self._slots.size)

    async def import_events(
        self, events: Sequence[StoredEvent], expected: Mapping[int, History], source: LogIdentity | None = None
    ) -> bool:
        """Import events behind what is expected to have arrived; False if that is not so."""
        return await self._ask(lambda: self._slots.bring(events, expected))

    async def close_slots(
        self, closing: Mapping[int, int], to: str, seen: int, histories: Mapping[int, History]
    ) -> Mapping[int, SlotState] | None:
        """Close slots of a log that has not begun. Raises ConfigurationError as `check_leaving`."""
        return await self._told(lambda again: self._slots.close(closing, to, histories, again=again))

    async def open_slots(self, opening: Mapping[int, Opening], source: LogIdentity | None = None) -> bool:
        """Open slots whose whole history has arrived; False, and nothing done, where that is not so."""
        return await self._told(lambda again: self._slots.open(opening, source, again=again))

    async def _told(self, step: Callable[[bool], Awaitable[T]]) -> T:
        """The outcome of a step, which is told whether it was tried before."""
        tries = count()
        return await self._ask(lambda: step(next(tries) > 0))
