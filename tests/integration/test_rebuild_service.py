"""Rebuilds as users ask for them: of a service, by a version, on the command line; and what differs before them."""

from __future__ import annotations

import json
import signal
import sqlite3
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from evsync import MemoryModel, NotVisible, Projection, Service
from evsync.errors import ConfigurationError
from evsync.operations.difference import diff, diff_with
from evsync.projections.checking.diff import Side, compare
from tests.command_line import Shop
from tests.rebuilt_bank import Account, Opened, made
from tests.relaying import eventually

pytestmark = pytest.mark.anyio


class Bank(Shop):
    """A directory with the bank's store and read models."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.urls: dict[str, Any] = {
            "store": f"sqlite:///{directory}/bank.db", "views": f"sqlite:///{directory}/views.db", "nats": "",
        }  # fmt: skip
        self.environment |= {"EVSYNC_BANK_STORE": self.urls["store"], "EVSYNC_BANK_VIEWS": self.urls["views"]}


@pytest.fixture
async def shop(tmp_path: Path) -> Bank:
    """Ten accounts with three payments each, and a read model of version 1."""
    made_ = Bank(tmp_path)
    service, _ = made()
    async with service.open(**made_.urls):
        people = [Account(f"a{n}", f"owner {n}") for n in range(10)]
        for account in people:
            for amount in (1, 2, 3):
                account.pay(amount)
        await service.wait(await service.save(people[0], *people[1:]))
    return made_


async def paid(service: Service, table: sa.Table, **options: Any) -> set[int]:
    """What the rows show."""
    return set((await service.query(sa.select(table.c.paid), **options)).scalars())


async def test_a_service_rebuilds_what_it_is_running_itself(shop: Bank) -> None:
    """By the code that it has; the worker in the same process goes on with the new model."""
    service, table = made(rate=2)
    async with service.open(**shop.urls):
        assert await paid(service, table) == {6}
        await service.rebuild()
        assert await paid(service, table) == {12}
        position = await service.execute(Account, "a1", Account.pay, 10)
        assert await paid(service, table, after=position) == {12, 32}
        with pytest.raises(ConfigurationError, match="is not a projection of service 'bank'"):
            await service.rebuild(made()[0].projections[0])


async def test_models_in_memory_and_shared_tables_are_not_rebuilt(shop: Bank) -> None:
    """The one is made anew at each start, the other would lose what a second projection has put there."""
    service, _ = made()
    counts: Projection[dict[str, int]] = Projection("counts", model=MemoryModel(dict))
    counts.on(Opened)(lambda e, state: state.update({e.stream_id: 1}))
    twin = Projection("twin", model=service.projections[0].model)
    twin.on(Opened)(lambda e, db: None)
    both = Service("bank", aggregates=[Account], projections=[service.projections[0], counts, twin])
    async with both.open(**shop.urls):
        with pytest.raises(ConfigurationError, match="each time its service is opened"):
            await both.rebuild(counts)
        with pytest.raises(ConfigurationError, match="'twin' fills table 'accounts' too"):
            await both.rebuild(service.projections[0])


async def test_an_older_version_is_refused_or_rebuilds_itself_when_so_configured(shop: Bank) -> None:
    """Queries of the new code wait for the new model; workers of the old one are told to be started again."""
    second, _ = made(2, rate=2)
    with pytest.raises(ConfigurationError, match=r"made by its version 1, and this is version 2.*`evsync rebuild"):
        async with second.open(**shop.urls):
            pass
    web, table = made(2, rate=2, rebuild="auto")
    old, old_table = made()
    worker, _ = made(2, rate=2, rebuild="auto")
    async with old.open(**shop.urls), web.open(**shop.urls, run="none"):
        (status,) = (await web.status()).followers
        assert status.reason == "the read model of version 1 is being rebuilt as version 2"
        with pytest.raises(NotVisible, match="being rebuilt as version 2"):
            await paid(web, table, timeout_s=0.05)
        assert await paid(old, old_table) == {6}
        async with worker.open(**shop.urls):
            assert await paid(web, table, timeout_s=20) == {12}
            position = await worker.execute(Account, "a1", Account.pay, 10)
            assert await paid(web, table, after=position) == {12, 32}
            assert (await web.status()).followers[0].reason is None

            def refused() -> bool:
                failure = old.runtime.failure()
                return isinstance(failure, ConfigurationError) and "Start this process again" in str(failure)

            await eventually(refused, "the old worker's end")
    with pytest.raises(ConfigurationError, match="made by its version 2, and this is version 1"):
        async with old.open(**shop.urls):
            pass
    with pytest.raises(ConfigurationError, match="rebuild='never' is not known"):
        Projection("x", model=MemoryModel(dict), rebuild="never")  # type: ignore[arg-type]


def drop_schemas(connection: sa.Connection) -> None:
    """Of the test below, with the old copies."""
    for name in sa.inspect(connection).get_schema_names():
        if name.startswith("shared_rebuild"):
            connection.exec_driver_sql(f'DROP SCHEMA "{name}" CASCADE')


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_several_processes_that_rebuild_at_once_share_the_work(
    shop: Bank, kind: str, request: pytest.FixtureRequest
) -> None:
    """They fill one shadow together. One exchanges, once; the others find it done."""
    urls = shop.urls
    if kind == "postgresql":
        urls = urls | {"views": f"{request.getfixturevalue('postgres_url')}&schema=shared_rebuild"}
    first, table = made()
    async with first.open(**urls):
        await first.wait(first.runtime.store.identity.at(40), timeout_s=20)
    services = [made(2, rate=2, rebuild="auto") for _ in range(3)]
    async with AsyncExitStack() as stack:
        for service, _ in services:
            await stack.enter_async_context(service.open(**urls))
        for service, table in services:
            assert await paid(service, table, timeout_s=20) == {12}
        position = await services[0][0].execute(Account, "a1", Account.pay, 10)
        for service, table in services:
            assert await paid(service, table, after=position, timeout_s=20) == {12, 32}
            assert service.runtime.failure() is None
        assert service.runtime.views is not None
        copies = await service.runtime.views.query(sa.select(sa.text("count(*) FROM evsync_copies")))
        assert copies.scalar_one() == 1
        if kind == "postgresql":
            await service.runtime.views.write(drop_schemas)


async def test_diff_shows_what_a_rebuild_would_change(shop: Bank) -> None:
    """Rows of the read model that somebody altered, added or deleted; and nothing where nothing is wrong."""
    service, table = made()
    async with service.inspect(followers=True, **shop.urls):
        report = await diff(service.runtime, service.projections[0])
        assert (report.same, report.tables[0].new_rows) == (True, 10)
        views = service.runtime.views
        assert views is not None
        await views.write(lambda c: c.execute(sa.update(table).where(table.c.id == "a3").values(paid=-1)))
        await views.write(lambda c: c.execute(sa.delete(table).where(table.c.id == "a4")))
        await views.write(lambda c: c.execute(sa.insert(table).values(id="zoe", owner="Zoe")))
        report = await diff(service.runtime, service.projections[0])
        (found,) = report.tables
        assert (found.changed, found.only_old, found.only_new) == (1, 1, 1)
        rows = {r.key["id"]: r for r in found.rows}
        assert (rows["a3"].kind, rows["a3"].columns) == ("changed", {"paid": (-1, 6)})
        assert (rows["a4"].kind, rows["a4"].columns["owner"]) == ("only_new", (None, "owner 4"))
        assert (rows["zoe"].kind, rows["zoe"].columns["owner"]) == ("only_old", ("Zoe", None))
    service, _ = made(2, rate=2)  # the code of another version beside the model that version 1 has made
    async with service.inspect(followers=True, **shop.urls):
        (found,) = (await diff(service.runtime, service.projections[0], limit=3)).tables
        assert (found.changed, len(found.rows)) == (9, 3)


async def test_diff_runs_two_codes_over_the_same_history(shop: Bank) -> None:
    """Columns and tables that one of them lacks are named."""
    service, _ = made()
    other, theirs = made(rate=3)
    theirs.append_column(sa.Column("colour", sa.String))
    sa.Table("extra", theirs.metadata, sa.Column("id", sa.Integer, primary_key=True))
    async with service.inspect(followers=True, **shop.urls):
        report = await diff_with(service.runtime, service.projections[0], other.projections[0])
    accounts, extra = report.tables
    assert (accounts.changed, accounts.columns_only_old, accounts.columns_only_new) == (10, ["colour"], [])
    assert {r.columns["paid"] for r in accounts.rows} == {(18, 6)}
    assert (extra.old_rows, extra.new_rows, extra.same) == (0, None, False)


def test_values_that_are_written_otherwise_are_no_difference() -> None:
    """A column of another type of number; keys of two columns; a table without a key."""
    sides = []
    for kind in (sa.Integer, sa.Numeric):
        metadata = sa.MetaData()
        pairs = sa.Table("pairs", metadata, sa.Column("a", sa.Integer, primary_key=True),
                         sa.Column("b", sa.String, primary_key=True), sa.Column("n", kind))  # fmt: skip
        notes = sa.Table("notes", metadata, sa.Column("text", sa.String))
        connection = sa.create_engine("sqlite://").connect()
        metadata.create_all(connection)
        last = 2 if kind is sa.Integer else 3
        connection.execute(sa.insert(pairs), [{"a": 1, "b": "x", "n": 5}, {"a": 1, "b": "y", "n": -last}])
        connection.execute(sa.insert(notes), [{"text": "one"}, {"text": f"{last}"}])
        sides.append(Side(connection, metadata))
    found = {t.table: t for t in compare(*sides)}
    (row,) = found["pairs"].rows
    assert (row.key, row.columns) == ({"a": 1, "b": "y"}, {"n": (-2, -3)})
    assert (found["notes"].only_old, found["notes"].only_new) == (1, 1)
    for side in sides:
        side.connection.close()


async def test_verify_tells_people_what_differs(shop: Bank) -> None:
    """The verdict first, then each finding with its events; nothing of it where nothing was applied yet."""
    target = "tests.rebuilt_bank:bank"
    with closing(sqlite3.connect(shop.directory / "views.db")) as views:
        group, count = views.execute('SELECT "group", count FROM evsync_checkpoints ORDER BY count DESC').fetchone()
        gone = ("0" * 16, group)
        views.execute('UPDATE evsync_checkpoints SET count = 0, digest = ? WHERE "group" = ?', gone)
        views.commit()
    shown = shop.evsync("verify", target, code=1).stdout
    assert "balances, log bank.main: NOT exactly the 40 events up to position 40; 1 of 16 groups differ" in shown
    assert f"group {group}: the checkpoint is at position 40, and what was applied is everything up to" in shown
    assert f"it was moved, and {count} events were passed over" in shown
    assert shown.count("bank.Account.Paid") == count - count // 4
    with closing(sqlite3.connect(shop.directory / "views.db")) as views:
        row = views.execute('DELETE FROM evsync_checkpoints WHERE "group" = ? RETURNING *', (group,)).fetchone()
        views.commit()
        assert f"no checkpoint of group {group}, which a worker has had" in shop.evsync("verify", target, code=1).stdout
        views.execute("INSERT INTO evsync_checkpoints VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        views.execute("UPDATE evsync_checkpoints SET digest = 'none' WHERE \"group\" = ?", (group,))
        views.commit()
    unreadable = f"the checkpoint of projection 'balances' for group {group} of log 'bank.main' cannot be read"
    for command in ("verify", "status"):
        said = shop.evsync(command, target, code=1).stderr
        assert unreadable in said
        assert "its digest 'none'" in said
        assert "evsync reset" in said
    with closing(sqlite3.connect(shop.directory / "views.db")) as views:
        views.execute('UPDATE evsync_checkpoints SET digest = ? WHERE "group" = ?', gone)
        views.commit()
    (shop.directory / "bank.db").rename(shop.directory / "moved.db")
    async with made()[0].open(**shop.urls, run="none"):
        pass
    assert "NOT exactly the 0 events up to position 40" in shop.evsync("verify", target, code=1).stdout
    report = json.loads(shop.evsync("verify", target, "--json", code=1).stdout)
    assert report["projections"][0]["logs"][0]["findings"][0]["positions"] == list(range(1, 41))
    (shop.directory / "views.db").unlink()
    async with made()[0].open(**shop.urls):
        pass
    assert "nothing applied yet" in shop.evsync("verify", target).stdout


async def test_the_commands(shop: Bank) -> None:
    """Exit codes and what is printed, for people and as JSON; a worker goes on meanwhile."""
    target = "tests.rebuilt_bank:doubled"
    with shop.running("run", "tests.rebuilt_bank:bank") as worker:
        worker.line()
        assert "exactly the 40 events up to position 40, once" in shop.evsync("verify", target).stdout
        done = shop.evsync("diff", target, "balances", "--limit", "2", code=1)
        assert "balances, table accounts: 10 rows differ" in done.stdout
        assert "and 8 rows more (--limit)" in done.stdout
        assert '"a0"  paid    6    12' in done.stdout
        [told] = shop.json("rebuild", target, "balances", "--grace", "0")
        assert (told["projection"], told["events"], told["resumed"]) == ("balances", 40, False)
        assert json.loads(shop.evsync("diff", target, "balances", "--with", target, "--json").stdout)["same"]
        [why] = shop.json("explain", target, "accounts", "a3", "--type", "*.Paid", "--last", "1")
        assert (why["row"]["paid"], why["events"], why["causes"][0]["stream"]) == (12, 3, "a3")
        assert worker.end() == (0, "", "")
    with shop.running("status", target, "--watch", "--json", "--every", "0.1") as watch:
        for _ in range(2):
            log = json.loads(watch.line())["followers"][0]["logs"][0]
            assert (log["lag"], log["lag_s"], len(log["groups"]), log["groups"][0]["position"]) == (0, 0.0, 16, 40)
        assert watch.end(signal.SIGINT)[0] == 130
    code, seen = shop.on_terminal("rebuild", target, "balances", "--grace", "0")
    assert code == 0
    assert "40 events applied in" in seen
    refused = shop.evsync("rebuild", target, "blances", code=2)
    assert "service 'bank' has no projection 'blances'; it has balances" in refused.stderr
