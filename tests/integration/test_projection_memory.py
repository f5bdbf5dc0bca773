"""Read models in memory: a fold over whole batches, made anew when one fails."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from evsync.errors import ConfigurationError, Halted
from evsync.projections import Event, MemoryModel, Projection, ProjectionRunner, SqlModel, ViewsDatabase
from evsync.records import Position
from tests.projection_logs import INCARNATION, Ledger, ListSource, Paid

pytestmark = pytest.mark.anyio

PAID = "bank.Account.Paid"


@dataclass
class Totals:
    """Balances by account, and how many payments made them."""

    balances: dict[str, int] = field(default_factory=dict)
    payments: int = 0


def totals(retries: int = 5) -> Projection[Totals]:
    """A projection that changes its state before it finds out that an event is wrong."""
    view = Projection("totals", model=MemoryModel(Totals), retries=retries)

    @view.on(Paid)
    def paid(e: Event[Paid], state: Totals) -> None:
        state.payments += 1
        if e.data.amount < 0:
            raise ValueError("no money")
        state.balances[e.stream_id] = state.balances.get(e.stream_id, 0) + e.data.amount

    return view


async def test_a_state_in_memory_follows_its_log_and_can_be_waited_for() -> None:
    """No database is needed."""
    source, view = ListSource("bank"), totals()
    runner = ProjectionRunner(view, None, [source])
    await runner.open()
    task = asyncio.create_task(runner.run())
    for amount in (1, 2, 3):
        source.add(PAID, "a", amount=amount)
    await runner.wait(Position("bank.main", INCARNATION, 3), 10)
    assert runner.state == Totals({"a": 6}, 3)
    task.cancel()
    await asyncio.wait([task])
    await runner.close()


async def test_a_failed_batch_leaves_no_trace_of_itself() -> None:
    """The half-changed state is thrown away and built again from the beginning; then the batch is tried."""
    source, view = ListSource("bank"), totals(retries=3)
    runner = ProjectionRunner(view, None, [source])
    await runner.open()
    source.add(PAID, "a", amount=1)
    while await runner.step():
        pass
    bad = source.add(PAID, "a", amount=-1)
    assert await runner.step()
    assert runner.state == Totals()
    assert await runner.step()
    source.events[-1] = source.events[-1]._replace(data=source.events[0].data)
    while await runner.step():
        pass
    assert runner.state == Totals({"a": 2}, 2)
    source.append(bad._replace(position=3))
    async with asyncio.timeout(10):
        while await runner.step(limit=1):  # what is applied again on the way to the culprit does not count as progress
            pass
    assert isinstance(runner.halted, Halted)
    assert runner.halted.position == 3
    with pytest.raises(Halted, match="ValueError: no money"):
        _ = runner.state
    with pytest.raises(Halted):
        await runner.wait(Position("bank.main", INCARNATION, 3), 10)
    await runner.close()


async def test_two_runners_of_one_model_do_not_share_its_state() -> None:
    """A model is inert: each opening makes a state of its own."""
    source, view = ListSource("bank"), totals()
    source.add(PAID, "a", amount=1)
    runners = [ProjectionRunner(view, None, [source]) for _ in range(2)]
    for runner in runners:
        await runner.open()
        while await runner.step():
            pass
    assert [runner.state for runner in runners] == [Totals({"a": 1}, 1)] * 2
    for runner in runners:
        await runner.close()


async def test_a_model_in_tables_has_no_state() -> None:
    """It is queried instead."""
    views = ViewsDatabase("sqlite://")
    runner = ProjectionRunner(Ledger().projection, views, [ListSource("bank")])
    assert isinstance(runner.projection.model, SqlModel)
    with pytest.raises(ConfigurationError, match=r"keeps tables: use query\(\)"):
        _ = runner.state
    await runner.close()
    await views.close()
