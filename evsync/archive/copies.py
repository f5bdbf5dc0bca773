"""Where an archived log is found: a copy holds the segments of one incarnation in one place."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from evsync.archive.segments import (
    HEAD_BYTES,
    Header,
    Segment,
    decode_header,
    decode_segment,
    first_of,
    folder,
    incarnation_of,
    segment_name,
)
from evsync.errors import ArchiveDamaged, ArchiveError, ArchiveIncomplete, DecodingError, TargetUnavailable
from evsync.ports import BackupTarget
from evsync.records import LogIdentity, StoredEvent


class Copy:
    """The segments of one incarnation of a log in one target."""

    def __init__(self, target: BackupTarget, log: str, incarnation: str) -> None:
        self.target, self.log, self.incarnation = target, log, incarnation
        service, _, shard = log.partition(".")
        self._identity = LogIdentity(service, shard, incarnation)
        self._headers: dict[int, Header] = {}

    async def firsts(self) -> list[int]:
        """The positions at which there is a segment that begins there, by the names; in order."""
        names = await self.target.list(folder(self.log, self.incarnation))
        return sorted(first for name in names if (first := first_of(name)) is not None)

    async def strangers(self) -> list[str]:
        """Names beside the segments that are none."""
        return [n for n in await self.target.list(folder(self.log, self.incarnation)) if first_of(n) is None]

    async def segment(self, first: int) -> Segment:
        """The segment that begins at a position, verified. Raises ArchiveDamaged."""
        name = self.name(first)
        content = await self.target.get(name)
        if content is None:
            self.forget()  # it may be in a merged one by now, which begins before it
            raise ArchiveDamaged(self.target.url, name, "it is missing")
        try:
            return await asyncio.to_thread(decode_segment, name, content)
        except DecodingError as e:
            raise ArchiveDamaged(self.target.url, name, str(e)) from e

    async def events(self, segment: Segment) -> list[StoredEvent]:
        """The events of one of its segments. Raises ArchiveDamaged."""
        try:
            return await asyncio.to_thread(segment.events)
        except DecodingError as e:
            raise ArchiveDamaged(self.target.url, segment.header.name, str(e)) from e

    async def header(self, first: int) -> Header:
        """What the segment that begins at a position says of itself. Its hash is not looked at. Raises ArchiveDamaged.

        Remembered, until one is found missing: another process may have merged it.
        """
        if (known := self._headers.get(first)) is not None:
            return known
        name = self.name(first)
        head = await self.target.get(name, most=HEAD_BYTES)
        try:
            found = decode_header(name, head or b"")
        except DecodingError:
            found = (await self.segment(first)).header  # a long header, or else the reason
        self._headers[first] = found
        return found

    def forget(self) -> None:
        """Segments were written or taken away."""
        self._headers.clear()

    def name(self, first: int) -> str:
        """Where the segment that begins at a position is kept."""
        return segment_name(self._identity, first)


async def incarnations_of(targets: Sequence[BackupTarget], log: str) -> dict[str, list[Copy]]:
    """The copies of each archived incarnation of a log, that with the newest last segment first.

    Places that do not answer are passed over, unless that leaves nothing: raises TargetUnavailable.
    """
    found: dict[str, list[Copy]] = {}
    newest: dict[str, int] = {}
    absent: list[TargetUnavailable] = []
    for target in targets:
        try:
            names = await target.list(f"{log}/")
            for incarnation in dict.fromkeys(i for n in names if (i := incarnation_of(n)) is not None):
                copy = Copy(target, log, incarnation)
                newest[incarnation] = max(newest.get(incarnation, 0), await _made_us(copy))
                found.setdefault(incarnation, []).append(copy)
        except TargetUnavailable as e:
            absent.append(e)
    if absent and not found:
        raise absent[0]
    return dict(sorted(found.items(), key=lambda item: newest[item[0]], reverse=True))


async def _made_us(copy: Copy) -> int:
    """When the last segment was made of which that can be read."""
    for first in reversed(await copy.firsts()):
        with contextlib.suppress(ArchiveDamaged):
            return (await copy.header(first)).made_us
    return 0


@dataclass(frozen=True, slots=True)
class Archive:
    """One incarnation of a log in all its copies: in none if nothing of the log was archived yet."""

    identity: LogIdentity
    copies: Sequence[Copy]

    @classmethod
    async def find(cls, targets: Sequence[BackupTarget], log: str, incarnation: str | None = None) -> Archive:
        """The archive of a log: of its newest incarnation, unless one is named.

        Raises ArchiveIncomplete where there is none, ArchiveDamaged where not one segment says what it is,
        TargetUnavailable where no target answers.
        """
        found = await incarnations_of(targets, log)
        where = ", ".join(target.url for target in targets)
        if not found:
            raise ArchiveIncomplete(f"there is no archive of log {log} in {where}")
        if incarnation is not None and incarnation not in found:
            raise ArchiveIncomplete(
                f"there is no archive of incarnation {incarnation} of log {log} in {where}; there is {', '.join(found)}"
            )
        copies = found[incarnation] if incarnation is not None else next(iter(found.values()))
        errors: list[ArchiveError] = []
        for copy in copies:
            for first in await copy.firsts():
                try:
                    return cls((await copy.header(first)).identity, copies)
                except ArchiveDamaged as e:
                    errors.append(e)
        raise errors[0]

    async def end(self) -> int:
        """About how far it reaches, by what the last segments say of themselves."""
        end = 0
        for copy in self.copies:
            with contextlib.suppress(ArchiveError):
                if firsts := await copy.firsts():
                    end = max(end, (await copy.header(firsts[-1])).last)
        return end
