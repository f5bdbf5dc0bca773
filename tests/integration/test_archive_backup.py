"""Backups: every place gets what is new, old segments are merged, and whatever fails is told and made up for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evsync.archive.backup import Backups
from evsync.archive.history import read_copies
from evsync.archive.policy import BackupPolicy, Keep, copies_for
from evsync.archive.schedule import ScheduledBackups
from evsync.archive.segments import decode_segment, segment_name
from evsync.archive.verification import verify_copy
from evsync.errors import ArchiveDamaged, ArchiveIncomplete, ConfigurationError, TargetUnavailable
from evsync.ports import BackupTarget
from evsync.records import StoredEvent
from evsync.stores.memory import MemoryStore
from tests.archiving import IDENTITY, MemoryTarget, archived, away, copy_of, fill, memory_store, read_all
from tests.restored_memory import RestoredMemoryStore

pytestmark = pytest.mark.anyio
_MERGE_ALL = Keep(hourly=timedelta(0), daily=timedelta(0), weekly=timedelta(0))


async def restored(*targets: BackupTarget) -> list[StoredEvent]:
    """All events that the copies hold, in order."""
    found: list[StoredEvent] = []
    async for _, events in read_copies([copy_of(t) for t in targets]):
        found += events
    return found


async def test_a_backup_brings_what_is_new() -> None:
    """The first one everything, each later one what was appended since, in segments that are never touched again."""
    target, store = MemoryTarget(), memory_store()
    backups = Backups(store, [target], copies=1, segment_events=10)
    assert (await backups.run()).ok
    assert target.kept == {}
    for round_ in range(3):
        events = await fill(store, 25, round_)
        before = dict(target.kept)
        report = await backups.run()
        assert (report.ok, report.backed_up, report.head) == (True, len(events), len(events))
        assert report.targets[0].written == len(events) - sum(map(_size, before.items()))
        assert {name: target.kept[name] for name in before} == before
        assert await restored(target) == events
    assert (await backups.run()).targets[0].written == 0
    assert not (await verify_copy(copy_of(target))).problems


def _size(item: tuple[str, bytes]) -> int:
    return decode_segment(*item).header.count


async def test_a_target_that_is_away_keeps_no_other_from_its_backup() -> None:
    """It is in the report, does not count, and gets everything once it is back."""
    good, bad, store = MemoryTarget("good"), MemoryTarget("bad", away), memory_store()
    events = await fill(store, 50)
    backups = Backups(store, [bad, good], copies=2, segment_events=10)
    report = await backups.run()
    assert (report.ok, report.backed_up) == (False, 0)
    assert [t.error for t in report.targets] == ["the place is away", None]
    assert await restored(good) == events
    bad.fail = lambda *_: None
    assert (await backups.run()).ok
    assert await restored(bad) == events


async def test_with_a_spare_target_one_may_be_away() -> None:
    """So many places as the policy needs are enough."""
    targets = [MemoryTarget("one"), MemoryTarget("two", away), MemoryTarget("three")]
    store = memory_store()
    events = await fill(store, 50)
    report = await Backups(store, targets, copies=2).run()
    assert (report.ok, report.backed_up) == (True, len(events))


async def test_a_damaged_end_is_written_anew() -> None:
    """What a target has lost at its end comes from the log again."""
    target = MemoryTarget()
    store, _ = await archived(60, target)
    names = sorted(target.kept)
    target.kept[names[-1]] = target.kept[names[-1]][:40]
    target.kept[names[-2]] = b""
    events = await fill(store, 10)
    assert (await Backups(store, [target], copies=1, segment_events=100).run()).ok
    report = await verify_copy(copy_of(target))
    assert (report.problems, report.last) == ([], len(events))
    assert await restored(target) == events


async def test_two_backups_at_once_write_one_chain() -> None:
    """Of two processes that archive the same stretch one is first, and the other goes on behind it."""
    target, store = MemoryTarget(), memory_store()
    events = await fill(store, 300)
    several = [Backups(store, [target], copies=1, segment_events=n) for n in (7, 10, 13)]
    reports = await asyncio.gather(*(b.run() for b in several))
    assert all(r.ok for r in reports)
    assert not (await verify_copy(copy_of(target))).problems
    assert await restored(target) == events


async def test_a_store_that_was_put_back_is_noticed() -> None:
    """Shorter than its archive, or with another event in its place: nothing is written, and it is said."""
    target = MemoryTarget()
    _, events = await archived(60, target)
    kept = dict(target.kept)
    shorter, other = RestoredMemoryStore(IDENTITY, events[:10]), MemoryStore(IDENTITY)
    await fill(other, 90, seed=7)
    for store, what in ((shorter, "the log ends at 10"), (other, "another event at position")):
        report = await Backups(store, [target], copies=1).run()
        assert not report.ok
        assert what in (report.targets[0].error or "")
        assert "evsync restore" in (report.targets[0].error or "")
    assert target.kept == kept


@pytest.mark.parametrize("step", range(12))
async def test_a_merge_broken_off_anywhere_leaves_a_whole_chain(step: int) -> None:
    """Killed between any two steps the copy is whole; the next backup brings the merge to its end."""
    target = MemoryTarget()
    store, events = await archived(60, target)
    steps = 0

    def fail(what: str, _: str) -> None:
        nonlocal steps
        steps += what in ("put", "delete")
        if steps > step:
            raise TargetUnavailable("killed")

    target.fail = fail
    keep = Keep(hourly=timedelta(0), daily=timedelta(0), weekly=timedelta(0))
    backups = Backups(store, [target], copies=1, keep=keep, clock=lambda: _made_s(target) + 3_600.0)
    await backups.run()
    target.fail = lambda *_: None
    report = await verify_copy(copy_of(target))
    assert (report.problems, report.last) == ([], len(events))
    assert await restored(target) == events
    await fill(store, 5)
    await backups.run()
    assert not (await verify_copy(copy_of(target))).problems
    assert not (await verify_copy(copy_of(target))).leftovers
    assert await restored(target) == await read_all(store)


def _made_s(target: MemoryTarget) -> float:
    return max(decode_segment(n, c).header.made_us for n, c in target.kept.items()) / 1_000_000


@settings(max_examples=40, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(pauses_h=st.lists(st.integers(0, 24 * 30), min_size=2, max_size=12))
async def test_retention_merges_and_never_breaks_a_chain(pauses_h: list[int]) -> None:
    """However the backups are spread over time: no event leaves the archive, no link breaks, segments become fewer."""
    target, store, now_s = MemoryTarget(), memory_store(), 1_700_000_000.0
    backups = Backups(store, [target], copies=1, clock=lambda: now_s)
    for pause in pauses_h:
        events = await fill(store, 6)
        assert (await backups.run()).ok
        report = await verify_copy(copy_of(target))
        assert (report.problems, report.leftovers, report.last) == ([], [], len(events))
        now_s += 3_600.0 * pause
    now_s += 3_600.0 * 24 * 400
    events = await fill(store, 6)
    await backups.run()
    weeks = {int(decode_segment(n, c).header.made_us // (7 * 24 * 3_600_000_000)) for n, c in target.kept.items()}
    assert len(target.kept) == len(weeks)
    assert await restored(target) == events


async def test_a_damaged_segment_is_taken_from_another_copy() -> None:
    """Single segments, from whichever copy has them whole, even if the copies are cut at other places."""
    one, two = MemoryTarget("one"), MemoryTarget("two")
    store, events = await archived(60, one)
    assert (await Backups(store, [two], copies=1, segment_events=7).run()).ok
    for target, which in ((one, 1), (two, 6)):
        name = sorted(target.kept)[which]
        target.kept[name] = target.kept[name][:-1] + b"\0"
    damaged = sorted(one.kept)[1]
    del one.kept[sorted(one.kept)[3]]
    worked_around: list[str] = []
    found: list[StoredEvent] = []
    async for _, part in read_copies([copy_of(one), copy_of(two)], report=lambda e: worked_around.append(str(e))):
        found += part
    assert found == events
    assert any(damaged in text for text in worked_around)
    with pytest.raises(ArchiveDamaged):
        await restored(one)


async def test_what_is_damaged_everywhere_is_an_error() -> None:
    """It names the segment; positions that are in no copy at all are named too."""
    one, two = MemoryTarget("one"), MemoryTarget("two")
    await archived(60, one, two)
    name = sorted(one.kept)[2]
    for target in (one, two):
        target.kept[name] = b"EVSYNCS1"
    with pytest.raises(ArchiveDamaged, match=name):
        await restored(one, two)
    for target in (one, two):
        del target.kept[name]
    with pytest.raises(ArchiveIncomplete, match="are in no copy"):
        await restored(one, two)


def _lose(target: MemoryTarget, lost: Sequence[int], how: str) -> None:
    names = sorted(target.kept)
    for number in lost:
        if how == "missing":
            del target.kept[names[number]]
        elif how == "damaged":
            target.kept[names[number]] = b"nothing"
        else:
            target.kept[names[number]] = target.kept[names[number - 1]]


@pytest.mark.parametrize("how", ["missing", "damaged", "doubled"])
@pytest.mark.parametrize("lost", [[0], [2], [1, 2, 3], [0, 3]])
async def test_what_is_lost_between_segments_is_written_anew(lost: list[int], how: str) -> None:
    """By the next backup, of the very events, and the chain holds: also where all that follows stays as it is."""
    target = MemoryTarget()
    store, events = await archived(60, target)
    _lose(target, lost, how)
    untouched = {name: kept for name, kept in target.kept.items() if kept != b"nothing"}
    report = await Backups(store, [target], copies=1, segment_events=7).run()
    assert report.ok
    assert report.targets[0].error is None
    verified = await verify_copy(copy_of(target))
    assert (verified.last, verified.problems, verified.leftovers) == (len(events), [], [])
    assert await restored(target) == events
    if how != "doubled":
        assert {name: target.kept[name] for name in untouched} == untouched
    merged = await Backups(store, [target], copies=1, keep=_MERGE_ALL).run()
    assert merged.targets[0].merged
    assert await restored(target) == events
    assert not (await verify_copy(copy_of(target))).problems


async def test_a_hole_that_cannot_be_mended_does_not_count_as_backed_up() -> None:
    """The copy counts as far as it is whole, and the report says why."""
    target = MemoryTarget()
    store, events = await archived(60, target)
    _lose(target, [2], "missing")

    def full(what: str, name: str) -> None:
        if what == "put":
            raise TargetUnavailable("no space is left")

    target.fail = full
    report = await Backups(store, [target], copies=1).run()
    assert not report.ok
    assert report.targets[0].error == "no space is left"
    assert events[report.backed_up - 1].position == report.backed_up < len(events)


@pytest.mark.parametrize("step", range(1, 9))
async def test_segments_may_be_merged_while_they_are_read(step: int) -> None:
    """Whoever restores, or verifies, is given all events, and sees no damage."""
    target = MemoryTarget()
    store, events = await archived(60, target)
    backups = Backups(store, [target], copies=1, keep=_MERGE_ALL)
    found: list[StoredEvent] = []
    read = 0
    async for _, part in read_copies([copy_of(target)]):
        found += part
        read += 1
        if read == step:
            await backups.run()
    assert found == events

    target.kept.clear()
    await Backups(store, [target], copies=1, segment_events=10).run()
    get, got = target.get, 0

    async def merging(name: str, *, most: int | None = None) -> bytes | None:
        nonlocal got
        got += 1
        if got == step:
            await backups.run()
        return await get(name, most=most)

    target.get = merging  # type: ignore[method-assign]
    verified = await verify_copy(copy_of(target))
    assert (verified.last, verified.problems) == (len(events), [])


async def test_a_copy_that_is_away_is_done_without() -> None:
    """As long as another one has everything."""
    one, two = MemoryTarget("one"), MemoryTarget("two")
    _, events = await archived(60, one, two)
    one.fail = away
    assert await restored(one, two) == events
    two.fail = away
    with pytest.raises(TargetUnavailable):
        await restored(one, two)


async def test_scheduled_backups_go_on_after_a_failure() -> None:
    """A failure is in the status, and the next round makes up for it."""
    target, store = MemoryTarget("place", away), memory_store()
    events = await fill(store, 20)
    scheduled = ScheduledBackups(Backups(store, [target], copies=1), timedelta(hours=1))
    task = asyncio.create_task(scheduled.run())
    try:
        await _until(lambda: scheduled.status().problem is not None)
        assert "the place is away" in (scheduled.status().problem or "")
        target.fail = lambda *_: None
        scheduled.now()
        await _until(lambda: scheduled.status().position == len(events))
        assert scheduled.status().problem is None
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("importance", "loss", "copies"),
    [(0, 0.5, 1), (0.5, 0.5, 1), (0.75, 0.5, 2), (0.9, 0.5, 4), (0.99, 0.5, 7), (0.999, 0.5, 10), (0.99, 0.1, 2),
     (0.999, 0.1, 3), (0.9999, 0.01, 2)],
)  # fmt: skip
def test_importance_becomes_a_number_of_copies(importance: float, loss: float, copies: int) -> None:
    """All copies are lost with at most 1 - importance: the least number for which that is so, exactly."""
    assert copies_for(importance, loss) == copies


@given(importance=st.floats(0, 0.9999), loss=st.floats(0.01, 0.7))
@settings(deadline=None, database=None)
def test_the_number_of_copies_is_the_least_that_is_enough(importance: float, loss: float) -> None:
    """One copy fewer would be lost too often."""
    copies = copies_for(importance, loss)
    assert loss**copies <= (1 - importance) * (1 + 1e-9)
    assert copies == 1 or loss ** (copies - 1) > (1 - importance) * (1 - 1e-9)


def test_a_policy_that_cannot_be_kept_is_refused() -> None:
    """Before anything runs: too few places, the same place twice, probabilities that are none."""
    for wrong, words in [
        ({"targets": ["a", "b"]}, "7 copies"),
        ({"targets": []}, "a list of URLs"),
        ({"targets": "a"}, "a list of URLs"),
        ({"targets": ["a", "a/"], "importance": 0.7}, "the same place"),
        ({"targets": ["a"], "importance": 1.0}, "endless"),
        ({"targets": ["a"], "importance": 0.4, "loss": 0.0}, "between 0 and 1"),
        ({"targets": ["a"], "importance": 0.4, "interval": timedelta(0)}, "interval"),
    ]:
        with pytest.raises(ConfigurationError, match=words):
            BackupPolicy(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="must grow"):
        Keep(hourly=timedelta(days=8))
    assert BackupPolicy(targets=["a", "b"], loss=0.1).copies == 2


def test_names_sort_as_positions_do() -> None:
    """So that a list of names is a chain."""
    positions = [1, 9, 10, 99, 12_345, 10**14]
    assert sorted(segment_name(IDENTITY, p) for p in positions) == [segment_name(IDENTITY, p) for p in positions]
