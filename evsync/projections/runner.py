"""The runner of a projection: reads its logs, applies batches, and moves the checkpoints in the same transactions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Sequence
from typing import Any, NoReturn
from uuid import uuid4

from evsync.errors import ConfigurationError, EvsyncError, StoreUnavailable
from evsync.ports import LogSource
from evsync.projections.batch import apply_batch, check_batch
from evsync.projections.database import ViewsDatabase
from evsync.projections.feed import FATAL, connect
from evsync.projections.followed_log import FollowedLog
from evsync.projections.halt import halted_at, read_note, write_note
from evsync.projections.heads import Heads
from evsync.projections.pause import pause_s
from evsync.projections.projection import Projection
from evsync.projections.read_model import (
    CannotApply,
    Claim,
    DatabaseAway,
    Fenced,
    GatheredFailed,
    Holding,
    Settle,
)
from evsync.projections.status import FollowerStatus, LogStatus, State
from evsync.projections.visibility import Visibility
from evsync.records import Checkpoint, Position, StoredEvent

logger = logging.getLogger("evsync")

BATCH = 2_000
"""Twice the events take no more statements; measured, that is worth 5 to 10 %. More only makes others wait longer."""
LEASE_S = 3.0
IDLE_S = 5.0
"""How long one call of a log's reader waits for events; only how often an idle log is asked again depends on it."""


class ProjectionRunner:
    """Keeps one projection's read model in step with its logs: every event applied once, in the order of its log.

    `open()` first, then `run()` (a task), or `step()` again and again; `wait()` and `status()` at any time after
    `open()`, also where the projection is run by another process. Of several runners of one projection, one works and
    the others stand by; one that was taken over from notices in its next transaction, which is rolled back.
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
        takes; `lease_s` is how long after its last sign of life a worker's place may be taken."""
        self.projection = projection
        self.halted: EvsyncError | None = None
        """What stopped the projection for good: Halted, or the error of a log that a person must mend."""
        owner = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex}"
        self._claim = Claim(projection.name, projection.version, projection.groups, owner, lease_s)
        self._session = projection.model.open(self._claim, database)
        self._sources, self._batch = tuple(sources), batch
        self._logs: dict[str, FollowedLog] = {}
        self._heads = Heads(self._sources)
        self._holding: Holding | None = None
        self._stale = self._unprepared = False
        self._reason: str | None = None
        self._lock = asyncio.Lock()  # over everything that uses the holding
        self._visibility = Visibility(projection.name, projection.groups, self._session.observe, self._trouble)

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

        Raises NotVisible when the time has run out; at once what halted the projection; ConfigurationError for a log
        that it does not follow, OtherIncarnation for a position of a log that has been restored since.
        """
        service = position.log.partition(".")[0]
        known = any(log.startswith(f"{service}.") for log in self._logs)
        if service not in self.projection.sources or (known and position.log not in self._logs):
            raise ConfigurationError(
                f"projection {self.projection.name!r} does not follow log {position.log!r}; it follows "
                f"{', '.join(self._logs) or 'the logs of ' + ', '.join(self.projection.sources)}"
            )
        await self._visibility.wait(position, timeout_s)

    async def status(self) -> FollowerStatus:
        """How far every log has been applied, and what stands in the way if anything does."""
        state: State = "halted" if self.halted else "running" if self._holding else "standby"
        if state == "running" and (self._stale or self._trouble()):
            state = "retrying"
        reason = str(self.halted) if self.halted else self._reason
        seen = {name: log.position for name, log in self._logs.items()}
        if self._holding is None:
            with contextlib.suppress(DatabaseAway):  # then what this process knows itself
                observed = await self._session.observe()
                seen = _positions(observed.checkpoints)
                if self.halted is None and observed.halted is not None:
                    state, reason = "halted", str(read_note(observed.halted))
                elif self.halted is None and observed.held:
                    state = "running"  # by another process
        heads = await self._heads.now()
        logs = [
            LogStatus(name, seen.get(name, 0), heads.get(name), state, log.reason if log else None)
            for name in sorted({*seen, *heads, *self._logs})
            for log in [self._logs.get(name)]
        ]
        waiting = [s for s in self.projection.sources if not any(log.log.startswith(f"{s}.") for log in logs)]
        return FollowerStatus(self.projection.name, state, reason, logs, waiting)

    async def close(self) -> None:
        """Give the groups back, so that another worker can take over at once, and let go of the logs."""
        await self._let_go()
        self._visibility.close()
        for log in self._logs.values():
            await log.feed.close()
        self._logs.clear()
        await self._heads.close()

    async def run(self) -> None:
        """Work until cancelled: stand by until the groups are free, take them, and follow the logs.

        Raises what halted the projection. Cancelling waits for the transaction under way.
        """
        self._visibility.heir = True
        try:
            while self.halted is None and await self._stand_by():
                try:
                    await asyncio.create_task(self._work())
                except* _Stop:
                    pass
                if (me := asyncio.current_task()) is not None and me.cancelling():
                    # A group whose tasks fail while it is being cancelled tells of the failures alone. It has a task of
                    # its own because it would also leave cancellations behind in the one that waits for it.
                    raise asyncio.CancelledError
            assert self.halted is not None
            raise self.halted.with_traceback(None)
        finally:
            self._visibility.heir = False
            await self._let_go()

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._renew())
            for source in self._sources:
                tasks.create_task(self._follow_source(source, tasks))

    async def step(self, log: str | None = None, limit: int | None = None) -> bool:
        """One small unit of work, for a world that decides what happens when: read once and apply what was read.

        `log` picks one log (by default the first that has something), `limit` is about how many events. Returns whether
        anything was done: a failed attempt is, after which the next step tries again, until the projection halts.
        Without waiting, so not beside `run()`. Raises DatabaseAway.
        """
        if self.halted is not None:
            return False
        found: FollowedLog | None = None
        try:
            for source in self._sources:
                await self._connect(source)
            if self._holding is None and not await self._take():
                return False
            for found in [self._logs[log]] if log is not None else self._logs.values():
                position = found.position
                if events := await found.feed.now(position, found.incarnation, limit):
                    await self._attempt(found, position, events)
                    return True
        except FATAL as e:
            await self._halt(found, e)
            return True
        except _Stop:
            return True
        return False

    @property
    def holds(self) -> bool:
        """Whether this runner has the groups; if not, it stands by, or was not told to run."""
        return self._holding is not None

    @property
    def logs(self) -> tuple[str, ...]:
        """The logs found so far."""
        return tuple(self._logs)

    # ---- taking and giving back

    async def _stand_by(self) -> bool:
        """Return once the groups are taken; False if the projection had to halt instead."""
        failures = 0
        while True:
            try:
                if failures:
                    await self._session.prepare()
                seen = await self._session.observe()
                if not seen.held and await self._take():
                    return True
            except FATAL as e:
                await self._halt(None, e)
                return False
            except DatabaseAway as e:
                failures += 1
                self._reason = str(e)
                await asyncio.sleep(pause_s(failures))
            else:
                self._reason = None
                await asyncio.sleep(self._claim.lease_s / 6)

    async def _take(self) -> bool:
        async with self._lock:
            holding = await self._session.take()
            if holding is None:
                return False
            self._hold(holding)
            return True

    def _hold(self, holding: Holding) -> None:
        self._holding, self._stale, self._reason = holding, False, None
        for log in self._logs.values():
            log.load(holding.checkpoints)
        self._visibility.runs_here(holding.checkpoints)

    async def _let_go(self) -> None:
        """Give the groups back, and leave word if the projection has halted.

        A process that hears of the halt may end it at once, and cancel this: the holding is kept until its turn comes,
        so that whoever calls last (`run`, `close`) makes up for it.
        """
        if self._holding is None:
            return
        self._visibility.runs_elsewhere()
        async with self._lock:
            holding, self._holding = self._holding, None
            if holding is not None:
                note = write_note(self.halted) if self.halted is not None else None
                with contextlib.suppress(Fenced, DatabaseAway):  # then the lease runs out by itself
                    await self._session.release(holding, note)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._claim.lease_s / 3)
            async with self._lock:
                if self._holding is None or self._stale:
                    continue
                try:
                    await self._session.renew(self._holding)
                except Fenced:
                    self._fenced()
                except DatabaseAway:
                    pass  # batches will say so; and if the lease runs out, the next transaction

    def _fenced(self) -> NoReturn:
        logger.info("projection %s: another worker has taken over; standing by", self.projection.name)
        self._holding = None
        self._visibility.runs_elsewhere()
        raise _Stop

    # ---- following logs

    async def _follow_source(self, source: LogSource, tasks: asyncio.TaskGroup) -> None:
        try:
            logs = await self._connect(source)
        except FATAL as e:
            await self._halt(None, e)
            raise _Stop from e
        for log in logs:
            tasks.create_task(self._follow(log))

    async def _connect(self, source: LogSource) -> list[FollowedLog]:
        known = [log for name, log in self._logs.items() if name.startswith(f"{source.service}.")]
        if known:
            return known
        for reader in await connect(source, self._report):
            log = self._logs[reader.log] = FollowedLog(reader, self._batch, self.projection.groups)
            if self._holding is not None:
                log.load(self._holding.checkpoints)
            known.append(log)
        return known

    def _report(self, reason: str | None) -> None:
        self._reason = reason

    def _trouble(self) -> str | None:
        return self._reason or next((log.reason for log in self._logs.values() if log.reason), None)

    async def _follow(self, log: FollowedLog) -> None:
        try:
            while True:
                position = log.position
                events = await log.feed.next(position, log.incarnation, IDLE_S)
                if events:
                    log.feed.read_ahead(events[-1].position, IDLE_S)
                    if not await self._attempt(log, position, events):
                        logger.warning("projection %s: %s; trying again", self.projection.name, log.reason)
                        await asyncio.sleep(pause_s(log.failures))
        except FATAL as e:
            await self._halt(log, e)
            raise _Stop from e
        finally:
            await log.feed.drop()

    async def _attempt(self, log: FollowedLog, after: int, events: Sequence[StoredEvent]) -> bool:
        """Apply once what was read behind position `after`. False when it failed and is to be tried again.

        Raises _Stop when this worker's work has ended, and what is FATAL.
        """
        async with self._lock:
            try:
                if self._holding is None or self.halted is not None:
                    raise _Stop
                if self._stale:
                    await self._retake()
                if log.position == after:  # else the model had to begin anew meanwhile: read from there
                    await self._apply(self._holding, log, events)
            except Fenced:
                self._fenced()
            except DatabaseAway as e:
                self._stale = self._unprepared = True
                log.failed(str(e))
                return False
            except CannotApply as e:
                self._stale = True
                log.failed(f"{e.event.type} at position {e.event.position}: {e.reason}", culprit=e.event.position)
                problem = e
            else:
                return True
        if log.attempts > self.projection.retries:
            name, cause = self.projection.name, problem.__cause__
            error = halted_at(problem.event, follower=name, log=log.name, reason=problem.reason, cause=cause)
            await self._halt(log, error)
            raise _Stop from problem
        return False

    async def _apply(self, holding: Holding, log: FollowedLog, events: Sequence[StoredEvent]) -> None:
        check_batch(log.name, log.position, log.incarnation, events)
        moved: list[Checkpoint] = []

        def work(state: Any, settle: Settle | None) -> Sequence[Checkpoint]:
            moved[:] = apply_batch(
                self.projection.handlers, log.name, events, log.checkpoints, self.projection.groups, state, settle
            )
            return moved

        try:
            await self._session.apply(holding, work)
        except GatheredFailed:
            # Written one by one, either the event that is to blame shows, or what only a whole batch trips over passes.
            try:
                await self._session.apply(holding, work, one_by_one=True)
            except GatheredFailed as e:
                raise CannotApply(events[-1], str(e)) from e
        log.moved(moved)
        self._visibility.moved(moved)

    async def _retake(self) -> None:
        """Begin anew from what is stored, after an attempt whose outcome need not be what it seemed."""
        if self._unprepared:
            await self._session.prepare()
            self._unprepared = False
        holding = await self._session.take()
        if holding is None:
            raise Fenced
        self._hold(holding)

    async def _halt(self, log: FollowedLog | None, error: EvsyncError) -> None:
        self.halted = error
        if log is not None:
            log.reason = str(error)
        await self._let_go()
        self._visibility.halted(error)


def _positions(checkpoints: Sequence[Checkpoint]) -> dict[str, int]:
    """How far each log has been applied: as far as its group that is furthest behind."""
    return {log: min(c.position for c in checkpoints if c.log == log) for log in {c.log for c in checkpoints}}


class _Stop(Exception):
    """Ends the tasks of one tenure: another worker has taken over, or the projection has halted."""
