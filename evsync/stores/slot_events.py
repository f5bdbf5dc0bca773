"""What a log says of its slots: that they were closed and opened, and what follows from that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from evsync.codec.values import pack, unpack
from evsync.control import SLOT_CLOSED, SLOTS_STREAM
from evsync.errors import DecodingError
from evsync.records import Ancestor, History, LogIdentity, SlotRows, SlotState, StoredEvent, before_commit


class SlotEvent(NamedTuple):
    """What a log says of one of its slots."""

    position: int
    slot: int
    epoch: int
    shard: str
    """That it went to, or came from."""
    history: History | None
    """All that the slot had when it was closed; None: it was opened."""
    closed_at: int = 0
    """Of one that was opened: the position of the SlotClosed in the log that it came from, … Of one that was closed,
    and lost, and brought back when the log was restored: the position that it had, …"""
    incarnation: str = ""
    """… and the incarnation there."""
    before: int = 0
    """The position before its commit."""


def says_closed(epoch: int, to: str, history: History, was_at: tuple[int, str] | None = None) -> bytes:
    """The data of a SLOT_CLOSED: see SlotEvent. `was_at`: the position and incarnation that a lost one had."""
    said: dict[str, Any] = {"epoch": epoch, "to": to, "length": history.length, "digest": history.digest}
    if was_at is not None:
        said["position"], said["incarnation"] = was_at
    return pack(said)


def says_opened(epoch: int, source: str, incarnation: str, position: int, ancestry: Sequence[Ancestor] = ()) -> bytes:
    """The data of a SLOT_OPENED: `source` is the log that it comes from, the others those of its SLOT_CLOSED there.

    `ancestry` is that of the log by now: who still follows it as one of these has to hear of its restore first.
    """
    said: dict[str, Any] = {"epoch": epoch, "from": source, "incarnation": incarnation, "position": position}
    if ancestry:
        said["ancestry"] = [a.incarnation for a in ancestry]
    return pack(said)


def is_of(opened: SlotEvent, closed: SlotEvent, log: LogIdentity) -> bool:
    """Whether a slot was opened by what says in the log that it was closed, or said so before that was restored."""
    now = (closed.position, log.incarnation_at(closed.position))
    return (opened.closed_at, opened.incarnation) in (now, (closed.closed_at, closed.incarnation))


def slot_event(event: StoredEvent) -> SlotEvent | None:
    """What the event says of its slot; None for one of another kind. Raises DecodingError."""
    if event.stream != SLOTS_STREAM:
        return None
    try:
        said: dict[str, Any] = unpack(event.data)
        before = before_commit(event)
        if event.type.endswith(SLOT_CLOSED):
            history = History(said["length"], said["digest"])
            was_at = said.get("position", 0), said.get("incarnation", "")
            return SlotEvent(event.position, event.slot, said["epoch"], said["to"], history, *was_at, before)
        shard = said["from"].partition(".")[2]
        return SlotEvent(
            event.position, event.slot, said["epoch"], shard, None, said["position"], said["incarnation"], before
        )
    except (KeyError, TypeError, AttributeError) as e:
        raise DecodingError(f"the event at position {event.position} does not tell of a slot: {e!r}") from e


def folded(slots: int, events: Iterable[SlotEvent], *, owns_slots: bool) -> SlotRows | None:
    """What a store says of its slots behind these events, all of its log; None where none has ever moved.

    `owns_slots`: whether all were open in it at first.
    """
    states = unmoved(slots) if owns_slots else {}
    arrived: dict[int, History] = {}
    moved = not owns_slots
    for e in events:
        moved = True
        if e.history is not None:
            states[e.slot] = SlotState(e.epoch, e.shard, e.position, e.history)
            arrived[e.slot] = e.history
        else:
            states[e.slot] = SlotState(e.epoch)
            arrived.pop(e.slot, None)
    return SlotRows(states, arrived) if moved else None


def unmoved(slots: int) -> dict[int, SlotState]:
    """The states of a first shard's slots."""
    return dict.fromkeys(range(slots), SlotState(1))
