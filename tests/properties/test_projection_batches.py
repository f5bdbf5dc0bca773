"""However a log is cut into batches, delivered again, interrupted and taken over, the read model comes out the same."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from evsync.projections import Contract, Event, MemoryModel, Projection, ProjectionRunner, Tables, ViewsDatabase
from evsync.projections.batch import digest_of
from evsync.records import Checkpoint
from tests.projection_logs import Ledger, ListSource, bank_events, fold_bank

seeds = st.integers(0, 2**32)


class Faulty(Ledger):
    """A ledger whose handler for payments raises once at each of some positions."""

    def __init__(self, fail_at: set[int]) -> None:
        super().__init__(retries=1_000, groups=4)
        self.fail_at = fail_at

    def paid(self, e: Event[Any], db: Tables) -> None:
        super().paid(e, db)
        if e.position.number in self.fail_at:
            self.fail_at.remove(e.position.number)
            raise OSError("not this time")


async def applied(database: ViewsDatabase) -> int:
    """The least of the checkpoints; a group that has none stored is at the beginning."""
    least = sa.text("SELECT CASE WHEN count(*) = 4 THEN min(position) ELSE 0 END FROM evsync_checkpoints")
    return await database.read(lambda connection: connection.execute(least).scalar_one())


async def run_in_pieces(seed: int, size: int, fail_at: set[int]) -> None:
    chance = random.Random(seed)
    events = bank_events(size, seed, accounts=8)
    source = ListSource(
        "bank",
        cut=lambda limit: chance.randint(1, limit),
        again=lambda after: max(0, after - chance.choice([0, 0, 1, 7])),
    )
    ledger = Faulty(fail_at)
    database = ViewsDatabase("sqlite://")
    # Leases that run out at once: whichever worker is next takes over, and the others find out in a transaction. Or
    # such as run on: the workers share the groups, and give and take only as they come and go.
    lease_s = chance.choice([1e-6, 50.0])
    runners = [ProjectionRunner(ledger.projection, database, [source], batch=20, lease_s=lease_s) for _ in range(3)]
    for runner in runners:
        await runner.open()
    while not (len(source.events) == size and await applied(database) == size):
        source.events = events[: max(len(source.events), chance.randint(0, size))]
        if chance.random() < 0.1:
            await chance.choice(runners).close()
        if chance.random() < 0.3:
            await chance.choice(runners).balance()
        await chance.choice(runners).step(limit=chance.randint(1, 20))
    assert not any(runner.halted for runner in runners)
    assert await database.read(ledger.rows) == fold_bank(events)
    checkpoints = await database.read(lambda c: c.execute(sa.text("SELECT * FROM evsync_checkpoints")).mappings().all())
    handled = [e for e in events if ledger.projection.handlers.steps(e.type)]
    if size:
        assert {c["position"] for c in checkpoints} == {size}
        assert sorted(c["group"] for c in checkpoints) == [0, 1, 2, 3]
    for c in checkpoints:
        own = [e for e in handled if e.slot % 4 == c["group"]]
        assert c["count"] == len(own)
        assert int(c["digest"], 16) == sum(map(digest_of, own)) % 2**64
    for runner in runners:
        await runner.close()
    await database.close()


@given(seeds, st.integers(0, 150), st.sets(st.integers(1, 150), max_size=3))
@settings(max_examples=25, deadline=None)
def test_any_cut_redelivery_failure_and_takeover_gives_the_same_tables(seed: int, size: int, fail_at: set[int]) -> None:
    """Every event is applied exactly once and in order, and the checkpoints count exactly what was applied."""
    asyncio.run(run_in_pieces(seed, size, fail_at))


class Anything(Contract, type="bank.*", extra="allow"):
    """Whatever happens in the bank."""


@given(seeds, st.integers(0, 100), st.sets(st.integers(1, 100), max_size=3))
@settings(max_examples=40, deadline=None)
def test_a_model_in_memory_is_a_fold_over_the_log_even_when_batches_fail(
    seed: int, size: int, fail_at: set[int]
) -> None:
    """A state that a failed batch may have half changed is thrown away, with its checkpoints."""
    chance = random.Random(seed)
    events = bank_events(size, seed)
    view: Projection[list[int]] = Projection("journal", model=MemoryModel[list[int]](list), retries=1_000)

    @view.on(Anything)
    def note(e: Event[Anything], journal: list[int]) -> None:
        journal.append(e.position.number)
        if e.position.number in fail_at:
            fail_at.remove(e.position.number)
            raise OSError("not this time")

    async def run() -> None:
        runner = ProjectionRunner(
            view, None, [ListSource("bank", events, again=lambda after: max(0, after - chance.randint(0, 3)))]
        )
        await runner.open()
        while await runner.step(limit=chance.randint(1, 20)):
            assert runner.state == list(range(1, len(runner.state) + 1))
        assert runner.state == [e.position for e in events]
        await runner.close()

    asyncio.run(run())


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20))
def test_a_stored_digest_comes_back_whole(digests: list[int]) -> None:
    """All 64 bits of a digest survive the database, which knows no unsigned integers."""

    async def run() -> None:
        from evsync.projections.models import bookkeeping, leases
        from evsync.projections.models.claims import Claim

        database = ViewsDatabase("sqlite://")
        claim = Claim("p", 1, max(1, len(digests)), "me", 1.0)
        given = [Checkpoint("a.main", g, "i", 1, 1, digest) for g, digest in enumerate(digests)]

        def there_and_back(connection: sa.Connection) -> list[Checkpoint]:
            bookkeeping.create(connection)
            bookkeeping.enroll(connection, claim)
            bookkeeping.store(connection, claim, given, bookkeeping.plan_of_checkpoints(database.dialect))
            holding = leases.balance(connection, claim, None, None, leases.plan_of_workers(database.dialect))
            return list(holding.checkpoints)

        if digests:
            assert sorted(await database.write(there_and_back), key=lambda c: c.group) == given
        await database.close()

    asyncio.run(run())
