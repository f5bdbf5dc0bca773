"""Merging what has grown old in a copy of the archive: segments that were made in the same period become one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import groupby

from evsync.archive.columns import EventColumns
from evsync.archive.copies import Copy
from evsync.archive.pace import Pace
from evsync.archive.policy import Keep
from evsync.archive.segments import Header, Segment, encode_segment
from evsync.errors import ArchiveDamaged

MERGED_EVENTS = 50_000
"""What a merged segment holds at most, unless one of its pieces alone holds more."""


async def merge(copy: Copy, keep: Keep, now_us: int, pace: Pace) -> int:
    """Merge what `keep` says, and take away what earlier merges left; how many segments are in others now.

    May be killed at any step: the copy is whole then, and the next merge goes on. Raises ArchiveDamaged,
    TargetUnavailable.
    """
    chain: list[Header] = []
    end = 0
    for first in await copy.firsts():
        header = await copy.header(first)
        if header.last <= end:
            await _take_away(copy, chain[-1].first, header)
        elif header.first == end + 1:
            chain.append(header)
            end = header.last
        else:
            return 0  # `verify` will say what is wrong here
    merged = 0
    for period, group in groupby(chain, lambda h: keep.period_of(h.made_us, now_us)):
        if period is not None:
            for pieces in _of_limited_size(list(group)):
                await _merge_these(copy, pieces, pace)
                merged += len(pieces)
    return merged


async def _merge_these(copy: Copy, headers: Sequence[Header], pace: Pace) -> None:
    pieces: list[Segment] = []
    events = EventColumns()
    for header in headers:
        segment = await copy.segment(header.first)
        if pieces and not pieces[-1].precedes(segment.header):
            raise ArchiveDamaged(copy.target.url, header.name, "it does not name the segment before it")
        pieces.append(segment)
        await pace.step(_take_in(events, copy, segment))
    last = pieces[-1]
    content = await pace.step(
        asyncio.to_thread(
            encode_segment,
            last.header.identity,
            events,
            pieces[0].header.previous,
            made_us=last.header.made_us,
            stands_for=(last.sha256, *last.header.stands_for),
            checkpoints=last.header.checkpoints,
        )
    )
    # In this order: killed in between, the pieces are there twice, which harms nobody.
    await copy.target.put(headers[0].name, content, replace=True)
    copy.forget()
    for header in headers[1:]:
        await copy.target.delete(header.name)


async def _take_in(events: EventColumns, copy: Copy, segment: Segment) -> None:
    found = await copy.events(segment)
    await asyncio.to_thread(events.add, found)


async def _take_away(copy: Copy, first: int, header: Header) -> None:
    """Delete a segment whose events are in another one too, if that one is whole."""
    if (await copy.segment(first)).header.last >= header.last:
        await copy.target.delete(header.name)
        copy.forget()


def _of_limited_size(headers: Sequence[Header]) -> list[list[Header]]:
    """Neighbours that together are not too large, two at least."""
    found: list[list[Header]] = [[]]
    for header in headers:
        if found[-1] and sum(h.count for h in found[-1]) + header.count > MERGED_EVENTS:
            found.append([])
        found[-1].append(header)
    return [pieces for pieces in found if len(pieces) > 1]
