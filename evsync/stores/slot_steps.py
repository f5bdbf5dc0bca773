"""The steps by which slots move, decided before anything is written: pure, and the same for every kind of store.

A store locks what steps and appends agree on, looks up what the decision needs to know, asks for it, and writes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from evsync.codec.values import pack, unpack
from evsync.control import FENCES_STREAM, SHARD_RESTORED, SLOT_CLOSED, SLOT_OPENED, SLOTS_STREAM
from evsync.errors import WrongStore
from evsync.records import Append, Commit, History, LogIdentity, NewEvent, Opening, SlotState, StoredEvent, new_command
from evsync.sharding.slots import slot_of
from evsync.stores.plan import plan
from evsync.stores.slot_events import says_closed, says_opened


class Fence(NamedTuple):
    """The last event of FENCES_STREAM."""

    version: int
    incarnation: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a store says before a step, all of one moment."""

    moves: int
    """How often its states have changed; 0: all slots are open, as in a first shard."""
    states: Mapping[int, SlotState]
    """See SlotStore.slot_states."""
    arrived: Mapping[int, History]
    """See SlotStore.arrived; of the slots of the step."""
    head: int
    version: int
    """Of SLOTS_STREAM."""
    later: Sequence[tuple[int, bytes]] = ()
    """Slots and ids of the log's events of these slots behind the position asked for, in order."""
    fence: Fence | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotChange:
    """What a step writes, in one transaction."""

    rows: Sequence[StoredEvent] = ()
    """Of the log, behind its head."""
    imports: Sequence[StoredEvent] = ()
    states: Mapping[int, SlotState] = field(default_factory=dict)
    """In place of what the store said of these slots; `moves` is raised by one if there are any."""
    arrived: Mapping[int, History] = field(default_factory=dict)
    """In place of what had arrived of these slots; nothing has for those that `states` opens."""

    @property
    def opened(self) -> list[int]:
        """The slots that are open from now on."""
        return [slot for slot, state in self.states.items() if state.to is None]


Decide = Callable[[Found], SlotChange | None]


class Steps:
    """The methods of SlotStore that change something, for a store that can carry out a step."""

    identity: LogIdentity

    async def _step(
        self, slots: Sequence[int], decide: Decide, *, seen: int | None = None, logged: bool = True
    ) -> SlotChange | None:
        """Carry out what is decided on these slots, in one transaction.

        `later` is found behind `seen`. Appends go on meanwhile where the step is not `logged`.
        """
        raise NotImplementedError

    async def import_events(
        self, events: Sequence[StoredEvent], expected: Mapping[int, History], source: LogIdentity | None = None
    ) -> bool:
        """Import the events behind what is expected to have arrived; False, and nothing done, if that is not so."""
        decide = partial(importing, self.identity, events, expected, source)
        return await self._step(list(expected), decide, logged=False) is not None

    async def close_slots(
        self, closing: Mapping[int, int], to: str, seen: int, histories: Mapping[int, History]
    ) -> Mapping[int, SlotState] | None:
        """Close slots, each into the epoch given; None, and nothing done, if one is not open in the epoch before."""
        change = await self._step(list(closing), partial(close, self.identity, closing, to, histories), seen=seen)
        return None if change is None else {slot: change.states[slot] for slot in closing}

    async def open_slots(self, opening: Mapping[int, Opening], source: LogIdentity | None = None) -> bool:
        """Open slots whose whole history has arrived; False, and nothing done, where that is not so."""
        return await self._step(list(opening), partial(open_, self.identity, opening, source)) is not None

    async def fence(self, restored: LogIdentity) -> None:
        """Take slots from a shard's log, from now on, only as it was restored."""
        await self._step([], partial(fence, self.identity, {restored.name: restored.incarnation}))


def importing(
    identity: LogIdentity,
    events: Sequence[StoredEvent],
    expected: Mapping[int, History],
    source: LogIdentity | None,
    found: Found,
) -> SlotChange | None:
    """Import events behind what is expected to have arrived; None where that is not so. Raises as `check_fence`."""
    check_fence(found.fence, identity, source)
    if any(slot in found.states and found.states[slot].to is None for slot in expected):
        return None  # it is open here: somebody has finished the move
    if dict(found.arrived) != dict(expected):
        return None
    return SlotChange(imports=events, arrived=_longer(expected, [(e.slot, e.id) for e in events]))


def close(
    identity: LogIdentity, closing: Mapping[int, int], to: str, histories: Mapping[int, History], found: Found
) -> SlotChange | None:
    """Close slots, each into the epoch given, for the shard `to`; None if one is not open in the epoch before.

    `histories` are those of the events that come before the `later` ones.
    """
    known = found.states
    if any((s := known.get(slot)) is None or s.to is not None or s.epoch + 1 != e for slot, e in closing.items()):
        return None
    full = _longer({slot: histories[slot] for slot in closing}, found.later)
    said = {slot: says_closed(epoch, to, full[slot]) for slot, epoch in closing.items()}
    rows = _control(identity, SLOT_CLOSED, said, found)
    closed = {row.slot: SlotState(closing[row.slot], to, row.position, full[row.slot]) for row in rows}
    return SlotChange(rows=rows, states={**known, **closed} if found.moves == 0 else closed, arrived=full)


def open_(
    identity: LogIdentity, opening: Mapping[int, Opening], source: LogIdentity | None, found: Found
) -> SlotChange | None:
    """Open slots whose whole history has arrived; None if one is further on or not. Raises as `check_fence`."""
    check_fence(found.fence, identity, source)
    if any(slot in found.states and found.states[slot].epoch >= o.epoch for slot, o in opening.items()):
        return None
    if dict(found.arrived) != {slot: o.history for slot, o in opening.items()}:
        return None
    before = source.ancestry if source is not None else ()
    said = {slot: says_opened(o.epoch, o.source, o.incarnation, o.position, before) for slot, o in opening.items()}
    rows = _control(identity, SLOT_OPENED, said, found)
    return SlotChange(rows=rows, states={slot: SlotState(o.epoch) for slot, o in opening.items()})


def fence(identity: LogIdentity, restored: Mapping[str, str], found: Found) -> SlotChange:
    """Say that other shards' logs were restored, and as what."""
    version = found.fence.version if found.fence is not None else 0
    data = pack({**fenced(found.fence, identity), **restored})  # of all: the last event of a stream is never trimmed
    new = NewEvent(f"{identity.service}.{SHARD_RESTORED}", time.time_ns() // 1000, data, None)
    commit = Commit(new_command(), [Append(FENCES_STREAM, slot_of(FENCES_STREAM, identity.slots), version, [new])])
    return SlotChange(rows=plan(identity, found.head, {FENCES_STREAM: version}, {}, [commit]).rows)


def fenced(fence: Fence | None, identity: LogIdentity) -> dict[str, str]:
    """The incarnations as which other shards' logs were restored beside this one, as it is now."""
    return unpack(fence.data) if fence is not None and fence.incarnation == identity.incarnation else {}


def check_fence(fence: Fence | None, identity: LogIdentity, source: LogIdentity | None) -> None:
    """Raise WrongStore where the log that slots come from was restored since: what it has may be lost."""
    now = fenced(fence, identity).get(source.name) if source is not None else None
    if source is None or now in (None, source.incarnation, *(a.incarnation for a in source.ancestry)):
        return
    raise WrongStore(
        f"log {source.name} was restored since, as incarnation {now}, and this store of it is of incarnation "
        f"{source.incarnation}: nothing is taken from it. Let every process use the store that was restored, and start "
        "it again"
    )


def _longer(histories: Mapping[int, History], ids: Iterable[tuple[int, bytes]]) -> dict[int, History]:
    by_slot: dict[int, list[bytes]] = {slot: [] for slot in histories}
    for slot, id in ids:
        by_slot[slot].append(id)
    return {slot: histories[slot].with_ids(found) for slot, found in by_slot.items()}


def _control(identity: LogIdentity, type: str, said: Mapping[int, bytes], found: Found) -> list[StoredEvent]:
    """One control event for each slot, all in one commit behind the head."""
    now = time.time_ns() // 1000
    appends = [
        Append(SLOTS_STREAM, slot, found.version + n, [NewEvent(f"{identity.service}.{type}", now, data, None)])
        for n, (slot, data) in enumerate(said.items())
    ]
    commit = Commit(new_command(), appends)
    return plan(identity, found.head, {SLOTS_STREAM: found.version}, {}, [commit]).rows
