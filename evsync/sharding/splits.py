"""Which commits of the past a plan would not have allowed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from evsync.control import OWN_STREAMS
from evsync.ports import EventLog
from evsync.records import StoredEvent
from evsync.sharding.router import Placement

EVENTS_PER_READ = 2_000


async def split_commits(logs: Mapping[str, EventLog], planned: Placement) -> list[tuple[str, ...]]:
    """The streams of each past commit whose slots would lie on several shards, each set of streams once.

    A service that has saved such streams together will probably do so again, and be refused.
    """
    found: dict[tuple[str, ...], None] = {}
    for log in logs.values():
        async for commit in _commits(log):
            slots = {e.stream: e.slot for e in commit if not e.stream.startswith(OWN_STREAMS)}
            if len({planned[slot] for slot in slots.values()}) > 1:
                found[tuple(slots)] = None
    return list(found)


async def _commits(log: EventLog) -> AsyncIterator[list[StoredEvent]]:
    position, commit = 0, list[StoredEvent]()
    while events := await log.read(position, EVENTS_PER_READ):
        for e in events:
            commit.append(e)
            if e.remaining == 0:
                yield commit
                commit = []
        position = events[-1].position
