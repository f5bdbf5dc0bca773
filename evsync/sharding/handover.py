"""Moving slots from one shard to another while the service runs.

    1  copy: the new shard imports the slots' history. Writers go on meanwhile, so this is repeated until little is new.
    2  close: in one transaction the old shard refuses appends to the slots from now on, and says so in its log.
    3  copy what was appended between 1 and 2.
    4  open: in one transaction the new shard accepts appends, once its history is that of 2, and says so in its log.

Whoever does this may stop anywhere. Before 2 nothing has happened but that some copies lie in the new shard; after it,
the rows say where the slots were going, and anybody goes on with 3. Two who do it at once do no harm: each step is a
compare-and-set on what it presupposes. Checked by model: tests/model.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from evsync.errors import WrongStore
from evsync.ports import KeepsSlots, Place, SlotStore
from evsync.records import History, Opening, SlotState, StoredEvent
from evsync.sharding.truth import Held, truth

SLOTS_PER_STEP = 64
"""Slots that are closed at once."""
EVENTS_PER_READ = 500
"""Few, because writers of the new shard wait while they are imported."""
REST = 3.0
"""While writers go on, copying rests this many times as long as it works: they have the disk and the processor too."""
BEGINNING: Place = (0, 0)


class Move(NamedTuple):
    """Slots that go from one shard to another together."""

    source: str
    to: str
    slots: tuple[int, ...]


class Step(NamedTuple):
    """What has just been done of a move."""

    move: Move
    what: str
    """`copied`, `closed` or `opened`."""
    events: int
    """Imported so far."""


Report = Callable[[Step], None]


def moves_between(now: Mapping[int, Held], target: Sequence[str]) -> list[Move]:
    """The moves that lead to a placement, those first that somebody has begun: few slots at a time."""
    grouped: dict[tuple[bool, str, str], list[int]] = {}
    for slot, held in sorted(now.items()):
        to = held.bound_for if not held.is_open else target[slot]
        if to != held.shard:
            grouped.setdefault((held.is_open, held.shard, to), []).append(slot)
    return [
        Move(source, to, tuple(slots[start : start + SLOTS_PER_STEP]))
        for (_, source, to), slots in sorted(grouped.items())
        for start in range(0, len(slots), SLOTS_PER_STEP)
    ]


async def bring_about(stores: Mapping[str, SlotStore], target: Sequence[str], report: Report = lambda _: None) -> int:
    """Move slots until each is where `target` says, moves that others have begun and left included.

    Returns how many moves there were. A slot that is on its way elsewhere arrives there first. One that this has
    brought where it shall be is left alone then: whoever wants it elsewhere came later, and two would move it for ever.
    """
    count, brought = 0, set[int]()
    while moves := moves_between(_without(brought, now := await truth(stores)), target):
        await check_moves(stores, moves, now)
        for move in moves:
            brought |= {slot for slot in await carry_out(stores, move, report) if move.to == target[slot]}
            count += 1
    return count


def _without(slots: set[int], now: Mapping[int, Held]) -> Mapping[int, Held]:
    return {slot: held for slot, held in now.items() if slot not in slots}


async def check_moves(stores: Mapping[str, SlotStore], moves: Sequence[Move], now: Mapping[int, Held]) -> None:
    """Raise ConfigurationError if the store of a shard does not let slots go."""
    for shard in dict.fromkeys(move.source for move in moves if now[move.slots[0]].is_open):
        store = stores[shard]
        if isinstance(store, KeepsSlots):
            await store.check_leaving()


async def carry_out(stores: Mapping[str, SlotStore], move: Move, report: Report = lambda _: None) -> set[int]:
    """Carry out one move, or what is left of it. Returns the slots that this has opened.

    What others do to its slots meanwhile is left to them. Raises StoreError: WrongStore where a copy differs.
    """
    handover = _Handover(stores[move.source], stores[move.to], move, report)
    while not await handover.attempt():
        pass
    return handover.opened


class _Handover:
    def __init__(self, source: SlotStore, to: SlotStore, move: Move, report: Report) -> None:
        self._source, self._to, self._move, self._report = source, to, move, report
        self._place: Place = BEGINNING
        self._seen: dict[int, History] = {}
        """What was read of each slot's history in the source."""
        self._arrived: dict[int, History] = {}
        self._imported = 0
        self.opened: set[int] = set()

    async def attempt(self) -> bool:
        """Go through all steps. False when somebody else has changed something: look again."""
        closing, closed = await self._left_to_do()
        slots = [*closing, *closed]
        if not slots:
            return True
        self._place, self._seen = BEGINNING, dict.fromkeys(slots, History())
        self._arrived = dict(await self._to.arrived(slots))
        if (head := await self._copy(slots, rest=REST)) is None:
            return False
        self._done("copied")
        if closing:
            histories = {slot: self._seen[slot] for slot in closing}
            done = await self._source.close_slots(closing, self._move.to, max(head, self._place[0]), histories)
            if done is None:
                return False
            closed |= done
            self._done("closed")
            if await self._copy(slots) is None:
                return False
        log = self._source.identity
        opening = {
            slot: Opening(s.epoch, log.name, log.incarnation_at(s.position), s.position, s.history)
            for slot, s in closed.items()
        }
        if not await self._to.open_slots(opening, log):
            return False
        self.opened |= opening.keys()
        self._done("opened")
        return True

    async def _left_to_do(self) -> tuple[dict[int, int], dict[int, SlotState]]:
        """The slots to be closed, with the epoch that begins then; and those that are closed and wait to be opened."""
        here, there = await self._source.slot_states(), await self._to.slot_states()
        closing = {s: here[s].epoch + 1 for s in self._move.slots if s in here and here[s].to is None}
        closed = {
            s: here[s]
            for s in self._move.slots
            if s in here and here[s].to == self._move.to and (s not in there or there[s].epoch < here[s].epoch)
        }
        return closing, closed

    def _done(self, what: str) -> None:
        self._report(Step(self._move, what, self._imported))

    async def _copy(self, slots: Sequence[int], rest: float = 0) -> int | None:
        """Import what the source has and the new shard has not; the head before the last look, or None if disturbed."""
        while True:
            began = time.monotonic()
            head = await self._source.head()
            found = await self._source.slot_events(slots, self._place, EVENTS_PER_READ)
            if (new := self._not_arrived(event for _, event in found)) and not await self._import(new):
                return None
            if found:
                self._place = found[-1][0]
            if len(found) < EVENTS_PER_READ:
                self._place = max(self._place, (head, 0))  # what these slots get from now on comes behind it
                return head
            await asyncio.sleep(rest * (time.monotonic() - began))

    def _not_arrived(self, events: Iterable[StoredEvent]) -> list[StoredEvent]:
        """Those of the next events that the new shard has not yet. Raises WrongStore where it has something else."""
        new = []
        for event in events:
            slot = event.slot
            self._seen[slot] = self._seen[slot].with_ids((event.id,))
            if self._seen[slot].length > self._arrived[slot].length:
                new.append(event)
            elif self._seen[slot].length == self._arrived[slot].length and self._seen[slot] != self._arrived[slot]:
                raise WrongStore(
                    f"slot {slot}: what shard {self._move.to!r} holds of its history is not what shard "
                    f"{self._move.source!r} has. Nothing more was moved; compare the two before you go on."
                )
        return new

    async def _import(self, events: Sequence[StoredEvent]) -> bool:
        by_slot: dict[int, list[bytes]] = {}
        for event in events:
            by_slot.setdefault(event.slot, []).append(event.id)
        expected = {slot: self._arrived[slot] for slot in by_slot}
        if not await self._to.import_events(events, expected, self._source.identity):
            return False
        self._arrived |= {slot: expected[slot].with_ids(ids) for slot, ids in by_slot.items()}
        self._imported += len(events)
        return True


def placement_of(now: Mapping[int, Held]) -> tuple[str, ...]:
    """The shard that holds each slot, or will when its move is finished."""
    return tuple(now[slot].bound_for for slot in sorted(now))
