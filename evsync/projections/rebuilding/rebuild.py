"""Rebuilding a read model while the old one is in use: fill a shadow from history, catch up, exchange the two.

    fill        the ordinary runner fills the shadow, with checkpoints and leases of its own; kill it, and the next one
                goes on there
    freeze      once it is nearly there, the live model's groups are taken, as a worker takes them over: it stands still
    catch up    the shadow goes on until it shows all that the live model shows: milliseconds
    exchange    one transaction: tables, checkpoints, and tokens that no worker of the old model has
    drop        the old copy, when its grace is over, by whoever comes by

Killed at any moment, the live model is as it was, and its workers go on; if it was frozen, after FREEZE_S seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

import sqlalchemy as sa

from evsync.errors import ConfigurationError, EvsyncError, StoreUnavailable
from evsync.ports import LogSource, Progress, unheard
from evsync.projections.failures import DatabaseAway
from evsync.projections.models.bookkeeping import exists, version_of
from evsync.projections.models.database import ViewsDatabase
from evsync.projections.models.engines import ViewsPlace
from evsync.projections.models.sql_model import SqlModel
from evsync.projections.pause import patiently, pause_s
from evsync.projections.projection import Projection
from evsync.projections.rebuilding.exchange import (
    ATTACHED,
    REBUILDER,
    Exchange,
    Lost,
    Shown,
    placed,
    reaches,
    shown_by,
    sweep,
)
from evsync.projections.rebuilding.shadow import Mark, file_of, fingerprint_of, obtain, peek, remove, shadow_place
from evsync.projections.running.runner import BATCH, ProjectionRunner
from evsync.projections.status import FollowerStatus
from evsync.records import service_of
from evsync.tasks import end_task

T = TypeVar("T")
logger = logging.getLogger("evsync")

GRACE_S = 60.0
"""How long the old copy is kept, for who reads it yet."""
NEAR = BATCH
"""So many events before the end of its logs a shadow is near enough: the rest is applied while the live model waits."""
_LEASE_S = 1.0
"""Of a shadow's groups: how soon the next attempt goes on after one that was killed."""
_SILENCE_S = 0.5
"""How long nothing comes before that is said."""
_CATCH_UP_S = 20.0
_LOOK_S = 0.1
_FIND_S = 30.0
"""How long a log is sought that the live model shows."""
_ATTEMPTS, _TRIES = 60, 3


def log_waiting(reason: str) -> None:
    """Say it in the log, where nobody looks on."""
    logger.warning("a rebuild waits: %s", reason)


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """A rebuild that was completed."""

    projection: str
    version: int
    events: int
    """How many were applied to the new model, in all."""
    resumed: bool
    """Whether it went on with what an earlier attempt had filled."""
    seconds: float
    frozen_s: float
    """How long the live model stood still."""
    waited_for: Sequence[str] = ()
    """What kept it waiting on the way, each once: a broker that was away, a stream that was not there yet."""


class Rebuild:
    """One attempt to rebuild a projection's read model. Raises in its constructor what can never be done."""

    def __init__(
        self,
        projection: Projection[Any],
        database: ViewsDatabase | None,
        sources: Sequence[LogSource],
        *,
        anew: bool = False,
        only_if_older: bool = False,
        grace_s: float = GRACE_S,
        batch: int = BATCH,
        timeout_s: float | None = None,
        advance: Progress = unheard,
        tell: Callable[[str], None] = log_waiting,
    ) -> None:
        """`anew`: do not go on with what an earlier attempt has filled, as is done where the code is the same.
        `only_if_older`: not where the read model is of this version already. `timeout_s`: how long it may stand
        still before it gives up; `tell` hears what is waited for, whenever that is something else."""
        if not isinstance(projection.model, SqlModel) or database is None:
            raise ConfigurationError(
                f"projection {projection.name!r} keeps its model in memory: it is made from the logs' beginning each "
                "time its service is opened, so open it again"
            )
        self._projection, self._metadata, self._database = projection, projection.model.metadata, database
        self._sources, self._anew, self._grace_s, self._batch = tuple(sources), anew, grace_s, batch
        self._advance, self._only_if_older = advance, only_if_older
        self._standstill = _Standstill(projection.name, timeout_s, tell)
        self._mark: Mark | None = None
        self._place = shadow_place(database.place, projection.name)
        self._exchange = Exchange(
            projection=projection.name,
            version=projection.version,
            groups=projection.groups,
            metadata=self._metadata,
            fingerprint=fingerprint_of(projection, self._metadata),
            owner=f"{REBUILDER}{socket.gethostname()}:{os.getpid()}:{uuid4().hex}",
            shadow=self._place.shadow or ATTACHED,
        )

    async def run(self) -> RebuildReport:
        """Fill, catch up, exchange.

        Raises ConfigurationError where an exchange would lose what others have made, what halts the new code (the live
        model is as it was then), StoreUnavailable when readers do not let go of the old tables.
        """
        begun = time.monotonic()
        await self._patiently(self._exchange.check_possible)
        try:
            for _ in range(_TRIES):
                try:
                    events, resumed, frozen_s = await self._attempt()
                except Lost as e:
                    lost = e
                    self._standstill.is_over()
                    if not await self._is_placed():
                        continue
                    await self._patiently(self._exchange.thaw)
                    await self._tidy()
                    events, resumed, frozen_s = await self._patiently(self._exchange.events), True, 0.0
                name, version = self._projection.name, self._projection.version
                taken_s = time.monotonic() - begun
                return RebuildReport(name, version, events, resumed, taken_s, frozen_s, tuple(self._standstill.reasons))
        except BaseException:
            with contextlib.suppress(Exception):
                await self._database.write(self._exchange.thaw)
            raise
        finally:
            if self._database.place.in_memory:
                await self._database.write(lambda connection: remove(connection, self._place))
                file_of(self._place).parent.rmdir()
        raise EvsyncError(
            f"the new model of projection {self._projection.name!r} was not put in place: {lost}. The live model is as "
            "it was. Rebuild again; it goes on with what is filled"
        ) from lost

    async def _attempt(self) -> tuple[int, bool, float]:
        """How many events the new model holds, whether some were there already, how long the live one stood still."""
        shadow, resumed = await self._open_shadow()
        try:
            runner = ProjectionRunner(self._projection, shadow, self._sources, batch=self._batch, lease_s=_LEASE_S)
            async with _running(runner) as task:
                while True:
                    heads = await self._fill(runner, task)
                    frozen = time.monotonic()
                    live = await self._patiently(self._exchange.freeze)
                    if live is None:
                        await self._check_shadow()
                        await self._moment(task, _LOOK_S)
                        continue
                    if await self._catch_up(shadow, heads, live, task):
                        break
                    await self._patiently(self._exchange.thaw)
            events = await shadow.read(self._exchange.events)
        except Exception:
            await self._check_shadow()  # whatever it was: if another process has removed the shadow, it was that
            raise
        finally:
            await shadow.close()
        await self._carry_out()
        frozen_s = time.monotonic() - frozen
        await self._tidy()
        return events, resumed, frozen_s

    async def _tidy(self) -> None:
        """Remove what is left of a shadow that is in place. If that takes too long, the next rebuild does."""
        self._standstill.is_over()
        with contextlib.suppress(StoreUnavailable):
            await self._patiently(lambda c: _remove_placed(c, self._place, self._projection.name))

    async def _open_shadow(self) -> tuple[ViewsDatabase, bool]:
        """The shadow, and whether anything was in it already. Raises EvsyncError when there is nothing to do."""

        def work(connection: sa.Connection) -> tuple[Mark, bool]:
            version = version_of(connection, self._projection.name)
            if self._only_if_older and (version is None or version >= self._projection.version):
                raise EvsyncError(f"the read model of {self._projection.name!r} is of version {version} by now")
            left = peek(connection, self._place)
            done = left is not None and left.nonce == placed(connection).get(self._projection.name)
            return obtain(connection, self._place, self._exchange.fingerprint, anew=self._anew or done)

        self._mark, resumed = await self._patiently(work)
        self._anew = False
        return ViewsDatabase(self._place), resumed

    async def _is_placed(self) -> bool:
        """Whether another process has put the very shadow in place that this one has been filling too."""
        nonce = self._mark.nonce if self._mark is not None else None
        return nonce is not None and (await self._patiently(placed)).get(self._projection.name) == nonce

    async def _check_shadow(self) -> None:
        """Raise Lost if the shadow is another by now, or none."""
        if await self._patiently(lambda connection: peek(connection, self._place)) != self._mark:
            raise Lost("the shadow was removed, or is made for other code by now")

    async def _fill(self, runner: ProjectionRunner, task: asyncio.Task[None]) -> dict[str, int]:
        """Return once the shadow is near the end of its logs: where these are. Raises Lost, StoreUnavailable."""
        checked = near_since = time.monotonic()
        before = -1
        while True:
            if time.monotonic() - checked > 1.0:
                await self._check_shadow()
                checked = time.monotonic()
            status = await runner.status()
            done = sum(log.position for log in status.logs)
            heads = {log.log: log.head for log in status.logs if log.head is not None}
            due = sum(heads.values())
            self._advance(done, max(done, due))
            missing: list[str] = []
            if status.waiting_for or len(heads) != len(status.logs) or due - done > NEAR:
                near_since = time.monotonic()
            elif not (missing := await self._missing(heads)):
                return heads
            elif time.monotonic() - near_since > _FIND_S:
                raise EvsyncError(
                    f"the live model of projection {self._projection.name!r} shows events of {', '.join(missing)}, and "
                    "there is no such log to be read here: the new model would lack them. It was not put in place; "
                    "name that shard's store in the settings, or see that its stream is there, and rebuild again"
                )
            else:
                runner.seek(missing)
            reason = self._waits_for(status, missing)
            if done != before or not reason:
                self._standstill.is_over()
                before = done
            else:
                self._standstill.because(reason)
            await self._moment(task, _LOOK_S)

    async def _missing(self, found: Collection[str]) -> list[str]:
        """The logs that the live model shows, of services that are still read, and that were not found here (yet)."""
        live = await self._patiently(self._exchange.shown) if await self._patiently(exists) else {}
        return [log for log in live if service_of(log) in self._projection.sources and log not in found]

    def _waits_for(self, status: FollowerStatus, missing: Sequence[str]) -> str:
        """What keeps the shadow's runner from getting on; "" if nothing does. `missing`: see `_missing`."""
        absent = [source for source in self._sources if source.service in status.waiting_for]
        reasons = [
            *(getattr(source, "waiting_for", f"no log of service {source.service!r} is there") for source in absent),
            status.reason,
            *(log.reason for log in status.logs),
            *(f"where log {log.log!r} ends cannot be told" for log in status.logs if log.head is None),
            *(f"the live model shows events of log {log!r}, which is not found" for log in missing),
        ]
        return "; ".join(dict.fromkeys(reason for reason in reasons if reason))

    async def _catch_up(
        self, shadow: ViewsDatabase, heads: dict[str, int], live: Shown, task: asyncio.Task[None]
    ) -> bool:
        """Whether the shadow reached these heads, and all that the frozen model shows, in time and while it was frozen.

        Without the heads a first model, or the successor of one that halted long ago, could be shown half-built.
        """
        end = time.monotonic() + _CATCH_UP_S
        renewed = time.monotonic()
        name, groups = self._projection.name, self._projection.groups
        while True:
            self._standstill.is_over()
            shown = await shadow.read(lambda c: shown_by(c, name, None, groups=groups))
            full = all(head == 0 or (log in shown and shown[log][1] >= head) for log, head in heads.items())
            if full and reaches(shown, live):
                return True
            if time.monotonic() > end:
                return False
            if time.monotonic() - renewed > 1.0:
                try:
                    await self._patiently(self._exchange.keep_frozen)
                except Lost:
                    return False
                renewed = time.monotonic()
            await self._moment(task, 0.005)

    @staticmethod
    async def _moment(task: asyncio.Task[None], seconds: float) -> None:
        """Wait a little. Raises what ended the runner."""
        await asyncio.wait([task], timeout=seconds)
        if task.done():
            task.result()
            raise EvsyncError("the runner of the shadow ended by itself")

    async def _carry_out(self) -> None:
        """Raises Lost, StoreUnavailable."""
        for attempt in range(1, _ATTEMPTS):
            try:
                await self._write_beside(lambda connection: self._exchange.carry_out(connection, self._grace_s))
            except DatabaseAway as e:
                reason = e
                if attempt == 1:  # it may have taken long, or effect: the next one tells
                    self._standstill.is_over()
                self._standstill.because(str(e))
                await asyncio.sleep(min(pause_s(attempt), 0.5))
                with contextlib.suppress(DatabaseAway, Lost):
                    await self._database.write(self._exchange.keep_frozen)
            else:
                return
        raise StoreUnavailable(
            f"the new model of projection {self._projection.name!r} is filled and was not put in place: {reason}. The "
            "live model is as it was. Rebuild again when the database can be written to and nobody reads the old "
            "tables for long; it goes on with what is filled"
        ) from reason

    async def _write_beside(self, work: Callable[[sa.Connection], T]) -> T:
        if not self._place.is_sqlite:
            return await self._database.write(work)
        if not file_of(self._place).exists():
            raise Lost("the shadow was removed")
        return await self._database.write_beside(file_of(self._place), ATTACHED, work)

    async def _patiently(self, work: Callable[[sa.Connection], T]) -> T:
        """Write to the live model's database. Trouble that passes is waited out, as long as nothing may come."""

        def tell(error: Exception | None) -> None:
            if error is not None:
                self._standstill.because(str(error))

        return await patiently(lambda: self._database.write(work), tell, passing=(DatabaseAway,))


class _Standstill:
    """Tells why a rebuild does not get on, and gives it up when that lasts too long."""

    def __init__(self, projection: str, timeout_s: float | None, tell: Callable[[str], None]) -> None:
        self._projection, self._timeout_s, self._tell = projection, timeout_s, tell
        self.reasons: dict[str, None] = {}
        """All that were told, in order."""
        self.is_over()

    def is_over(self) -> None:
        """It goes on."""
        self._since = time.monotonic()

    def because(self, reason: str) -> None:
        """It does not, for this reason. Raises StoreUnavailable when it has not for too long."""
        silent_s = time.monotonic() - self._since
        if silent_s > _SILENCE_S and reason not in self.reasons:
            self.reasons[reason] = None
            self._tell(reason)
        if self._timeout_s is not None and silent_s > self._timeout_s:
            raise StoreUnavailable(
                f"projection {self._projection!r} was not rebuilt: nothing has come of it for {silent_s:.0f} s: "
                f"{reason}. The live model is as it was. Rebuild again when that is over; it goes on with what is "
                "filled"
            )


async def drop_old_copies(database: ViewsDatabase) -> float | None:
    """Drop what rebuilds have left and nobody needs any more; in how many seconds there is more, None if never.

    Raises DatabaseAway.
    """

    def work(connection: sa.Connection) -> float | None:
        if database.place.is_sqlite and not database.place.in_memory:
            for projection in placed(connection):
                _remove_placed(connection, shadow_place(database.place, projection), projection)
        return sweep(connection)

    return await database.write(work)


def _remove_placed(connection: sa.Connection, place: ViewsPlace, projection: str) -> None:
    """Remove the file of a shadow that has taken its place (in PostgreSQL the schema went with the exchange), or one
    that somebody has opened after that: it has no mark."""
    if place.is_sqlite and file_of(place).exists():
        mark = peek(connection, place)
        if mark is None or mark.nonce == placed(connection).get(projection):
            remove(connection, place)


@asynccontextmanager
async def _running(runner: ProjectionRunner) -> AsyncIterator[asyncio.Task[None]]:
    """The runner at work, until the block ends."""
    await runner.open()
    task = asyncio.create_task(runner.run(), name=f"evsync rebuild {runner.projection.name}")
    try:
        yield task
    finally:
        await end_task(task)
        await runner.close()
