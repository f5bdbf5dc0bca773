"""A database that fails may lose its last transactions, whole and from the end: a worker that lives on finds out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from evsync.errors import NotVisible
from evsync.projections import ProjectionRunner, ViewsDatabase
from evsync.projections.failures import DatabaseAway, Fenced
from evsync.projections.models.bookkeeping import CHECKPOINTS, LEASES, NAMES, PARKED, WORKERS
from tests.integration.test_projection_parking import url, views
from tests.integration.test_projection_runner import at, running
from tests.projection_logs import Ledger, ListSource, bank_events, fold_bank

__all__ = ["url", "views"]
pytestmark = pytest.mark.anyio


def keep(ledger: Ledger) -> Callable[[sa.Connection], None]:
    """Remember all tables as they are."""
    return lambda c: [c.execute(sa.text(f"CREATE TABLE kept_{t} AS SELECT * FROM {t}")) for t in tables_of(ledger)]


def put_back(ledger: Ledger) -> Callable[[sa.Connection], None]:
    """As a database is after it has failed, when what came since had not reached its disk."""

    def work(connection: sa.Connection) -> None:
        for table in tables_of(ledger):
            connection.execute(sa.text(f"DELETE FROM {table}"))
            connection.execute(sa.text(f"INSERT INTO {table} SELECT * FROM kept_{table}"))

    return work


def tables_of(ledger: Ledger) -> list[str]:
    return sorted(NAMES | {ledger.accounts.name, ledger.daily.name})


def more(source: ListSource, count: int) -> None:
    """New events, in groups of all kinds."""
    for n in range(count):
        source.add("bank.Account.Paid", f"account-{n}", amount=1)


async def test_batches_that_the_database_has_lost_are_applied_again(views: ViewsDatabase) -> None:
    """The worker still holds its groups, and remembers more than is there; nothing told it that anything happened."""
    source, ledger = ListSource("bank", bank_events(40, 1)), Ledger()
    async with running(runner := ProjectionRunner(ledger.projection, views, [source], lease_s=60)):
        await runner.wait(at(40), 10)
        await views.write(keep(ledger))
        more(source, 30)
        await runner.wait(at(70), 10)
        await views.write(put_back(ledger))
        more(source, 30)
        await runner.wait(at(100), 10)
        assert await views.read(ledger.rows) == fold_bank(source.events)


async def test_nothing_is_visible_that_the_database_is_known_to_have_lost(views: ViewsDatabase) -> None:
    """Also what was visible before: who waits for it again waits until it has been applied again."""
    source, ledger = ListSource("bank", bank_events(40, 1)), Ledger()
    runner = ProjectionRunner(ledger.projection, views, [source], lease_s=60)
    await runner.open()
    while await runner.step():
        pass
    await views.write(keep(ledger))
    more(source, 30)
    while await runner.step():
        pass
    await runner.wait(at(70), 10)
    await views.write(put_back(ledger))
    assert not await runner.balance()
    await runner.wait(at(40), 10)
    with pytest.raises(NotVisible, match="up to position 40, 30 events short of 70"):
        await runner.wait(at(70), 0.05)
    while await runner.step():
        pass
    await runner.wait(at(70), 10)
    await runner.close()


async def test_a_takeover_that_the_database_has_lost_is_made_again(views: ViewsDatabase) -> None:
    """With the tokens that it had before, for they were lost too: these say nothing of what has been applied."""
    source, ledger = ListSource("bank", bank_events(40, 1)), Ledger()
    async with running(first := ProjectionRunner(ledger.projection, views, [source])):
        await first.wait(at(40), 10)
    await first.close()
    await views.write(keep(ledger))
    async with running(runner := ProjectionRunner(ledger.projection, views, [source], lease_s=60)):
        more(source, 30)
        await runner.wait(at(70), 10)
        await views.write(put_back(ledger))
        more(source, 30)
        await runner.wait(at(100), 10)
        assert await views.read(ledger.rows) == fold_bank(source.events)


@pytest.mark.parametrize("others", [False, True], ids=["alone", "beside others"])
async def test_a_model_whose_beginning_the_database_has_lost_is_begun_anew(views: ViewsDatabase, others: bool) -> None:
    """Its tables and all that is known of it are gone, as after a reset; what is kept of other projections may not be.

    The worker enrolls the projection again, and does not stand by for ever, though there is nobody to stand by for.
    """
    source, ledger = ListSource("bank", bank_events(40, 1)), Ledger()

    def lose(connection: sa.Connection) -> None:
        ledger.metadata.drop_all(connection)
        for table in (CHECKPOINTS, LEASES, PARKED, WORKERS):
            if others:
                connection.execute(sa.delete(table))
            else:
                table.drop(connection)

    async with running(runner := ProjectionRunner(ledger.projection, views, [source], lease_s=1)):
        await runner.wait(at(40), 10)
        await views.write(lose)
        more(source, 30)
        await runner.wait(at(70), 10)
        assert await views.read(ledger.rows) == fold_bank(source.events)


async def test_a_token_that_was_raised_again_says_nothing_of_what_was_applied(
    views: ViewsDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be the very one that was lost, and with it what was applied under it: that is not to be seen any more."""
    source, ledger = ListSource("bank", bank_events(40, 1)), Ledger()
    first = ProjectionRunner(ledger.projection, views, [source])
    await first.open()
    assert await first.step()
    await first.close()
    await views.write(keep(ledger))
    runner = ProjectionRunner(ledger.projection, views, [source])
    await runner.open()
    more(source, 30)
    assert await runner.step()
    [log] = runner._logs.values()
    assert runner._tenure.holding is not None
    before = dict(runner._tenure.holding.tokens)
    assert log.position == 70
    await views.write(put_back(ledger))
    balance = runner._session.balance
    away = iter([True])

    async def once_away(*given: Any) -> Any:
        if next(away, False):
            raise DatabaseAway("it has failed")
        return await balance(*given)

    monkeypatch.setattr(runner._session, "balance", once_away)
    with pytest.raises(DatabaseAway):
        await runner.balance()
    assert await runner.balance()
    assert (dict(runner._tenure.holding.tokens), log.position) == (before, 40)
    assert await runner.step()
    assert await views.read(ledger.rows) == fold_bank(source.events)
    await runner.close()


async def test_a_worker_that_is_fenced_again_and_again_pauses(
    views: ViewsDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes its groups anew at once, the first time. A database that says every time that it has lost what it stored
    is asked ever less often, and when it keeps its word again the work goes on."""
    source, ledger = ListSource("bank", bank_events(40, 1)), Ledger()
    runner = ProjectionRunner(ledger.projection, views, [source])
    apply, refused = runner._session.apply, list[float]()

    async def refuse(*given: Any, **options: Any) -> None:
        if len(refused) == 5:
            return await apply(*given, **options)
        refused.append(asyncio.get_running_loop().time())
        raise Fenced("the database has lost batches")

    monkeypatch.setattr(runner._session, "apply", refuse)
    async with running(runner):
        await runner.wait(at(40), 20)
        assert await views.read(ledger.rows) == fold_bank(source.events)
    assert refused[-1] - refused[0] > 0.17  # 50, 100 and 200 ms, of which the jitter takes half at most
