"""What a store says of its slots as rows of a database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evsync.ports import Arrived
from evsync.records import History, SlotState, StoredEvent

STATE_COLUMNS = 'slot, epoch, "to", position, length, digest'
ARRIVAL_COLUMNS = "slot, length, digest"


def states_of(rows: Iterable[Sequence[Any]]) -> dict[int, SlotState]:
    """The states in rows of STATE_COLUMNS."""
    return {
        slot: SlotState(epoch, to, position, History(length, digest))
        for slot, epoch, to, position, length, digest in rows
    }


def state_rows(states: Mapping[int, SlotState]) -> list[tuple[Any, ...]]:
    """Rows of STATE_COLUMNS."""
    return [(slot, s.epoch, s.to, s.position, *s.history) for slot, s in states.items()]


def arrived_of(slots: Iterable[int], rows: Iterable[Sequence[Any]]) -> dict[int, History]:
    """What has arrived of slots, by rows of ARRIVAL_COLUMNS; nothing of those without a row."""
    return dict.fromkeys(slots, History()) | {slot: History(length, digest) for slot, length, digest in rows}


def arrival_rows(arrived: Mapping[int, History]) -> list[tuple[Any, ...]]:
    """Rows of ARRIVAL_COLUMNS."""
    return [(slot, *history) for slot, history in arrived.items()]


def history_of(rows: Iterable[Sequence[Any]]) -> list[Arrived]:
    """Events in their places, by rows of the two numbers of a place and the columns of an event."""
    return [((row[0], row[1]), StoredEvent(*row[2:])) for row in rows]
