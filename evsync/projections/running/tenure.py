"""What one runner holds of its projection: which groups, and how far each of its logs has been applied for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from evsync.projections.failures import DatabaseAway, Fenced
from evsync.projections.models.claims import Holding
from evsync.projections.models.read_model import ModelSession
from evsync.projections.parking import ParkedStream
from evsync.projections.running.continuity import incarnation_of
from evsync.projections.running.followed_log import FollowedLog
from evsync.projections.running.visibility import Visibility
from evsync.records import Checkpoint


class Tenure:
    """Takes groups and gives them back, so that every worker has its share, and knows what may be relied on.

    Whatever uses the holding does so under `lock`: a batch is applied whole before a group is given back.
    """

    def __init__(self, session: ModelSession[Any], visibility: Visibility, trouble: Callable[[], str | None]) -> None:
        """`trouble` says what is in the way of the runner, for others to see."""
        self.lock = asyncio.Lock()
        self.holding: Holding | None = None
        """None while there are no groups."""
        self.logs: dict[str, FollowedLog] = {}
        self.unprepared = False
        """Whether the read model may have to be made again first: its database was away."""
        self._parked: dict[str, dict[str, int]] = {}
        self.reason: str | None = None
        """Why the database could not be reached when it was last balanced, if it could not."""
        self._session, self._visibility, self._trouble = session, visibility, trouble
        visibility.incarnation_of = self._incarnation_of
        self._certain = True
        self._present = False
        self._over = False

    def _incarnation_of(self, log: str, number: int) -> str | None:
        return incarnation_of(self.logs[log].reader, number) if log in self.logs else ""

    def add(self, log: FollowedLog) -> None:
        """A log has been found."""
        self.logs[log.name] = log
        if self.holding is not None:
            log.hold(self.holding)

    async def balance(self) -> bool:
        """Show a sign of life, give back or take groups; whether any are held. None are after a halt.

        Raises DatabaseAway, and ConfigurationError or WrongStore for a read model that has become another meanwhile.
        """
        async with self.lock:
            if self._over:  # who takes groups takes the note away that says why they were left
                return False
            try:
                await self._balance()
            except Fenced:
                self.drop()
            return self.holding is not None

    async def ascertain(self) -> Holding:
        """What is held, read anew if it is not certain. Under the lock. Raises Fenced, DatabaseAway, as `balance`."""
        if not self._certain:
            await self._balance()
        if self.holding is None:
            raise Fenced("other workers have its groups")
        return self.holding

    @contextlib.contextmanager
    def doubt(self) -> Iterator[None]:
        """While the block runs, and after it if it raises, what is held is not certain.

        A batch whose outcome is not known may have moved the checkpoints; who is cancelled here does not hear of it.
        """
        self._certain = False
        yield
        self._certain = True

    def parked(self, service: str) -> Mapping[str, int]:
        """The parked streams of a service, in the groups that are held: stream → group."""
        return self._parked.get(service, {})

    def park(self, streams: Iterable[ParkedStream]) -> None:
        """These are parked from now on."""
        for service, stream, group in streams:
            self._parked.setdefault(service, {})[stream] = group
            self._visibility.may_be_parked = True

    def drop(self) -> None:
        """Forget everything that is held."""
        if self.holding is not None:
            self.holding = None
            self._parked.clear()
            self._visibility.lost()

    async def leave(self, note: str | None) -> None:
        """Give the groups back, and leave word if the projection has halted.

        A process that hears of the halt may end it at once, and cancel this: the holding is kept until its turn comes,
        so that whoever calls last (`run`, `close`) makes up for it.
        """
        self._over = self._over or note is not None
        if not self._present:
            return
        async with self.lock:
            if not self._present:
                return
            self._present = False
            self.drop()
            with contextlib.suppress(DatabaseAway):  # then the leases run out by themselves
                await self._session.leave(note)

    async def _balance(self) -> None:
        try:
            if self.unprepared:
                await self._session.prepare()
                self.unprepared = False
            self._present = True
            known = self._known() if self._certain else None
            holding = await self._session.balance(known, self._trouble())
        except DatabaseAway as e:
            # One that comes back may have lost what it had stored last, the read model's beginning too.
            self._certain, self.unprepared, self.reason = False, True, str(e)
            raise
        self._certain, self.reason = True, None
        if not holding.tokens:
            self.drop()
            return
        if known is None:
            # A token that is raised anew may be the same again: the database may have lost that it had been raised.
            for log in self.logs.values():
                log.forget()
        before = known.tokens if known is not None else {}
        for service, streams in self._parked.items():
            kept = {stream: g for stream, g in streams.items() if before.get(g) == holding.tokens.get(g)}
            self._parked[service] = kept
        self.park(holding.parked)
        self.holding = holding
        for log in self.logs.values():
            log.hold(holding)
        self._visibility.holds(holding.tokens.keys(), self._checkpoints(holding))

    def _known(self) -> Holding | None:
        return self.holding and replace(self.holding, checkpoints=self._checkpoints(self.holding))

    def _checkpoints(self, holding: Holding) -> list[Checkpoint]:
        """Those of the logs that are followed, which have moved since, and of others."""
        known = [c for log in self.logs.values() for c in log.checkpoints.values()]
        return known + [c for c in holding.checkpoints if c.log not in self.logs]
