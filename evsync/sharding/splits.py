"""Which commits of the past a plan would not have allowed."""

from __future__ import annotations

from collections.abc import Mapping

from evsync.ports import EventLog
from evsync.records import OWN_STREAMS
from evsync.sharding.router import Placement


async def split_commits(logs: Mapping[str, EventLog], planned: Placement) -> list[tuple[str, ...]]:
    """The streams of each past commit whose slots would lie on several shards, each set of streams once.

    A service that has saved such streams together will probably do so again, and be refused.
    """
    found: dict[tuple[str, ...], None] = {}
    for log in logs.values():
        position = 0
        while events := await log.read(position, 2_000):
            streams: dict[str, int] = {}
            for e in events:
                if not e.stream.startswith(OWN_STREAMS):
                    streams[e.stream] = e.slot
                if e.remaining == 0:
                    if len(streams) > 1 and len({planned[slot] for slot in streams.values()}) > 1:
                        found[tuple(streams)] = None
                    streams = {}
            position = events[-1].position
    return list(found)
