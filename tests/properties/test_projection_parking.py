"""Whatever fails, is interrupted, retried and skipped: a stream is applied up to its bad event, and others whole."""

from __future__ import annotations

import asyncio
import random

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from evsync.errors import Parked
from evsync.projections import Contract, Event, MemoryModel, Projection, ProjectionRunner, ViewsDatabase
from evsync.projections.batch import digest_of
from evsync.records import Position, StoredEvent
from tests.projection_logs import INCARNATION, Ledger, ListSource, bank_events, fold_bank
from tests.projection_processes import divided

GROUPS = 4


def is_handled(event: StoredEvent) -> bool:
    return not event.type.endswith("Audited")


async def check(database: ViewsDatabase, ledger: Ledger, events: list[StoredEvent], applied: list[StoredEvent]) -> None:
    """The tables are a fold over what was applied; checkpoints and parked rows are together all that was handled."""
    assert await database.read(ledger.rows) == fold_bank(applied)
    checkpoints = await database.read(lambda c: c.execute(sa.text("SELECT * FROM evsync_checkpoints")).mappings().all())
    rows = await database.read(lambda c: c.execute(sa.text("SELECT * FROM evsync_parked")).mappings().all())
    assert {c["position"] for c in checkpoints} == {len(events)}
    aside = {row["position"] for row in rows}
    assert len(aside) == len(rows)
    for c in checkpoints:
        own = [e for e in applied if e.slot % GROUPS == c["group"] and is_handled(e)]
        assert (c["count"], int(c["digest"], 16)) == (len(own), sum(map(digest_of, own)) % 2**64)
    everything = sum(map(digest_of, filter(is_handled, events))) % 2**64
    shares = [int(c["digest"], 16) for c in checkpoints] + [digest_of(e) for e in events if e.position in aside]
    assert sum(shares) % 2**64 == everything
    assert sum(c["count"] for c in checkpoints) + len(rows) == len([*filter(is_handled, events)])


async def run_and_mend(seed: int, size: int, bad: set[int]) -> None:
    chance = random.Random(seed)
    events = bank_events(size, seed, accounts=6)
    source = ListSource(
        "bank",
        cut=lambda limit: chance.randint(1, limit),
        again=lambda after: max(0, after - chance.choice([0, 0, 1, 7])),
    )
    ledger = Ledger(bad=bad, groups=GROUPS, retries=chance.choice([0, 1]), then="park")
    database = ViewsDatabase("sqlite://")
    lease_s = chance.choice([1e-6, 50.0])
    runners = [ProjectionRunner(ledger.projection, database, [source], batch=20, lease_s=lease_s) for _ in range(2)]
    for runner in runners:
        await runner.open()
    least = sa.text(f"SELECT CASE WHEN count(*) = {GROUPS} THEN min(position) ELSE 0 END FROM evsync_checkpoints")

    async def work_until(goal: int) -> None:
        source.events = events[:goal]
        while await database.read(lambda c: c.execute(least).scalar_one()) < goal:
            if chance.random() < 0.1:
                await chance.choice(runners).close()
            if chance.random() < 0.3:
                await chance.choice(runners).balance()
            await chance.choice(runners).step(limit=chance.randint(1, 20))

    half = size // 2
    await work_until(half)
    applied, parked = divided(events[:half], bad)
    if half:
        await check(database, ledger, events[:half], applied)

    streams = runners[0].parked_streams
    waiting, _ = await streams.summaries()
    assert {s.stream: (s.events, s.first.reason) for s in waiting} == {
        first.stream: (sum(e.stream == first.stream for e in parked), f"ValueError: {first.position} is bad")
        for first in reversed(parked)
        if first.position == min(e.position for e in parked if e.stream == first.stream)
    }
    await runners[1].balance()  # as `run()` does all the time: it may have been taken over from
    for event in parked:
        with pytest.raises(Parked) as told:
            await runners[1].wait(Position("bank.main", INCARNATION, event.position), 5)
        assert (told.value.position, told.value.stream) == (event.position, event.stream)

    ledger.bad.clear()
    skipped: set[int] = set()
    for summary in waiting:
        match chance.choice(["retry", "skip one", "skip all", "leave"]):
            case "retry":
                assert await streams.retry("bank", summary.stream) == summary.events
                freed = [e for e in parked if e.stream == summary.stream]
            case "skip one":
                skipped.add(summary.first.event.position)
                await streams.skip("bank", summary.stream)
                freed = [e for e in parked if e.stream == summary.stream][1:]
                if freed:
                    await streams.retry("bank", summary.stream)
            case "skip all":
                assert await streams.skip("bank", summary.stream, every=True) == summary.events
                skipped |= {e.position for e in parked if e.stream == summary.stream}
                freed = []
            case _:
                continue
        applied += freed
        parked = [e for e in parked if e.stream != summary.stream]
    await work_until(size)
    left = {e.stream for e in parked}
    applied += [e for e in events[half:] if e.stream not in left or not is_handled(e)]
    applied.sort(key=lambda e: e.position)
    if size:
        await check(database, ledger, events, applied)
    for runner in runners:
        await runner.close()
    await database.close()


@given(st.integers(0, 2**32), st.integers(0, 120), st.sets(st.integers(1, 120), max_size=6))
@settings(max_examples=25, deadline=None)
def test_a_stream_is_applied_up_to_its_bad_event_and_others_whole(seed: int, size: int, bad: set[int]) -> None:
    """Applied, parked and skipped events are together exactly those up to the checkpoints, at any moment."""
    asyncio.run(run_and_mend(seed, size, bad))


class Anything(Contract, type="bank.*", extra="allow"):
    """Whatever happens in the bank."""


@given(st.integers(0, 2**32), st.integers(0, 80), st.sets(st.integers(1, 80), max_size=4))
@settings(max_examples=25, deadline=None)
def test_a_model_in_memory_parks_the_same_events(seed: int, size: int, bad: set[int]) -> None:
    """It begins anew after each failure, and parks again on the way what it has parked before."""
    chance = random.Random(seed)
    events = bank_events(size, seed, accounts=5)
    view: Projection[list[int]] = Projection("journal", model=MemoryModel[list[int]](list), retries=1, then="park")

    @view.on(Anything)
    def note(e: Event[Anything], journal: list[int]) -> None:
        journal.append(e.position.number)
        if e.position.number in bad:
            raise ValueError("bad")

    async def run() -> None:
        source = ListSource("bank", events, again=lambda after: max(0, after - chance.randint(0, 3)))
        runner = ProjectionRunner(view, None, [source])
        await runner.open()
        while await runner.step(limit=chance.randint(1, 20)):
            pass
        streams: set[str] = set()
        expected = []
        for e in events:
            if e.position in bad:
                streams.add(e.stream)
            if e.stream not in streams:
                expected.append(e.position)
        assert runner.state == expected
        assert runner.halted is None
        for e in events:
            if e.stream in streams and e.position not in expected and e.remaining == 0:
                with pytest.raises(Parked):
                    await runner.wait(Position("bank.main", INCARNATION, e.position), 5)
        await runner.close()

    asyncio.run(run())
