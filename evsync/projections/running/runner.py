"""The runner of a projection: reads its logs, applies batches, and moves the checkpoints in the same transactions."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn
from uuid import uuid4

from evsync.errors import ConfigurationError, EvsyncError, NotVisible, StoreUnavailable
from evsync.ports import LogReader, LogSource, Stretch
from evsync.projections.batch import Settle, apply_batch, blamed, end_of, half_of
from evsync.projections.failures import CannotApply, DatabaseAway, Fenced, GatheredFailed
from evsync.projections.halt import halted_at, parked_at, read_note, write_note
from evsync.projections.models.claims import Claim, Holding, Observation
from evsync.projections.models.database import ViewsDatabase
from evsync.projections.models.parked_streams import ParkedStreams
from evsync.projections.models.read_model import Outcome
from evsync.projections.parking import set_aside
from evsync.projections.pause import patiently, pause_s
from evsync.projections.projection import Projection
from evsync.projections.running.barrier import LOOK_S, applied_in
from evsync.projections.running.feed import FATAL
from evsync.projections.running.followed_log import FollowedLog
from evsync.projections.running.following import Following, Stop
from evsync.projections.running.tenure import Tenure
from evsync.projections.running.visibility import Visibility
from evsync.projections.status import FollowerStatus, State, status_of
from evsync.records import Checkpoint, Position, StoredEvent, service_of

logger = logging.getLogger("evsync")
BATCH = 2_000
"""To begin with: they grow while far behind, see FollowedLog."""
LEASE_S = 3.0
IDLE_S = 5.0
"""How long one call of a log's reader waits for events; only how often an idle log is asked again depends on it."""


class ProjectionRunner:
    """Keeps one projection's read model in step with its logs: every event applied once, each stream in its order.

    `open()` first, then `run()` (a task), or `step()` again and again; `wait()` and `status()` at any time after
    `open()`, also where the projection is run by another process. Several runners of one projection share its groups,
    one that finds none free stands by; one that a group was taken from notices in its next transaction, which is rolled
    back.
    """

    def __init__(
        self,
        projection: Projection[Any],
        database: ViewsDatabase | None,
        sources: Sequence[LogSource],
        *,
        batch: int = BATCH,
        lease_s: float = LEASE_S,
    ) -> None:
        """`sources` are where the logs of `projection.sources` are read; `batch` is about how many events a transaction
        takes; `lease_s` is how long after its last sign of life a worker's groups may be taken."""
        self.projection = projection
        self.halted: EvsyncError | None = None
        """What stopped the projection for good: Halted, or the error of a log that a person must mend."""
        owner = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex}"
        self._claim = Claim(projection.name, projection.version, projection.groups, owner, lease_s)
        self._session = projection.model.open(self._claim, database)
        self._sources, self._batch = tuple(sources), batch
        self._visibility = Visibility(projection.name, projection.groups, self._session.observe, self._trouble)
        self._tenure = Tenure(self._session, self._visibility, self._trouble)
        self._logs = self._tenure.logs
        self._fenced_in_a_row = 0
        self._applied = applied_in(self._logs, projection.groups)
        self._following = Following(self._sources, self._logs, begin=self._begin, follow=self._follow, halt=self._halt)

    # ---- for the service

    async def open(self) -> None:
        """Make the read model ready. Reads no log yet.

        Raises ConfigurationError for a projection without handlers, for sources that are not the projection's, and for
        a read model made by another version of it or another number of groups; WrongStore for one of a newer evsync;
        StoreUnavailable when its database does not answer.
        """
        wanted, given = set(self.projection.sources), {s.service for s in self._sources}
        if not wanted:
            raise ConfigurationError(f"projection {self.projection.name!r} has no handlers: register some with on()")
        if wanted != given:
            raise ConfigurationError(
                f"projection {self.projection.name!r} reads the logs of {sorted(wanted)} and was given {sorted(given)}"
            )
        try:
            await self._session.prepare()
        except DatabaseAway as e:
            raise StoreUnavailable(
                f"the read model of projection {self.projection.name!r} cannot be opened: {e}"
            ) from e

    @property
    def state(self) -> Any:
        """The state of a MemoryModel: a fold over whole batches. Raises what halted the projection."""
        if self.halted is not None:
            raise self.halted.with_traceback(None)
        return self._session.state

    async def wait(self, position: Position, timeout_s: float) -> None:
        """Return the moment the read model shows everything up to `position`.

        Raises NotVisible when the time has run out; Parked when an event of that commit was set aside; at once what
        halted the projection; ConfigurationError for a log of a service that it does not read, OtherIncarnation for a
        position of a log that has been restored since. A log that was not found yet may be that of a new shard.
        """
        if service_of(position.log) not in self.projection.sources:
            raise ConfigurationError(
                f"projection {self.projection.name!r} does not follow log {position.log!r}; it follows "
                f"{', '.join(self._logs) or 'the logs of ' + ', '.join(self.projection.sources)}"
            )
        self.seek([position.log])
        await self._visibility.wait(position, timeout_s)
        # Asked each time where it may have happened: a rebuild by another process may have parked what was visible.
        if self._visibility.may_be_parked or self.projection.then == "park":
            try:
                parked = await self._session.parked_at(position)
            except DatabaseAway as e:
                raise NotVisible(f"whether {position} is parked cannot be told: {e}") from e
            if parked is not None:
                raise parked_at(parked, follower=self.projection.name)

    def seek(self, logs: Iterable[str]) -> None:
        """These logs are there, somebody says: look for them soon."""
        self._following.named(logs)

    @property
    def parked_streams(self) -> ParkedStreams:
        """What a person may do about parked streams. Raises ConfigurationError for a model that lives in memory."""
        return self._session.parked_streams(self.projection.handlers)

    async def status(self) -> FollowerStatus:
        """How far every log has been applied, by whom, and what stands in the way if anything does."""
        known = [c for log in self._logs.values() for c in log.checkpoints.values()]
        observed = Observation(known, held=False, halted=None)
        away: str | None = None
        try:
            observed = await self._session.observe()
        except DatabaseAway as e:
            away = str(e)
        state, reason = self._state(observed, away)
        trouble = {name: log.reason for name, log in self._logs.items()}
        heads = await self._following.heads({c.log: None for c in observed.checkpoints})
        return status_of(self.projection, state, reason, observed, heads, trouble)

    def _state(self, observed: Observation, away: str | None) -> tuple[State, str | None]:
        """Of the projection, and the reason if there is one: what this process knows, then what others have left."""
        if self.halted is not None:
            return "halted", str(self.halted)
        if self._tenure.holding is not None:
            return ("retrying" if self._trouble() else "running"), self._tenure.reason or self._following.reason
        if observed.halted is not None:
            return "halted", str(read_note(observed.halted))
        theirs = next((worker.reason for worker in observed.workers if worker.reason), None)
        if observed.held:
            return ("retrying" if theirs else "running"), self._following.reason or theirs
        return "standby", self._tenure.reason or self._following.reason or away or theirs

    async def close(self) -> None:
        """Give the groups back, so that others can take over at once, and let go of the logs."""
        await self._let_go()
        self._visibility.close()
        await self._following.close()

    async def run(self) -> None:
        """Work until cancelled: take a fair share of the groups as soon as there is one, and follow the logs.

        Raises what halted the projection. Cancelling waits for the transaction under way.
        """
        self._visibility.heir = True
        try:
            while self.halted is None and await self._stand_by():
                await asyncio.create_task(self._following.run(self._keep_balance))
                if (me := asyncio.current_task()) is not None and me.cancelling():
                    # A group whose tasks fail while it is being cancelled tells of the failures alone. It has a task of
                    # its own because it would also leave cancellations behind in the one that waits for it.
                    raise asyncio.CancelledError
            assert self.halted is not None
            raise self.halted.with_traceback(None)
        finally:
            self._visibility.heir = False
            await self._let_go()

    async def step(self, log: str | None = None, limit: int | None = None) -> bool:
        """One small unit of work, for a world that decides what happens when: read once and apply what was read.

        `log` picks one log (by default the first that has something), `limit` is about how many events. Returns whether
        anything was done: a failed attempt is, after which the next step tries again, until the projection halts.
        Without waiting, so not beside `run()`. Raises DatabaseAway.
        """
        if self.halted is not None:
            return False

        async def work(found: FollowedLog) -> bool:
            if self._tenure.holding is None and not await self.balance():
                return False
            position = found.position
            ready, reach = await found.now(self._applied, limit)
            self._following.named(reach.further)
            if ready.events:
                await self._attempt(found, position, ready)
            return bool(ready.events)

        return await self._following.step(log, work)

    @property
    def groups(self) -> tuple[int, ...]:
        """The groups that this runner has: none while it stands by, or was not told to run."""
        return tuple(self._tenure.holding.tokens) if self._tenure.holding is not None else ()

    @property
    def logs(self) -> tuple[str, ...]:
        """The logs found so far."""
        return tuple(self._logs)

    # ---- taking and giving back

    async def _stand_by(self) -> bool:
        """Return once there are groups to work on; False if the projection had to halt instead."""
        if self._fenced_in_a_row > 1:  # the first time others are likely to have the groups: balancing tells
            await asyncio.sleep(pause_s(self._fenced_in_a_row - 1))
        try:
            while self._tenure.holding is None and not await patiently(self.balance, passing=(DatabaseAway,)):
                await asyncio.sleep(self._claim.lease_s / 6)
        except FATAL as e:
            await self._halt(None, e)
        return self.halted is None

    async def balance(self) -> bool:
        """Show a sign of life, and give back or take groups so that each worker has its share; whether any are held.

        `run()` does it all the time. Raises DatabaseAway, and what is FATAL for a read model that cannot be used.
        """
        return await self._tenure.balance()

    async def _let_go(self) -> None:
        await self._tenure.leave(write_note(self.halted) if self.halted is not None else None)

    async def _keep_balance(self) -> None:
        """Balance all the time. Ends the tenure when the work has to be begun anew, from other checkpoints."""
        while True:
            await asyncio.sleep(self._claim.lease_s / 4)
            try:
                if not await self.balance():
                    logger.info("projection %s: other workers have its groups; standing by", self.projection.name)
                    raise Stop
            except DatabaseAway:
                continue  # batches will say so; and if the leases run out, the next transaction
            if any(log.rewound for log in self._logs.values()):
                raise Stop  # whoever waits for events at the end of a log does not see that there are earlier ones

    def _fenced(self, why: Fenced) -> NoReturn:
        logger.info("projection %s: %s; standing by", self.projection.name, why)
        self._fenced_in_a_row += 1
        self._tenure.drop()
        raise Stop

    # ---- following logs

    async def _begin(self, readers: Sequence[LogReader]) -> None:
        for reader in readers:
            self._tenure.add(FollowedLog(reader, self._batch, self._session.growth, self.projection.groups))

    def _trouble(self) -> str | None:
        of_logs = (log.reason for log in self._logs.values() if log.reason)
        return self._tenure.reason or self._following.reason or next(of_logs, None)

    async def _follow(self, log: FollowedLog) -> None:
        while True:
            position, log.rewound = log.position, False
            ready, reach = await log.next(self._applied, IDLE_S)
            self._following.named(reach.further)
            if ready.events and not await self._attempt(log, position, ready):
                logger.warning("projection %s, trying again: %s", self.projection.name, log.reason)
                await asyncio.sleep(pause_s(log.failures))
            elif reach.barrier is not None and not ready.events:
                await asyncio.sleep(LOOK_S)

    async def _attempt(self, log: FollowedLog, after: int, stretch: Stretch) -> bool:
        """Apply once what was read behind position `after`. False when it failed and is to be tried again.

        Raises Stop when this worker's work has ended, and what is FATAL.
        """
        async with self._tenure.lock:
            try:
                if self._tenure.holding is None or self.halted is not None:
                    raise Stop
                holding = await self._tenure.ascertain()
                if log.fits(after, stretch):  # else what is held has changed meanwhile: read what that needs
                    log.check(stretch)
                    with self._tenure.doubt():
                        await self._apply(holding, log, stretch.events, stretch.events[-1])
            except Fenced as e:
                self._fenced(e)
            except DatabaseAway as e:
                self._tenure.unprepared = True
                log.failed(str(e))
                return False
            except CannotApply as e:
                log.failed(f"{e.event.type} at position {e.event.position}: {e.reason}", culprit=e.event.position)
                problem = e
            else:
                return True
        if log.attempts <= self.projection.retries:
            return False
        await self._give_up(log, problem)
        return True

    async def _give_up(self, log: FollowedLog, problem: CannotApply) -> None:
        """Have the event parked that has failed for the last time, or halt. Raises Stop then."""
        name, cause = self.projection.name, problem.__cause__
        if self.projection.then == "park":
            logger.warning("projection %s: %s; parking its stream", name, log.reason)
            log.condemn(problem.event.position, problem.reason)
            return
        error = halted_at(problem.event, follower=name, log=log.name, reason=problem.reason, cause=cause)
        await self._halt(log, error)
        raise Stop from problem

    async def _apply(self, holding: Holding, log: FollowedLog, events: Sequence[StoredEvent], end: StoredEvent) -> None:
        handlers, groups = self.projection.handlers, self.projection.groups
        kept, parked = set_aside(
            log.name, events, log.checkpoints, groups,
            parked=self._tenure.parked(log.service), condemned=log.due, is_handled=handlers.steps,
        )  # fmt: skip
        moved: list[Checkpoint] = []

        def work(state: Any, settle: Settle | None) -> Outcome:
            moved[:] = apply_batch(handlers, log.name, kept, log.checkpoints, groups, state, settle, end)
            return Outcome(moved, parked)

        try:
            await self._session.apply(holding, log.checkpoints.values(), work)
        except GatheredFailed:
            # Written one by one, either the event that is to blame shows, or what only a whole batch trips over passes.
            try:
                await self._session.apply(holding, log.checkpoints.values(), work, one_by_one=True)
            except GatheredFailed as e:  # at the very end: only a smaller batch can tell which event is to blame
                if half := half_of(events, log.position):
                    await self._apply(holding, log, half, end_of(half[-1]))
                    return
                raise blamed(kept, log.checkpoints, handlers, groups, str(e)) from e
        self._tenure.park(p.as_stream for p in parked)
        self._fenced_in_a_row = 0
        log.moved(moved, lasting=self._session.lasting)
        self._visibility.moved(moved)

    async def _halt(self, log: FollowedLog | None, error: EvsyncError) -> None:
        self.halted = error
        if log is not None:
            log.reason = str(error)
        await self._let_go()
        self._visibility.halted(error)
