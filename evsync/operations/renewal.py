"""A read model of an older version that is rebuilt because its projection says so (`rebuild="auto"`)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from evsync.errors import EvsyncError, NotVisible
from evsync.ports import Progress
from evsync.projections import Projection, ProjectionRunner, ViewsDatabase
from evsync.projections.failures import DatabaseAway
from evsync.projections.models.bookkeeping import version_of
from evsync.projections.pause import pause_s
from evsync.projections.rebuilding.rebuild import RebuildReport, drop_old_copies

logger = logging.getLogger("evsync")

_LOOK_S = 0.25
_SWEEP_S = 60.0


class Renewal:
    """Brings one projection's read model to this version, or waits until another process has done it.

    Until then this process's queries of its tables wait: the old model is not what their code is for. Processes of the
    old version go on serving it.
    """

    def __init__(
        self,
        projection: Projection[Any],
        runner: ProjectionRunner,
        views: ViewsDatabase,
        found: int,
        rebuild: Callable[[Progress], Awaitable[RebuildReport]],
    ) -> None:
        """`found` is the version that is there. `rebuild` makes this one of it, unless another process was quicker."""
        self._projection, self._runner, self._views, self._make = projection, runner, views, rebuild
        self._done, self._due = 0, 0
        self._found = found
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def state(self) -> str | None:
        """What is being done, for people; None once the read model is of this version."""
        if self._ready.done():
            return None
        how_far = f": {self._done:,} of {self._due:,} events" if self._due else ""
        return (
            f"the read model of version {self._found} is being rebuilt as version {self._projection.version}{how_far}"
        )

    async def run(self, *, rebuilds: bool) -> None:
        """Return once the runner is open. `rebuilds`: whether this process does the work. Raises what prevents it."""
        try:
            while await self._is_older():
                if rebuilds:
                    await self._rebuild()
                else:
                    await asyncio.sleep(_LOOK_S)
            await self._runner.open()
        except Exception as e:
            self._ready.set_exception(e)
            self._ready.exception()  # whoever waits is told; if nobody does, that is no error of its own
            raise
        self._ready.set_result(None)

    async def wait(self, timeout_s: float) -> None:
        """Return once the read model is of this version. Raises NotVisible, and what prevents it."""
        await asyncio.wait([self._ready], timeout=timeout_s)
        if not self._ready.done():
            raise NotVisible(f"projection {self._projection.name!r} is not ready: {self.state}")
        self._ready.result()

    async def _rebuild(self) -> None:
        try:
            report = await self._make(self._advance)
        except EvsyncError:
            if await self._is_older():  # else another process was quicker
                raise
        else:
            logger.info(
                "projection %s: rebuilt as version %d, %d events", report.projection, report.version, report.events
            )

    def _advance(self, done: int, due: int) -> None:
        self._done, self._due = done, due

    async def _is_older(self) -> bool:
        name = self._projection.name
        failures = 0
        while True:
            try:
                version = await self._views.write(lambda c: version_of(c, name))
            except DatabaseAway:
                failures += 1
                await asyncio.sleep(pause_s(failures))
            else:
                return version is not None and version < self._projection.version


async def sweep_for_ever(views: ViewsDatabase) -> None:
    """Drop what rebuilds have left, whoever made them, when its time has come."""
    while True:
        rest: float | None = None
        try:
            rest = await drop_old_copies(views)
        except Exception as e:  # nothing depends on it, and the next time is near
            logger.warning("old copies of read models could not be dropped: %s", e)
        await asyncio.sleep(min(_SWEEP_S, (_SWEEP_S if rest is None else rest) + 0.01))
