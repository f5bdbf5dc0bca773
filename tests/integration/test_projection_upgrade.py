"""A projection is upgraded while workers of the old code are at work: they halt and say why, and the new ones go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from evsync.errors import ConfigurationError
from evsync.projections import ProjectionRunner, ViewsDatabase
from evsync.projections.rebuilding.rebuild import Rebuild
from tests.integration.test_projection_runner import at, running, until
from tests.projection_logs import Ledger, ListSource, bank_events, fold_bank

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("then", [{"version": 2}, {"version": 2, "groups": 8}, {"groups": 32}])
async def test_an_old_worker_halts_and_leaves_everything_to_the_new_ones(tmp_path: Path, then: dict[str, int]) -> None:
    """It has no share any more, whether there are as many groups as before, fewer or more; nor has one that only reads.

    Both are told so when they wait, and `status` says it.
    """
    databases = [ViewsDatabase(f"sqlite:///{tmp_path}/views.db") for _ in range(3)]
    source = ListSource("bank", bank_events(300, 1))
    old, onlooker = (ProjectionRunner(Ledger().projection, d, [source], lease_s=0.6) for d in databases[:2])
    await onlooker.open()
    async with running(old) as task:
        await onlooker.wait(at(300), 10)
        ledger = Ledger(**then)
        await Rebuild(ledger.projection, databases[2], [source], grace_s=0.0).run()
        new = ProjectionRunner(ledger.projection, databases[2], [source], lease_s=0.6)
        async with running(new):
            with pytest.raises(ConfigurationError, match="Start this process again"):
                await task

            async def alone() -> bool:
                return [w.groups for w in (await new.status()).workers] == [ledger.projection.groups]

            await until(alone)
            for n in range(20):
                source.add("bank.Account.Paid", f"account-{n}", amount=1)
            await new.wait(at(320), 10)
            assert await databases[2].read(ledger.rows) == fold_bank(source.events)
            for runner in (old, onlooker):
                with pytest.raises(ConfigurationError, match="Start this process again"):
                    await runner.wait(at(320), 10)
                status = await runner.status()
                assert (status.state, "Start this process again" in str(status.reason)) == ("halted", True)
    await onlooker.close()
    for database in databases:
        await database.close()


async def test_an_old_worker_is_not_counted_among_the_new_ones(tmp_path: Path) -> None:
    """Not even until there are groups for it to take: the new ones would make room for who can do nothing."""
    databases = [ViewsDatabase(f"sqlite:///{tmp_path}/views.db") for _ in range(2)]
    source, ledger = ListSource("bank", bank_events(20, 1)), Ledger(version=2)
    old = ProjectionRunner(Ledger().projection, databases[0], [source], lease_s=60.0)
    await old.open()
    await Rebuild(ledger.projection, databases[1], [source], grace_s=0.0).run()
    new = ProjectionRunner(ledger.projection, databases[1], [source], lease_s=60.0)
    await new.open()
    assert await new.balance()
    with pytest.raises(ConfigurationError, match="Start this process again"):
        await old.balance()
    assert [w.groups for w in (await new.status()).workers] == [16]
    for runner, database in zip((old, new), databases, strict=True):
        await runner.close()
        await database.close()
