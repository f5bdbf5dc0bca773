"""The half of an SQLite store that moves slots: SlotStore over the functions of `sqlite_slots`."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from evsync.errors import StoreUnavailable
from evsync.ports import Arrived, SlotSize
from evsync.records import History, LogIdentity, Opening, SlotState, StoredEvent
from evsync.stores import sqlite_schema as schema
from evsync.stores import sqlite_slots as slots_of
from evsync.stores.sqlite_errors import translated
from evsync.stores.sqlite_threads import ConnectionThreads
from evsync.stores.tail import Tail

T = TypeVar("T")


class MovableSlots:
    """What SqliteStore is too. Implements SlotStore, whose docstrings say what its methods do."""

    path: Path
    _name: str
    _file: tuple[int, int] | None
    identity: LogIdentity
    _readers: ConnectionThreads
    _writer: ConnectionThreads
    _tail: Tail
    _patience_s: float
    _known_slots: tuple[int, Mapping[int, SlotState]]
    """As of which move, and the states then ({}: not read yet)."""

    async def head(self) -> int:
        """See SqliteStore."""
        raise NotImplementedError

    async def _fetch(self, sql: str, parameters: tuple[Any, ...]) -> list[Any]:
        raise NotImplementedError

    def _check_open(self) -> None:
        raise NotImplementedError

    def _check_file(self) -> None:
        # A file that is deleted or replaced under an open connection goes on taking commits, and they vanish with it.
        if file_id(self._name) != self._file:
            raise StoreUnavailable(
                f"{self.path} was deleted, moved or replaced while this process had it open; nothing was stored. Put "
                "the file back, or start the process again to use the one that is there now."
            )

    def _commit(self, c: sqlite3.Connection) -> None:
        raise NotImplementedError

    # ---- SlotStore

    async def slot_states(self) -> Mapping[int, SlotState]:
        """What the store says of each slot that is, or was, open in it."""
        states = await self._readers.run(
            lambda c: (moves := slots_of.moves_of(c), slots_of.states(c, self.identity, moves))
        )
        self._known_slots = states
        return states[1]

    async def slot_state(self, slot: int) -> SlotState | None:
        """What the store says of one slot now."""
        ((moves,),) = await self._fetch("SELECT moves FROM log", ())
        known, states = self._known_slots
        return (states if states and known == moves else await self.slot_states()).get(slot)

    async def arrived(self, slots: Sequence[int]) -> Mapping[int, History]:
        """What has arrived of the histories of slots that are not open here."""
        return await self._readers.run(lambda c: slots_of.arrivals(c, slots))

    async def slot_events(self, slots: Sequence[int], after: tuple[int, int], limit: int) -> list[Arrived]:
        """The next events of these slots, own and imported, in the order in which they came."""
        return await self._readers.run(lambda c: slots_of.history(c, slots, after, limit))

    async def slot_size(self) -> SlotSize:
        """How much there is in the store."""
        return await self._readers.run(lambda c: slots_of.size(c, self.identity))

    async def import_events(self, events: Sequence[StoredEvent], expected: Mapping[int, History]) -> bool:
        """Import the events behind what is expected to have arrived; False, and nothing done, if that is not so."""
        return await self._change_slots(lambda c: slots_of.bring(c, self.identity, events, expected))

    async def close_slots(
        self, closing: Mapping[int, int], to: str, seen: int, histories: Mapping[int, History]
    ) -> Mapping[int, SlotState] | None:
        """Close slots, each into the epoch given; None, and nothing done, if one is not open in the epoch before."""
        return await self._change_slots(lambda c: slots_of.close(c, self.identity, closing, to, seen, histories))

    async def open_slots(self, opening: Mapping[int, Opening]) -> bool:
        """Open slots whose whole history has arrived; False, and nothing done, where that is not so."""
        return await self._change_slots(lambda c: slots_of.open_(c, self.identity, opening))

    async def _change_slots(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def change(c: sqlite3.Connection) -> T:
            self._check_file()
            schema.begin(c, self._patience_s)
            result = work(c)
            if result:
                self._commit(c)
            return result

        self._check_open()
        try:
            result = await self._writer.run(change)
        except (sqlite3.Error, OverflowError, UnicodeEncodeError) as e:
            raise translated(e, self.path) from e
        if result:
            self._tail.moved(await self.head())
        return result

    def _states(self, c: sqlite3.Connection, moves: int) -> Mapping[int, SlotState]:
        known, states = self._known_slots
        if known != moves or not states:
            states = slots_of.states(c, self.identity, moves)
            self._known_slots = moves, states
        return states


def file_id(path: Path | str) -> tuple[int, int] | None:
    """Which file is at the path now; None where there is none."""
    try:
        status = os.stat(path)  # in a third of the time of Path.stat
    except OSError:
        return None
    return status.st_dev, status.st_ino
