"""The half of an SQLite store that moves slots: SlotStore over the functions of `slots`."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evsync.errors import StoreUnavailable
from evsync.ports import Arrived, SlotSize
from evsync.records import History, SlotState
from evsync.stores.slot_steps import Decide, SlotChange, Steps
from evsync.stores.sqlite import schema, statements
from evsync.stores.sqlite import slots as slots_of
from evsync.stores.sqlite.threads import ConnectionThreads
from evsync.stores.tail import Tail


class MovableSlots(Steps):
    """What SqliteStore is too. Implements SlotStore, whose docstrings say what its methods do."""

    path: Path
    _name: str
    _file: tuple[int, int] | None
    _readers: ConnectionThreads
    _writer: ConnectionThreads
    _tail: Tail
    _patience_s: float
    _known_slots: tuple[int, Mapping[int, SlotState]]
    """As of which move, and the states then ({}: not read yet)."""

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

    async def _step(
        self, slots: Sequence[int], decide: Decide, *, seen: int | None = None, logged: bool = True
    ) -> SlotChange | None:
        def change(c: sqlite3.Connection) -> SlotChange | None:
            self._check_file()
            schema.begin(c, self._patience_s)
            done = slots_of.carry_out(c, self.identity, slots, decide, seen)
            if done is not None:
                self._commit(c)
            return done

        self._check_open()
        done = await self._writer.run(change)
        if done is not None and done.rows:
            self._tail.moved(done.rows[-1].position)
        return done

    def _versions(self, c: sqlite3.Connection, streams: Sequence[str]) -> tuple[int, int, list[int]]:
        """The head of the log, how often slots have moved, and the versions of streams: with imports where one has."""
        if self._known_slots[0] == 0:
            found = statements.look_up(c, statements.VERSION, [(s,) for s in streams])
            if found[1] == 0:
                return found
        return statements.look_up(c, statements.VERSION_MOVED, [(s, s) for s in streams])

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
