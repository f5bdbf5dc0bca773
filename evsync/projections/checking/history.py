"""A log from its beginning up to a place, for whoever goes through history again: verify, explain, diff."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

from evsync.errors import StoreUnavailable
from evsync.ports import LogReader, LogSource
from evsync.records import StoredEvent

LIMIT = 5_000
"""About how many events are read at once."""
PATIENCE_S = 30.0
"""How long a log that says that it goes on may be silent."""
_WAIT_S = 2.0
_PAUSE_S = 0.1


async def read_history(reader: LogReader, until: int, *, after: int = 0) -> AsyncIterator[list[StoredEvent]]:
    """The events behind `after`, up to and including `until`, in batches; fewer if the log ends before.

    Nothing is checked: what a hole means is for the caller to say. Raises what the reader raises for what a person must
    mend, StoreUnavailable for a log that neither goes on nor ends.
    """
    place, silent_since = after, asyncio.get_running_loop().time()
    while place < until:
        events = await reader.read(place, LIMIT, _WAIT_S)
        now = asyncio.get_running_loop().time()
        if not events:
            head = await reader.head()
            if head is not None and head <= place:
                return
            if now - silent_since > PATIENCE_S:
                raise StoreUnavailable(
                    f"log {reader.log!r} cannot be read behind position {place}: its source says nothing, and its end "
                    f"is {'not known' if head is None else head}. Nothing was changed; try again when it is there."
                )
            continue
        silent_since, place = now, events[-1].position
        if place > until:
            events = [e for e in events if e.position <= until]
        if events:
            yield events


@asynccontextmanager
async def opened_readers(sources: Iterable[LogSource]) -> AsyncIterator[list[LogReader]]:
    """A reader of each log of the sources, for the length of a block."""
    async with AsyncExitStack() as stack:
        readers: list[LogReader] = []
        for source in sources:
            for reader in await source.readers():
                stack.push_async_callback(reader.close)
                readers.append(reader)
        yield readers


async def end_of(reader: LogReader, atleast: int) -> int:
    """The position where the log ends now, or `atleast` where that cannot be told."""
    for _ in range(20):
        if (head := await reader.head()) is not None:
            return head
        await asyncio.sleep(_PAUSE_S)
    return atleast
