"""Reading ahead, and letting go of what was read."""

from __future__ import annotations

import asyncio

import pytest

from evsync.projections.feed import Feed
from evsync.records import StoredEvent
from tests.projection_logs import ListReader, ListSource, bank_events

pytestmark = pytest.mark.anyio


class SlowToCancel(ListReader):
    """Takes a moment to end when it is cancelled, as one does that has a thread to wait for."""

    def __init__(self, source: ListSource) -> None:
        super().__init__(source)
        self.cancelled, self.go_on = asyncio.Event(), asyncio.Event()

    async def read(self, after: int, limit: int, timeout_s: float) -> list[StoredEvent]:
        try:
            return await super().read(after, limit, timeout_s)
        except asyncio.CancelledError:
            self.cancelled.set()
            await self.go_on.wait()
            raise


async def test_what_was_read_ahead_is_used_once_and_only_where_it_fits() -> None:
    """Whatever position is asked for, the events behind it come."""
    feed = Feed(ListReader(ListSource("bank", bank_events(30, 1))), 10, lambda reason: None)
    feed.read_ahead(10, 1.0)
    assert [e.position for e in await feed.next(10, "", 1.0)] == list(range(11, 21))
    feed.read_ahead(20, 1.0)
    assert [e.position for e in await feed.next(5, "", 1.0)] == list(range(6, 16))
    await feed.close()


async def test_a_cancellation_is_not_lost_while_what_was_read_ahead_is_dropped() -> None:
    """Else a service that ends at that moment would never end."""
    reader = SlowToCancel(ListSource("bank"))
    feed = Feed(reader, 10, lambda reason: None)
    feed.read_ahead(7, 60.0)
    await asyncio.sleep(0.01)
    reading = asyncio.create_task(feed.next(0, "", 60.0))
    await reader.cancelled.wait()
    reading.cancel()
    reader.go_on.set()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await reading
    await feed.close()
