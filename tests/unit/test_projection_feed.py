"""Reading ahead, and letting go of what was read."""

from __future__ import annotations

import asyncio
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evsync.errors import StreamHole
from evsync.ports import Share, Stretch
from evsync.projections.batch import end_of, half_of
from evsync.projections.models.claims import Holding
from evsync.projections.running import followed_log
from evsync.projections.running.continuity import check_batch
from evsync.projections.running.feed import Feed
from evsync.projections.running.followed_log import FollowedLog
from evsync.records import Checkpoint, StoredEvent
from evsync.testing.contracts.samples import check_stretch
from tests.projection_logs import INCARNATION, ListReader, ListSource, bank_events

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
    assert [e.position for e in (await feed.next(10, "", 1.0)).events] == list(range(11, 21))
    feed.read_ahead(20, 1.0)
    assert [e.position for e in (await feed.next(5, "", 1.0)).events] == list(range(6, 16))
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
    log = FollowedLog(ListReader(ListSource("bank", bank_events(30, 1))), 4, 4, 1)
    full = bank_events(30, 1)

    def applied(count: int, quick_s: float) -> int:
        monkeypatch.setattr(followed_log, "QUICK_S", quick_s)
        log.hold(Holding({0: 1}, (), ()))
        log.check(Stretch(full[:count]))
        log.moved([Checkpoint(log.name, 0, "", count)], lasting=True)
        log.forget()  # back to the beginning
        return log.feed.limit

    assert [applied(3, 60), applied(4, 60), applied(8, 60), applied(16, 60)] == [4, 8, 16, 16]
    assert [applied(16, -1), applied(16, -1), applied(16, -1)] == [8, 4, 4]


GROUPS = 4


def share(*groups: int) -> Share:
    """These of the four groups."""
    return Share(frozenset(groups), GROUPS)


def holding(*groups: int, tokens: int = 1) -> Holding:
    """These groups, taken at the log's beginning."""
    return Holding(dict.fromkeys(groups, tokens), (), ())


async def test_what_was_read_ahead_for_fewer_groups_is_read_anew() -> None:
    """Law: a stretch serves who has no group that it was not read for; what was read for more of them is used."""
    events = bank_events(30, 1)
    feed = Feed(ListReader(ListSource("bank", events)), 10, lambda reason: None)
    for before, now in [(share(0, 1), share(0, 1, 2)), (share(0), None), (share(0, 1, 2), share(1)), (None, share(3))]:
        feed.share = before
        feed.read_ahead(0, 1.0)
        feed.share = now
        found = await feed.next(0, "", 1.0)
        wanted = range(GROUPS) if now is None else now.groups
        end = found.events[-1].position
        assert {e.position for e in events[:end] if e.slot % GROUPS in wanted} <= {e.position for e in found.events}
        assert (found.share or now) in (now, before)
        assert len(found.events) + found.left_out == end
    await feed.close()


async def test_a_stretch_is_as_long_as_the_worker_has_few_groups() -> None:
    """So that as many of its events are applied at once as where one worker has all groups."""
    events, lengths = bank_events(400, 1), {}
    feed = Feed(ListReader(ListSource("bank", events)), 40, lambda reason: None)
    for groups in (None, share(0, 1), share(3)):
        feed.share = groups
        await feed.next(0, "", 1.0)
        lengths[groups] = feed.span
        assert len((await feed.next(0, "", 1.0)).events) == pytest.approx(40, abs=10)
    assert lengths[None] == 40
    assert 60 < lengths[share(0, 1)] < 100 < lengths[share(3)] < 240


async def test_no_batch_is_many_times_as_large_as_it_was_to_be_where_a_workers_events_are_dense_again() -> None:
    """Law: behind a part of the log that was others' a stretch has at most twice its limit and one commit, and goes on
    being all of it: to the end of a commit, with every other event counted."""
    mine, sizes = share(0), [1, 3, 2] * 200
    ends = accumulate(sizes)
    commits = [(end, end - n) for end, size in zip(ends, sizes, strict=True) for n in range(size - 1, -1, -1)]
    log = [
        e._replace(remaining=end - position, slot=1 if position <= 600 or position % 5 == 0 else 0)
        for (end, position), e in zip(commits, bank_events(len(commits), 1), strict=True)
    ]
    feed = Feed(ListReader(ListSource("bank", log)), 25, lambda reason: None)
    feed.share, after, largest = mine, 0, 0
    while after < len(log):
        found = await feed.next(after, "", 0.0)
        largest = max(largest, len(found.events))
        if found.events[-1].remaining == 0:  # a list knows nothing of commits
            check_stretch(log, after, mine, found)
        after = found.events[-1].position
    assert 25 <= largest <= 2 * 25 + 3
    await feed.close()


async def test_what_was_read_for_the_groups_of_before_is_not_applied_to_those_of_now() -> None:
    """A group that was taken while a batch was read, at the same place or further on, is missing from it."""
    log = FollowedLog(ListReader(ListSource("bank", bank_events(30, 1))), 10, 4, GROUPS)
    log.hold(holding(0, 1))
    ready, _ = await log.next(lambda log, slot: None, 1.0)
    assert ready.share == share(0, 1)
    assert log.fits(0, ready)
    log.hold(holding(0, 1, 2))
    assert not log.fits(0, ready)
    log.hold(holding(1))
    assert log.fits(0, ready)
    whole = await log.feed.next(0, "", 1.0)
    assert log.fits(0, Stretch(bank_events(10, 1)))
    assert not log.fits(3, whole)
    await log.feed.close()


def test_events_that_were_left_out_count_and_others_that_are_missing_show() -> None:
    """Law: positions that were given or counted as left out are all of them, or nothing is applied."""
    events = bank_events(30, 1)
    found = Stretch(events[4:20]).cut_to(share(1))
    assert 0 < found.left_out < 16
    check_batch("bank.main", 4, INCARNATION, found.events, found.left_out)
    for missing, left_out in [(found.events[1:], found.left_out), (found.events, found.left_out - 1)]:
        with pytest.raises(StreamHole, match="at least one event is missing"):
            check_batch("bank.main", 4, INCARNATION, missing, left_out)


@given(st.data(), st.integers(1, 12), st.integers(0, 3))
def test_half_of_a_batch_is_cut_where_a_commit_ends_whoever_its_last_event_is_for(
    data: st.DataObject, commits: int, group: int
) -> None:
    """Law: no commit is divided; with two commits that have an event of the share there is a half; and the checkpoint
    that goes with it stands at a commit's end."""
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=commits, max_size=commits))
    log = bank_events(sum(sizes), 3)
    ends = list(accumulate(sizes))
    log = [e._replace(remaining=next(end for end in ends if end >= e.position) - e.position) for e in log]
    found = Stretch(log).cut_to(share(group)).events
    half = half_of(found, 0)
    seen = {e.position + e.remaining for e in found}
    assert bool(half) == (len(seen) > 1)
    if half:
        end = end_of(half[-1])
        assert end.position in ends
        assert list(half) == [e for e in found if e.position <= end.position]
        assert len(half) < len(found)
