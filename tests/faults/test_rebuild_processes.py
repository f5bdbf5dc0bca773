"""A rebuild that is killed again and again, while a worker goes on and events keep coming."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from tests.command_line import Shop
from tests.rebuilt_bank import Account, made
from tests.relaying import eventually

pytestmark = pytest.mark.anyio

KILLS, ACCOUNTS, PAYMENTS = 5, 300, 60


REBUILD = ("rebuild", "tests.rebuilt_bank:bank", "balances", "--grace", "0")


class Bank(Shop):
    """A directory with the bank's store and read models, or a schema of a PostgreSQL."""

    def __init__(self, directory: Path, postgres: str | None) -> None:
        super().__init__(directory)
        self.directory = directory
        self.urls = {"store": f"sqlite:///{directory}/bank.db", "views": f"sqlite:///{directory}/views.db", "nats": ""}
        if postgres is not None:
            self.urls["views"] = f"{postgres}&schema=killed"
        self.environment |= {f"EVSYNC_BANK_{name.upper()}": url for name, url in self.urls.items() if url}

    def filled(self) -> int:
        """How far the shadow is."""
        query = "SELECT coalesce(sum(count), 0) FROM {}evsync_checkpoints"
        try:
            if "postgres" in self.urls["views"]:
                with psycopg.connect(self.urls["views"].replace("&schema=killed", "")) as c:
                    (found,) = c.execute(query.format("killed__balances__next.")).fetchone() or (0,)
            else:
                with closing(sqlite3.connect(f"file:{self.directory}/views.db-balances-next?mode=ro", uri=True)) as c:
                    (found,) = c.execute(query.format("")).fetchone()
        except (sqlite3.OperationalError, psycopg.Error):
            return 0
        return int(found)

    def names(self) -> list[str]:
        """What there is of tables and files beside evsync's own bookkeeping."""
        if "postgres" in self.urls["views"]:
            with psycopg.connect(self.urls["views"].replace("&schema=killed", "")) as c:
                rows = c.execute(
                    "SELECT schemaname, tablename FROM pg_tables WHERE schemaname LIKE 'killed%'"
                ).fetchall()
                schemas = c.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'killed%'").fetchall()
            return sorted(
                [t if s == "killed" else f"{s}.{t}" for s, t in rows] + [s for (s,) in schemas if s != "killed"]
            )
        with closing(sqlite3.connect(self.directory / "views.db")) as c:
            tables = [name for (name,) in c.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'index')")]
        return sorted(tables) + [n for n in os.listdir(self.directory) if n.startswith("views.db-")]


@pytest.fixture(params=["sqlite", "postgresql"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Bank:
    """With the read models in either database."""
    return Bank(tmp_path, request.getfixturevalue("postgres_url") if request.param == "postgresql" else None)


async def test_a_rebuild_killed_five_times_under_load_ends_as_a_fold_over_the_log(shop: Bank) -> None:
    """At moments that nobody chose: readers never see less than before; in the end verify agrees, nothing is left."""
    chance = random.Random(4)
    service, table = made()
    expected: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    over = asyncio.Event()
    seen: list[int] = []

    async def pay(account: Account, amount: int) -> None:
        account.pay(amount)
        expected[account.id][0] += amount
        expected[account.id][1] += 1

    async def go_on(people: list[Account]) -> None:
        while not over.is_set():
            some = chance.sample(people, 20)
            for account in some:
                await pay(account, chance.randrange(1, 100))
            await asyncio.gather(*(service.save(a) for a in some))
            await asyncio.sleep(0.01)

    async def look() -> None:
        import sqlalchemy as sa

        while not over.is_set():
            (count,) = (await service.query(sa.select(sa.func.sum(table.c.payments)))).one()
            seen.append(count or 0)
            await asyncio.sleep(0.005)

    async with service.open(**shop.urls, run="none"):  # type: ignore[arg-type]
        people = [Account(f"a{n}", f"owner {n}") for n in range(ACCOUNTS)]
        for account in people:
            for _ in range(PAYMENTS):
                await pay(account, chance.randrange(1, 100))
        await asyncio.gather(*(service.save(a) for a in people))
        with shop.running("run", "tests.rebuilt_bank:bank") as worker:
            worker.line()
            filled = ACCOUNTS * (PAYMENTS + 1)

            async def applied() -> bool:
                (found,) = (await service.status()).followers
                return found.logs[0].position >= filled

            await eventually(applied, "the first model", timeout_s=30)
            tasks = [asyncio.create_task(go_on(people)), asyncio.create_task(look())]
            killed: list[int] = []
            for _ in range(KILLS):
                with shop.running(*REBUILD) as rebuild:
                    before, process = shop.filled(), rebuild.process
                    await eventually(
                        lambda: shop.filled() != before or process.poll() is not None,  # noqa: B023
                        "a rebuild that goes on",
                    )
                    await asyncio.sleep(chance.choice((0, 0.05, 0.1, 0.2)))  # filling, frozen, exchanging, or all done
                    if process.poll() is None:
                        killed.append(shop.filled())
                    process.kill()
                    await asyncio.to_thread(process.wait)
            assert killed
            await asyncio.to_thread(shop.evsync, *REBUILD)
            over.set()
            await asyncio.gather(*tasks)
            assert seen == sorted(seen)
            assert len(seen) > 50
            head = await service.runtime.store.head()

            async def caught_up() -> bool:
                (found,) = (await service.status()).followers
                return found.logs[0].position >= head

            await eventually(caught_up, "the worker at the end of the log", timeout_s=30)
            assert worker.end() == (0, "", "")
        rows = (await service.query(sa.select(table))).all()
        assert {r.id: [r.paid, r.payments] for r in rows} == expected
        assert all(r.latest == r.payments + 1 for r in rows)
    [report] = shop.json("verify", "tests.rebuilt_bank:bank")
    assert report["ok"]
    assert report["projections"][0]["logs"][0]["events"] == head
    assert [n for n in shop.names() if "old" in n or "next" in n] == []
