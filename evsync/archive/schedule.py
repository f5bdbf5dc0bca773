"""Backups inside a service: one after the other, as often as the policy says."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from evsync.archive.backup import BackupReport, Backups
from evsync.errors import EvsyncError

log = logging.getLogger("evsync.archive")

RETRY = timedelta(minutes=1)
"""How soon a backup that failed is tried again, at the latest."""


@dataclass(frozen=True, slots=True)
class BackupStatus:
    """How far the log is archived, as far as this process knows."""

    position: int
    """What enough targets hold; 0 before the first backup of this process."""
    at: datetime | None
    """When the last backup ended."""
    problem: str | None
    """Why the last one failed, or did not reach every target."""


class ScheduledBackups:
    """Runs backups until cancelled. What goes wrong is logged, told by `status`, and tried again."""

    def __init__(self, backups: Backups, interval: timedelta) -> None:
        self._backups, self._interval = backups, interval
        self._position = 0
        self._at: datetime | None = None
        self._problem: str | None = None
        self._nudge = asyncio.Event()

    def status(self) -> BackupStatus:
        """See BackupStatus."""
        return BackupStatus(self._position, self._at, self._problem)

    async def run(self) -> None:
        """Make backups until cancelled."""
        while True:
            ok = await self._once()
            pause = self._interval if ok else min(self._interval, RETRY)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause.total_seconds()):
                    await self._nudge.wait()
            self._nudge.clear()

    def now(self) -> None:
        """Do not wait for the end of the interval."""
        self._nudge.set()

    async def _once(self) -> bool:
        try:
            report = await self._backups.run()
        except EvsyncError as e:
            self._say(str(e))
            return False
        except Exception as e:
            log.exception("a backup failed")
            self._say(f"{type(e).__name__}: {e}")
            return False
        self._position, self._at = report.backed_up, datetime.now(UTC)
        self._say(problem_of(report))
        return report.ok

    def _say(self, problem: str | None) -> None:
        if problem is not None and problem != self._problem:
            log.warning("backup: %s", problem)
        self._problem = problem


def problem_of(report: BackupReport) -> str | None:
    """What a person should hear of a backup, if anything."""
    failed = [t.error for t in report.targets if t.error is not None]
    if report.ok:
        return f"a spare target failed: {failed[0]}" if failed else None
    return (
        f"position {report.head} of log {report.log} is in fewer than {report.copies} places, and up to "
        f"{report.backed_up} in enough: {'; '.join(dict.fromkeys(failed))}"
    )
