"""Waiting until a position is visible in a read model: woken by the runner here, by looking where it runs elsewhere."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import NamedTuple

from evsync.errors import EvsyncError, NotVisible, OtherIncarnation
from evsync.projections.failures import DatabaseAway
from evsync.projections.halt import read_note
from evsync.projections.models.claims import Observation
from evsync.records import Checkpoint, Position

POLL_S = 0.015


class _Waiter(NamedTuple):
    position: Position
    done: asyncio.Future[None]


class Visibility:
    """What of each log one projection shows, and who waits for more.

    The runner of this process tells of every move of the groups that it holds, and a waiter wakes in the same step of
    the event loop. For the groups that others hold, one task looks into the database for all waiters, and only while
    there are any.
    """

    def __init__(
        self,
        projection: str,
        groups: int,
        observe: Callable[[], Awaitable[Observation]],
        trouble: Callable[[], str | None],
    ) -> None:
        """`observe` looks into the read model; `trouble` says what is in the way of the runner here, if anything."""
        self.incarnation_of: Callable[[str, int], str | None] = lambda _log, _number: None
        """That a position of a log has, or will have; None if its reader does not know, "" while there is no reader."""
        self._projection, self._groups, self._observe, self._trouble = projection, groups, observe, trouble
        self._known: dict[str, dict[int, Checkpoint]] = defaultdict(dict)
        """By log and group."""
        self._shown: dict[str, Position] = {}
        self._waiters: dict[str, list[_Waiter]] = defaultdict(list)
        self._held: Collection[int] = ()
        """The groups of which this process's runner tells."""
        self._halted: EvsyncError | None = None
        self.heir = False
        """Whether this process's runner is about to take over as soon as nobody holds the groups: then an old note that
        somebody has halted is no reason to give up."""
        self.may_be_parked = False
        """Whether any event was ever seen to be parked: if not, none is behind the positions that are known."""
        self._looking: asyncio.Task[None] | None = None

    def moved(self, checkpoints: Iterable[Checkpoint]) -> None:
        """These are the checkpoints of some groups now: wake who waited for them."""
        logs = set()
        for c in checkpoints:
            self._known[c.log][c.group] = c
            logs.add(c.log)
        for log in logs:
            self._show(log)

    def holds(self, groups: Collection[int], checkpoints: Iterable[Checkpoint]) -> None:
        """This process's runner has these groups from now on, and will tell of every move of theirs.

        `checkpoints` are those of all its groups in the logs that it knows.
        """
        self._held = groups
        self._halted = None
        self.moved(checkpoints)
        if not self._is_told() and any(self._waiters.values()):
            self._look()

    def lost(self) -> None:
        """This process's runner has no groups any more: what it has told may be what its database has lost."""
        self._held = ()
        self._known.clear()
        self._shown.clear()
        if any(self._waiters.values()):
            self._look()

    def halted(self, error: EvsyncError) -> None:
        """The runner of this process has halted: whoever waits is told at once."""
        self._held, self._halted = (), error
        self._fail(error)

    async def wait(self, position: Position, timeout_s: float) -> None:
        """Return when the position is visible.

        Raises NotVisible when the time has run out, the error that halted the projection, and OtherIncarnation.
        """
        waiter = _Waiter(position, asyncio.get_running_loop().create_future())
        if self._settle(waiter):
            return waiter.done.result()
        waiters = self._waiters[position.log]
        waiters.append(waiter)
        if not self._is_told():
            self._look()
        try:
            async with asyncio.timeout(timeout_s):
                await waiter.done
        except NotVisible:  # a TimeoutError too, but not that of the line above
            raise
        except TimeoutError:
            raise self._not_visible(position, timeout_s) from None
        finally:
            waiters.remove(waiter)

    def close(self) -> None:
        """Stop looking. Whoever still waits is told."""
        if self._looking is not None:
            self._looking.cancel()
        self._fail(NotVisible(f"projection {self._projection!r} was closed while somebody waited for it"))

    def _is_told(self) -> bool:
        return len(self._held) == self._groups

    def _show(self, log: str) -> None:
        """Work out how far a log shows: as far as its group that is furthest behind."""
        known = self._known[log]
        least = min(known.values(), key=lambda c: c.position)
        if len(known) < self._groups or not least.incarnation:
            self._shown.pop(log, None)
            return
        self._shown[log] = Position(log, least.incarnation, least.position)
        for waiter in self._waiters.get(log, ()):
            if not waiter.done.done():
                self._settle(waiter)

    def _settle(self, waiter: _Waiter) -> bool:
        """Answer a waiter if there is an answer."""
        shown = self._shown.get(waiter.position.log)
        if shown is None:
            return False
        position = waiter.position
        right = self.incarnation_of(position.log, position.number)
        if right == "" and shown.number < position.number:
            return False  # the log may have been restored, and go on to there
        right = right or shown.incarnation
        if right != position.incarnation:
            waiter.done.set_exception(self._other_incarnation(position, shown))
        elif shown.number >= position.number:
            waiter.done.set_result(None)
        return waiter.done.done()

    def _fail(self, error: EvsyncError) -> None:
        for waiters in self._waiters.values():
            for waiter in waiters:
                if not waiter.done.done():
                    waiter.done.set_exception(error.with_traceback(None))

    def _other_incarnation(self, position: Position, shown: Position) -> OtherIncarnation:
        return OtherIncarnation(
            f"position {position} belongs to incarnation {position.incarnation} of its log, and projection "
            f"{self._projection!r} has applied incarnation {shown.incarnation} up to position {shown.number}: the log "
            "was restored from a backup in between. An old position means nothing any more; if the log is the newer "
            "one, the read model must be made anew."
        )

    def _not_visible(self, position: Position, timeout_s: float) -> NotVisible:
        shown = self._shown.get(position.log)
        number = shown.number if shown else 0
        trouble = self._trouble() or (None if shown else "nothing of that log is visible yet: is its service open?")
        reason = f" ({trouble})" if trouble else ""
        return NotVisible(
            f"projection {self._projection!r} has applied log {position.log!r} up to position {number}, "
            f"{position.number - number:,} events short of {position.number}, and did not get there within "
            f"{round(timeout_s, 2):g} s{reason}. What was written is durable; wait longer, or see what `evsync status` "
            "says."
        )

    def _look(self) -> None:
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._keep_looking(), name=f"evsync: watch {self._projection}")

    async def _keep_looking(self) -> None:
        while not self._is_told() and any(self._waiters.values()):
            try:
                seen = await self._observe()
            except DatabaseAway:
                if self._halted is not None:
                    self._fail(self._halted)
            else:
                self.may_be_parked = self.may_be_parked or seen.parked > 0
                # What the runner here has told of its own groups is newer than what was read in another thread.
                self.moved(c for c in seen.checkpoints if c.group not in self._held)
                if seen.halted is None and seen.held:
                    self._halted = None  # another worker has taken over
                elif self._halted is not None:
                    self._fail(self._halted)
                elif seen.halted is not None and not self.heir:
                    self._fail(read_note(seen.halted))
            await asyncio.sleep(POLL_S)
