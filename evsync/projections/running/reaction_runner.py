"""The runner of a reaction: one event at a time, its answer saved in one commit with the checkpoint."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import ValidationError

from evsync.codec.values import unpack
from evsync.control import is_control
from evsync.errors import (
    Conflict,
    DecodingError,
    EvsyncError,
    OtherIncarnation,
    OutcomeUnknown,
    StoreFull,
    StoreUnavailable,
)
from evsync.ports import LogReader, LogSource
from evsync.projections.contracts import explain
from evsync.projections.event import Event
from evsync.projections.failures import CannotApply
from evsync.projections.halt import halted_at
from evsync.projections.pause import patiently, pause_s
from evsync.projections.reaction import Reaction
from evsync.projections.running.answered_log import AnsweredLog, ReadCheckpoints
from evsync.projections.running.barrier import LOOK_S, applied_in
from evsync.projections.running.continuity import check_batch
from evsync.projections.running.following import Following, Stop
from evsync.projections.status import FollowerStatus, LogStatus, State, waiting_for
from evsync.records import (
    Checkpoint,
    Position,
    StoredEvent,
    command_of,
    decode_meta,
    event_uuid,
    incarnation_at,
    to_time_us,
)
from evsync.tags import metadata

if TYPE_CHECKING:
    from evsync.domain import BaseAggregate

Aggregates = Sequence["BaseAggregate[Any]"]
CommitAnswer = Callable[[Aggregates, str, Checkpoint, int], Awaitable[Position]]
"""Saves the aggregates (perhaps none) and the follower's checkpoint in one commit, accepted only if the stored
checkpoint is at the position given last (0: or there is none). Raises Conflict otherwise."""

logger = logging.getLogger("evsync")

BATCH = 200
IDLE_S = 5.0
SETTLE_S = 0.05
"""How long a log must be silent to count as idle."""
LAZY_EVENTS = 256
"""After how many events that needed no commit the checkpoint is stored all the same; at the latest when it is idle."""
STANDBY_S = 3.0
"""How long the stored checkpoint must stand still before a process that stood by tries again."""
PASSING = (StoreUnavailable, StoreFull, OutcomeUnknown)
"""What the store says that is not the event's fault, and is waited out."""


class ReactionRunner:
    """Answers the events of some logs, each exactly once as far as its own service is changed.

    The checkpoint is part of the commit that holds the answer, and the commit is refused unless the checkpoint is where
    this runner believes it to be: of two processes only one can answer an event, whatever either of them thinks. The
    other then stands by until the checkpoint has not moved for a while.
    """

    def __init__(
        self,
        reaction: Reaction,
        *,
        checkpoints: ReadCheckpoints,
        commit: CommitAnswer,
        sources: Sequence[LogSource],
        service: object,
        standby_s: float = STANDBY_S,
    ) -> None:
        self.reaction = reaction
        self.halted: EvsyncError | None = None
        """What stopped the reaction for good: Halted, or the error of a log that a person must mend."""
        self._checkpoints, self._commit, self._service = checkpoints, commit, service
        self._sources, self._standby_s = tuple(sources), standby_s
        self._since_us = to_time_us(reaction.since) if isinstance(reaction.since, datetime) else None
        self._logs: dict[str, AnsweredLog] = {}
        self._answered = applied_in(self._logs, 1)
        self._following = Following(self._sources, self._logs, begin=self._begin, follow=self._follow, halt=self._halt)
        self._running = False

    async def run(self) -> None:
        """Work until cancelled. Raises what halted the reaction."""
        self._running = True
        try:
            await self._following.run()
        finally:
            self._running = False
        if self.halted is not None:
            raise self.halted.with_traceback(None)

    async def step(self, log: str | None = None, limit: int = BATCH) -> bool:
        """One small unit of work, for a world that decides what happens when: read once, and answer what was read.

        Returns whether anything was done (a failed attempt is something). Not beside `run()`.
        """
        if self.halted is not None:
            return False

        async def work(found: AnsweredLog) -> bool:
            seen = found.seen
            _, (ready, _, further) = await found.feed.now(seen.position, seen.incarnation, self._answered, limit)
            self._following.named(further)
            if not ready:
                await self._store(found)
            elif not await self._answer_all(found, ready):
                await found.load(self._checkpoints)
            return bool(ready)

        return await self._following.step(log, work)

    @property
    def logs(self) -> tuple[str, ...]:
        """The logs found so far."""
        return tuple(self._logs)

    async def status(self) -> FollowerStatus:
        """How far every log has been answered, and what stands in the way if anything does."""
        state: State = "halted" if self.halted else "running" if self._running else "standby"
        stored: dict[str, int] = {}
        with contextlib.suppress(*PASSING):
            stored = {c.log: c.position for c in await self._checkpoints(self.reaction.name)}
        heads = await self._following.heads(stored)
        names = sorted({*heads, *stored, *self._logs})
        logs = [self._status_of(name, stored.get(name, 0), heads.get(name), state) for name in names]
        if state == "running" and logs:
            state = next((s for s in ("retrying", "running", "standby") if any(log.state == s for log in logs)), state)
        reason = str(self.halted) if self.halted else self._following.reason
        return FollowerStatus(self.reaction.name, state, reason, logs, waiting_for(self.reaction.sources, logs))

    def _status_of(self, name: str, stored: int, head: int | None, state: State) -> LogStatus:
        if (log := self._logs.get(name)) is None:
            return LogStatus(name, stored, head, state, None)
        return LogStatus(name, log.seen.position, head, log.state if state == "running" else state, log.reason)

    async def close(self) -> None:
        """Let go of the logs."""
        await self._following.close()

    # ---- following logs

    async def _begin(self, readers: Sequence[LogReader]) -> None:
        """Find the places to begin at: the stored checkpoints, else what `since` says, which "now" settles once.

        It is settled for all logs of a service that are there by then; one that joins later is answered from its
        beginning.
        """
        logs = [AnsweredLog(reader, self.reaction.name, BATCH) for reader in readers]
        settled = any([await self._patiently(partial(log.load, self._checkpoints)) for log in logs])
        if self.reaction.since == "now" and not settled:
            for log in logs:
                await self._patiently(partial(self._settle, log))
        self._logs.update((log.name, log) for log in logs)

    async def _settle(self, log: AnsweredLog) -> bool:
        """Let a log be answered from its end on, as soon as that is known. Returns True."""
        reader = log.reader
        if (head := await reader.head()) is None or reader.incarnation is None:
            raise StoreUnavailable(f"waiting to know where log {log.name!r} ends, to begin there")
        start = Checkpoint(log.name, 0, incarnation_at(reader.incarnation, reader.ancestry, head), head)
        with contextlib.suppress(Conflict):  # another process was first
            await self._commit((), self.reaction.name, start, 0)
        return await log.load(self._checkpoints)  # what is stored, whoever stored it

    async def _patiently(self, work: Callable[[], Awaitable[bool]]) -> bool:
        return await patiently(work, self._waits, passing=PASSING)

    def _waits(self, error: Exception | None) -> None:
        self._following.reason = str(error) if error else None

    async def _follow(self, log: AnsweredLog) -> None:
        while True:
            # What was seen is stored when the log is idle, so while there is some, idleness must show soon.
            patience_s = SETTLE_S if log.unstored else IDLE_S
            _, (ready, barrier, further) = await log.feed.up_to_barrier(
                log.seen.position, log.seen.incarnation, self._answered, patience_s, SETTLE_S
            )
            self._following.named(further)
            done = await (self._answer_all(log, ready) if ready else self._store(log))
            if barrier is not None and not ready:
                await asyncio.sleep(LOOK_S)
            if not done:
                await self._recover(log)

    async def _recover(self, log: AnsweredLog) -> None:
        """After a failed attempt: pause, or stand by for the other process; then go on from what is stored."""
        if log.state == "standby":
            await self._stand_by(log)
            return
        level = logging.WARNING if log.failures else logging.DEBUG  # a conflict is ordinary
        logger.log(level, "reaction %s, trying again: %s", self.reaction.name, log.reason)
        while True:
            await asyncio.sleep(pause_s(max(1, log.failures)))
            try:
                await log.load(self._checkpoints)
                return
            except PASSING as e:
                log.failed(str(e))

    async def _stand_by(self, log: AnsweredLog) -> None:
        """Return when events have waited for an answer so long that the other process must be gone."""
        logger.info("reaction %s: another process answers log %s; standing by", self.reaction.name, log.name)
        clock = asyncio.get_running_loop().time
        waiting: tuple[int, float] | None = None  # the position that events wait behind, and since when
        while True:
            try:
                await log.load(self._checkpoints)
                head = await log.reader.head()
            except PASSING as e:
                log.reason = str(e)
            else:
                position = log.stored.position
                if head is None or head <= position:
                    waiting = None
                elif waiting is None or waiting[0] != position:
                    waiting = position, clock()
                elif clock() - waiting[1] > self._standby_s:
                    log.state, log.reason = "running", None
                    return
            await asyncio.sleep(self._standby_s / 10)

    # ---- answering

    async def _answer_all(self, log: AnsweredLog, events: Sequence[StoredEvent]) -> bool:
        """Answer these events in order. False when it stopped before the end. Raises Stop when the reaction halts."""
        check_batch(log.name, log.seen.position, log.seen.incarnation, events)
        for event in events:
            if event.position <= log.seen.position:
                continue
            try:
                await self._answer(log, event)
            except PASSING as e:
                log.failed(str(e))
                return False
            except Exception as e:
                # A conflict may be over the checkpoint; else it is over an aggregate: load it again, decide again.
                if not (isinstance(e, Conflict) and (await self._is_overtaken(log) or self._is_contended(log, e))):
                    await self._failed(log, event, e)
                return False
            if log.unstored >= LAZY_EVENTS and not await self._store(log):
                return False
        return True

    async def _answer(self, log: AnsweredLog, event: StoredEvent) -> None:
        steps = self.reaction.handlers.steps(event.type)
        if self._since_us is not None and event.time_us < self._since_us:
            steps = ()
        checkpoint = log.after(event, handled=bool(steps))
        if not steps:
            log.passed(checkpoint, stored=False, control=is_control(event.type))
            return
        tags = decode_meta(event.meta)
        correlation = tags.get("correlation_id") or str(UUID(bytes=command_of(event.id)))
        with metadata(correlation_id=correlation, causation_id=str(event_uuid(event.id))):
            changed: list[BaseAggregate[Any]] = []
            for decode, handle in steps:
                try:
                    data = decode(unpack(event.data))
                except ValidationError as e:
                    raise CannotApply(event, f"it does not meet the contract: {explain(e)}") from e
                changed += _aggregates(handle, await handle(Event.of(event, data, log.name), self._service))
            if changed:
                await self._commit(changed, self.reaction.name, checkpoint, log.stored.position)
        log.passed(checkpoint, stored=bool(changed))

    async def _store(self, log: AnsweredLog) -> bool:
        """Store the checkpoint alone, if it has moved since it was stored. False when that was not possible."""
        if not log.unstored:
            return True
        try:
            await self._commit((), self.reaction.name, log.seen, log.stored.position)
        except PASSING as e:
            log.failed(str(e))
            return False
        except Conflict:
            await self._is_overtaken(log)
            return False
        log.stored, log.unstored = log.seen, 0
        return True

    async def _is_overtaken(self, log: AnsweredLog) -> bool:
        """Whether the stored checkpoint is not where this process left it: then another process answers this log."""
        believed = log.stored.position
        try:
            await log.load(self._checkpoints)
        except PASSING as e:
            log.failed(str(e))
            return True
        if log.stored.position == believed:
            return False
        log.state, log.reason = "standby", "another process answers this log"
        return True

    def _is_contended(self, log: AnsweredLog, conflict: Conflict) -> bool:
        """Whether others were merely faster: that is nobody's fault, however often it happens."""
        if not log.is_contended(conflict):
            return False
        log.failed(str(conflict))
        log.failures = 0  # soon: a longer pause would not make them slower
        return True

    async def _failed(self, log: AnsweredLog, event: StoredEvent, error: Exception) -> None:
        known = isinstance(error, (CannotApply, DecodingError))
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        log.attempts += 1
        log.failed(f"{event.type} at position {event.position}: {reason}")
        if log.attempts <= self.reaction.retries:
            return
        halted = halted_at(event, follower=self.reaction.name, log=log.name, reason=reason, cause=error)
        await self._store(log)  # so that the events before it are not handled again
        await self._halt(log, halted)
        raise Stop from error

    async def _halt(self, log: AnsweredLog | None, error: EvsyncError) -> None:
        if log is not None:
            if isinstance(error, OtherIncarnation) and not error.values.get("restored"):
                error = log.other_history(self.reaction.name)
            log.reason = str(error)
        self.halted = error


def _aggregates(handler: Callable[..., Any], answer: Any) -> Sequence[BaseAggregate[Any]]:
    """What a handler returned, as a sequence. Raises TypeError for what cannot be saved."""
    if answer is None:
        return ()
    found: Sequence[Any] = answer if isinstance(answer, Sequence) and not isinstance(answer, str) else (answer,)
    for aggregate in found:
        if not hasattr(aggregate, "pending_events"):
            raise TypeError(
                f"{getattr(handler, '__qualname__', handler)!r} returned {aggregate!r}; a reaction returns an "
                "aggregate, a sequence of aggregates, or None"
            )
    return found
