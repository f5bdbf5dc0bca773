"""Reading ahead, and letting go of what was read."""

from __future__ import annotations

import asyncio

import pytest

from evsync.projections import followed_log
from evsync.projections.feed import Feed
from evsync.projections.followed_log import FollowedLog
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


def test_batches_grow_while_they_are_applied_quickly_and_shrink_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: a full batch that took less than QUICK_S is followed by one twice as large, up to `growth` times the first;
    one that took longer by one half as large, down to the first. One that was not full changes nothing."""
    log = FollowedLog(ListReader(ListSource("bank", bank_events(30, 1))), 4, 4)
    full = bank_events(30, 1)

    def applied(count: int, quick_s: float) -> int:
        monkeypatch.setattr(followed_log, "QUICK_S", quick_s)
        log.check(full[:count])
        log.moved([], lasting=True)
        return log.feed.limit

    assert [applied(3, 60), applied(4, 60), applied(8, 60), applied(16, 60)] == [4, 8, 16, 16]
    assert [applied(16, -1), applied(16, -1), applied(16, -1)] == [8, 4, 4]
