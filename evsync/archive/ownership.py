"""Which shard had a slot when, by what archived logs say themselves: where logs fit together, and what fits there.

A slot's history lies in stays, one behind the other: what a log says of it between SlotOpened (or the beginning, in the
first shard) and SlotClosed. So the logs alone tell what each store must say of its slots, and which events of the
others' stays it has to hold as imports. Nothing but logs is archived.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from evsync.archive.dependence import Dependent, lowered
from evsync.control import OWN_STREAMS, SLOTS_STREAM
from evsync.errors import ArchiveIncomplete
from evsync.ports import Arrived
from evsync.records import History, LogIdentity, SlotRows, StoredEvent
from evsync.stores.slot_events import SlotEvent, folded, is_of, slot_event


@dataclass(frozen=True, slots=True)
class Surveyed:
    """One shard's log, as far as it can be restored."""

    identity: LogIdentity
    end: int
    said: Sequence[SlotEvent] = ()
    """Of its slots."""
    used: bool = False
    """Whether it holds events of the service's own."""


class Route(NamedTuple):
    """A shard that holds a stay's events as imports."""

    shard: str
    at: int
    """See Place."""
    first: int
    """Number of the first of them."""


class Stay(NamedTuple):
    """A slot's time in one shard, over by now."""

    history: History
    """Of the events that it got there."""
    routes: list[Route]


@dataclass(slots=True)
class ShardPlan:
    """What becomes of one shard."""

    end: int
    """Up to where its log is restored."""
    left_out: int
    """Events behind that, which do not fit the other shards'."""
    owns_slots: bool
    """Whether it is the first shard, where all slots were open in the beginning."""
    slots: SlotRows | None = None
    """What its store says of them then."""
    stays: dict[tuple[int, int], Stay] = field(default_factory=dict)
    """By slot and epoch: of slots that have left."""


def ends_that_fit(logs: Mapping[str, Surveyed]) -> dict[str, int]:
    """The ends of shards' logs, lowered until each slot that came to a shard has left the one before.

    Raises ArchiveIncomplete where logs speak of a shard that is not among them.
    """
    dependents = []
    for shard, log in logs.items():
        for said in log.said:
            if said.shard not in logs:
                raise ArchiveIncomplete(
                    f"the log of shard {shard!r} says at position {said.position} that slot {said.slot} "
                    f"{'came from' if said.history is None else 'went to'} shard {said.shard!r}, which is not among "
                    f"{', '.join(logs)}: nothing was restored. All shards that the service ever had are restored "
                    "together: name it too"
                )
            if said.history is None:
                dependents.append(Dependent(shard, said.before, said.shard, _closed_at(said, logs[said.shard])))
    return lowered({shard: log.end for shard, log in logs.items()}, dependents)


def _closed_at(opened: SlotEvent, log: Surveyed) -> int:
    """Where a log says that a slot was closed which was opened so; beyond its end if it has lost that."""
    if log.identity.incarnation_at(opened.closed_at) == opened.incarnation:
        return opened.closed_at
    found = (s for s in log.said if s.history is not None and (s.slot, s.epoch) == (opened.slot, opened.epoch))
    return next((s.position for s in found if is_of(opened, s, log.identity)), sys.maxsize)


def plan_shards(logs: Mapping[str, Surveyed], ends: Mapping[str, int]) -> dict[str, ShardPlan]:
    """What becomes of shards whose logs are restored up to these ends.

    Raises ArchiveIncomplete where the logs contradict one another there.
    """
    first = _first(logs)
    plans = {shard: ShardPlan(ends[shard], log.end - ends[shard], shard == first) for shard, log in logs.items()}
    closed: dict[tuple[int, int], tuple[str, SlotEvent]] = {}
    opened: dict[tuple[int, int], tuple[str, SlotEvent]] = {}
    for shard, log in logs.items():
        said = [s for s in log.said if s.position <= ends[shard]]
        plans[shard].slots = folded(log.identity.slots, said, owns_slots=shard == first)
        for each in said:
            of_kind = opened if each.history is None else closed
            if of_kind.setdefault((each.slot, each.epoch), (shard, each))[0] != shard:
                raise _contradiction(of_kind[each.slot, each.epoch], (shard, each))
    groups: dict[str, list[tuple[int, int, int, str]]] = defaultdict(list)
    for slot in dict.fromkeys(slot for slot, _ in (*closed, *opened)):
        for to, at, epoch, source in _arrivals(slot, first, closed, opened, plans, logs):
            groups[to].append((at, slot, epoch, source))
    if left := [*closed.values(), *opened.values()]:
        raise _contradiction(left[0])
    for to, arriving in groups.items():
        number = 1
        for at, slot, epoch, source in sorted(arriving):
            stay = plans[source].stays[slot, epoch]
            stay.routes.append(Route(to, at, number))
            number += stay.history.length
    return plans


def _first(logs: Mapping[str, Surveyed]) -> str:
    """The shard where all slots were open in the beginning: epoch 1 ends there, and only there are events without."""
    left = next((shard for shard, log in logs.items() if any(s.history and s.epoch == 2 for s in log.said)), None)
    return left or next((shard for shard, log in logs.items() if log.used), next(iter(logs)))


def _arrivals(
    slot: int,
    shard: str,
    closed: dict[tuple[int, int], tuple[str, SlotEvent]],
    opened: dict[tuple[int, int], tuple[str, SlotEvent]],
    plans: Mapping[str, ShardPlan],
    logs: Mapping[str, Surveyed],
) -> Iterator[tuple[str, int, int, str]]:
    """Follow a slot from shard to shard: to which shard, and where, which epoch's events came, and from which log.

    What is accounted for is taken out of `closed` and `opened`.
    """
    before, epoch = History(), 1
    stays: list[tuple[int, str]] = []
    while (left := closed.pop((slot, epoch + 1), None)) is not None:
        if left[0] != shard or left[1].history is None:
            raise _contradiction(left)
        plans[shard].stays[slot, epoch] = Stay(left[1].history.behind(before), [])
        stays.append((epoch, shard))
        before, epoch = left[1].history, epoch + 1
        if (came := opened.pop((slot, epoch), None)) is None:
            return  # on its way
        to, said = came
        if (to, said.shard) != (left[1].shard, shard) or not is_of(said, left[1], logs[shard].identity):
            raise _contradiction(left, came)
        known = max((e for e, s in stays if s == to), default=0)
        for e, source in stays:
            if e > known:
                yield to, said.before, e, source
        shard = to


def _contradiction(*said: tuple[str, SlotEvent]) -> ArchiveIncomplete:
    where = " and ".join(f"at position {s.position} of shard {shard!r} (epoch {s.epoch})" for shard, s in said)
    return ArchiveIncomplete(
        f"the shards' logs do not fit together: what is said of slot {said[0][1].slot} {where} is not what the others "
        "say. They are not the logs of one service, or one of them was put back by hand. Nothing was restored"
    )


class Follows(Protocol):
    """Is told of a log's events, in their order, while it is restored."""

    def see(self, events: Sequence[StoredEvent]) -> Mapping[str, list[Arrived]]:
        """The next events: what of them each other shard holds as imports. Raises ArchiveIncomplete."""
        ...


class OnlyLog:
    """Follows the log of a service's only shard: none of its slots can have moved."""

    def __init__(self, log: str) -> None:
        self._log = log

    def see(self, events: Sequence[StoredEvent]) -> Mapping[str, list[Arrived]]:
        """See Follows. Raises for a log that is not the only one."""
        for event in events:
            if event.stream == SLOTS_STREAM:
                raise ArchiveIncomplete(
                    f"log {self._log} is that of one of several shards (slot {event.slot} was moved at position "
                    f"{event.position}), and all shards are restored together: name a store for every shard, as in "
                    "--to a=sqlite:///a.db --to b=sqlite:///b.db. Nothing was restored"
                )
        return {}


class PlannedLog:
    """Follows one of several shards' logs, and says which of its events are imports elsewhere."""

    def __init__(self, log: str, slots: int, plan: ShardPlan) -> None:
        self._log, self._plan = log, plan
        self._epochs: dict[int, int] = dict.fromkeys(range(slots) if plan.owns_slots else (), 1)
        self._histories: dict[int, History] = defaultdict(History)

    def see(self, events: Sequence[StoredEvent]) -> Mapping[str, list[Arrived]]:
        """See Follows. Raises where a slot's events are not what the log said of them, or of one that was not there."""
        found: dict[str, list[Arrived]] = defaultdict(list)
        for event in events:
            if event.stream.startswith(OWN_STREAMS):
                if (said := slot_event(event)) is not None:
                    self._turn(said)
                continue
            slot = event.slot
            epoch = self._epochs.get(slot)
            if epoch is None:
                raise self._wrong(slot, event.position, "belongs to a slot that was not open in this shard")
            if (stay := self._plan.stays.get((slot, epoch))) is None:
                continue
            history = self._histories[slot]
            for shard, at, first in stay.routes:
                found[shard].append(((at, first + history.length), event))
            self._histories[slot] = history.with_ids((event.id,))
        return found

    def _turn(self, said: SlotEvent) -> None:
        if said.history is None:
            self._epochs[said.slot] = said.epoch
            return
        epoch = self._epochs.pop(said.slot, None)
        stay = self._plan.stays.get((said.slot, epoch)) if epoch is not None else None
        if stay is None or self._histories.pop(said.slot, History()) != stay.history:
            raise self._wrong(said.slot, said.position, "tells of another history than the events before it")

    def _wrong(self, slot: int, position: int, what: str) -> ArchiveIncomplete:
        return ArchiveIncomplete(
            f"position {position} of log {self._log} {what} (slot {slot}): the archive is not that of one log, or of a "
            "store that was damaged. Nothing was restored"
        )
