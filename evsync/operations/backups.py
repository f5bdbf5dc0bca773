"""What operators ask of a service's archive: what is in each place, and whether all of it is whole."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import product
from typing import Any

from evsync.archive.copies import incarnations_of
from evsync.archive.marks import Mark, marks_in, verify_marks
from evsync.archive.policy import BackupPolicy
from evsync.archive.segments import Header
from evsync.archive.verification import CopyReport, verify_copy
from evsync.errors import ArchiveDamaged, ConfigurationError, TargetUnavailable
from evsync.operations.recovery import last_drill
from evsync.ports import BackupTarget, Progress
from evsync.service import Service
from evsync.urls import urls_by_shard


def policy_of(service: Service) -> BackupPolicy:
    """The service's policy. Raises ConfigurationError if it has none."""
    if service.backups is None:
        raise ConfigurationError(
            f"service {service.name!r} has no backups: give it Service(…, backups=BackupPolicy(targets=[…]))"
        )
    return service.backups


def shards_of(service: Service) -> list[str]:
    """The shards whose logs are archived, or to be restored."""
    try:
        store = service.settings()["store"]
    except ConfigurationError:  # the places are enough for most, and what needs the store says what is wrong
        return ["main"]
    return list(urls_by_shard(store))


@dataclass(frozen=True, slots=True)
class Archived:
    """What a place has of one incarnation of a log, by the headers of its segments."""

    log: str
    target: str
    incarnation: str
    segments: int
    last: int
    """Position of the last event."""
    latest_us: int
    """Time of the latest event, µs since 1970."""
    made_us: int
    """When the last segment was made."""
    drill: Mapping[str, Any] | None
    """What the last drill measured, if it was one of this incarnation."""
    marks: Sequence[Mark]


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is in the way of seeing a log's copy in a place, or a part of it."""

    log: str
    target: str
    problem: str


async def look_at(target: BackupTarget, log: str) -> AsyncIterator[Archived | Trouble]:
    """Everything of a log that is in a place, and what cannot be read of it; what is there was not verified."""
    try:
        drilled = await last_drill(target, log)
        marks = await marks_in(target, log)
        damaged: list[ArchiveDamaged] = [m for m in marks if not isinstance(m, Mark)]
        nothing = not damaged
        for incarnation, [copy] in (await incarnations_of([target], log)).items():
            headers: list[Header] = []
            for first in await copy.firsts():
                nothing = False
                try:
                    headers.append(await copy.header(first))
                except ArchiveDamaged as e:
                    damaged.append(e)
            if headers:
                yield Archived(
                    log,
                    target.url,
                    incarnation,
                    len(headers),
                    last=max(h.last for h in headers),
                    latest_us=max(h.latest_us for h in headers),
                    made_us=max(h.made_us for h in headers),
                    drill=drilled if drilled and drilled.get("incarnation") == incarnation else None,
                    marks=[m for m in marks if isinstance(m, Mark) and m.logs[log].incarnation == incarnation],
                )
        for error in damaged:
            yield Trouble(log, target.url, str(error))
        if nothing:
            yield Trouble(log, target.url, f"there is no archive of log {log} yet")
    except TargetUnavailable as e:
        yield Trouble(log, target.url, str(e))


async def verify_archive(
    logs: Sequence[str], targets: Sequence[BackupTarget], showing: Callable[[str], AbstractContextManager[Progress]]
) -> tuple[list[CopyReport], list[str]]:
    """Read every byte of these logs' copies: what was found in each, and all that is wrong.

    `showing` makes the Progress of reading one place.
    """
    reports: list[CopyReport] = []
    problems: list[str] = []
    for log, target in product(logs, targets):
        try:
            found = await incarnations_of([target], log)
            if not found:
                problems.append(f"there is no archive of log {log} in {target.url}")
            for [copy] in found.values():
                with showing(f"Reading {target.url}") as advance:
                    reports.append(await verify_copy(copy, advance))
            problems += map(str, await verify_marks(target, log, reports))
        except TargetUnavailable as e:
            problems.append(str(e))
    for report in reports:
        problems += map(str, report.problems)
        farthest = max(r.end for r in reports if r.incarnation == report.incarnation)
        if report.end < farthest:
            problems.append(
                f"the copy of incarnation {report.incarnation} in {report.target} ends at position {report.end}, and "
                f"another one at {farthest}: the next backup brings the rest, if the log still has it"
            )
    return reports, problems
