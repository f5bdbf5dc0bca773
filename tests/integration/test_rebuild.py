"""A read model is rebuilt while it is in use: same tables, nothing lost, nothing half-built, nothing left over."""

from __future__ import annotations

import asyncio
import enum
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from evsync.codec.values import pack, unpack
from evsync.errors import ConfigurationError, Halted, StoreUnavailable
from evsync.ports import LogReader
from evsync.projections import Event, MemoryModel, Projection, ProjectionRunner, SqlModel, Tables, ViewsDatabase
from evsync.projections.checking.applied import Applied, applied
from evsync.projections.checking.explain import explain
from evsync.projections.checking.verify import Verification
from evsync.projections.failures import DatabaseAway
from evsync.projections.rebuilding.exchange import Lost
from evsync.projections.rebuilding.rebuild import Rebuild, RebuildReport, drop_old_copies
from evsync.records import StoredEvent
from tests.projection_logs import Closed, ListReader, ListSource, Opened, Paid, bank_events

pytestmark = pytest.mark.anyio


class Kind(enum.Enum):
    """Of a payment."""

    IN = 1
    OUT = 2


class Books:
    """A read model with everything that tables have: keys, indexes, constraints, types; and statements of its own."""

    def __init__(self, *, rate: int = 1, **options: Any) -> None:
        """`rate`: what a payment counts, so that two versions of the code can differ."""
        self.rate = rate
        self.metadata = sa.MetaData()
        self.accounts = sa.Table(
            "accounts",
            self.metadata,
            sa.Column("id", sa.String, primary_key=True),
            sa.Column("owner", sa.String, index=True),
            sa.Column("balance", sa.BigInteger, server_default="0", nullable=False),
            sa.Column("count", sa.Integer, sa.CheckConstraint("count >= 0", name="counts_up"), server_default="0"),
            sa.Column("label", sa.String, sa.Computed("owner || '!'", persisted=True)),
        )
        self.payments = sa.Table(
            "payments",
            self.metadata,
            sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
            sa.Column("account", sa.ForeignKey("accounts.id", name="of_account", ondelete="CASCADE"), nullable=False),
            sa.Column("kind", sa.Enum(Kind, name="payment_kind")),
            sa.Column("amount", sa.Integer),
            sa.UniqueConstraint("account", "number", name="once"),
        )
        sa.Index("by_amount", self.payments.c.amount, self.payments.c.account.desc())
        sa.Index("by_number", self.payments.c.number, unique=True)
        self.projection = Projection("books", model=SqlModel(self.metadata), retries=0, **options)
        self.projection.on(Opened)(self.opened)
        self.projection.on(Paid)(self.paid)
        self.projection.on(Closed)(self.closed)

    def opened(self, e: Event[Opened], db: Tables) -> None:
        db.upsert(self.accounts, id=e.stream_id, owner=e.data.owner)

    def paid(self, e: Event[Paid], db: Tables) -> None:
        if e.data.amount == 1313:
            raise ValueError("too unlucky")
        amount = e.data.amount * self.rate
        db.increment(self.accounts, id=e.stream_id, balance=amount)
        db.upsert(
            self.payments, number=e.position.number, account=e.stream_id, amount=amount,
            kind=Kind.IN if amount > 0 else Kind.OUT,
        )  # fmt: skip
        if e.position.number % 50 == 0:
            db.execute(sa.text("UPDATE accounts SET count = count + 1 WHERE id = :id").bindparams(id=e.stream_id))

    def closed(self, e: Event[Closed], db: Tables) -> None:
        db.delete(self.accounts, id=e.stream_id)

    def rows(self, connection: sa.Connection) -> dict[str, Any]:
        """What the tables hold, by key."""
        return {
            t.name: {row[0]: tuple(row) for row in connection.execute(sa.select(t))}
            for t in (self.accounts, self.payments)
        }


def fold(events: Iterable[StoredEvent], rate: int = 1) -> dict[str, Any]:
    """What the tables must hold."""
    accounts: dict[str, dict[str, Any]] = {}
    payments: dict[int, tuple[Any, ...]] = {}
    new = {"owner": None, "balance": 0, "count": 0}
    for e in events:
        data = unpack(e.data)
        if e.type.endswith("Opened"):
            accounts.setdefault(e.stream, dict(new))["owner"] = data["owner"]
        elif e.type.endswith("Paid"):
            amount = data["amount"] * rate
            row = accounts.setdefault(e.stream, dict(new))
            row["balance"] += amount
            row["count"] += e.position % 50 == 0
            payments[e.position] = (e.position, e.stream, Kind.IN if amount > 0 else Kind.OUT, amount)
        elif e.type.endswith("Closed"):
            accounts.pop(e.stream, None)
            payments = {n: p for n, p in payments.items() if p[1] != e.stream}
    label = {id: row["owner"] and f"{row['owner']}!" for id, row in accounts.items()}
    return {
        "accounts": {id: (id, *row.values(), label[id]) for id, row in accounts.items()},
        "payments": payments,
    }


@pytest.fixture(params=["sqlite", "postgresql"])
async def views(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ViewsDatabase]:
    """A database of each kind. Afterwards nothing of a shadow or an old copy is there."""
    if request.param == "sqlite":
        database = ViewsDatabase(f"sqlite:///{tmp_path}/views.db")
        yield database
        await database.close()
        assert set(os.listdir(tmp_path)) <= {"views.db", "views.db-wal", "views.db-shm"}
        return
    url, schema = request.getfixturevalue("postgres_url"), "rebuilt"
    database = ViewsDatabase(f"{url}&schema={schema}")
    yield database
    await database.close()
    with psycopg.connect(url, autocommit=True) as c:
        left = c.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'rebuilt%' ORDER BY 1").fetchall()
        for (name,) in left:
            c.execute(f'DROP SCHEMA "{name}" CASCADE')
        c.execute("DROP ROLE IF EXISTS reporter")
    assert left == [("rebuilt",)]


@asynccontextmanager
async def working(books: Books, views: ViewsDatabase, source: ListSource) -> AsyncIterator[ProjectionRunner]:
    """A worker on the live model."""
    runner = ProjectionRunner(books.projection, views, [source], batch=100, lease_s=1.0)
    await runner.open()
    task = asyncio.create_task(runner.run())
    try:
        async with asyncio.timeout(60):
            yield runner
    finally:
        task.cancel()
        await asyncio.wait([task])
        await runner.close()


async def reached(runner: ProjectionRunner, number: int) -> None:
    """Wait until the stored checkpoints are there."""
    async with asyncio.timeout(20):
        while not any(log.position >= number for log in (await runner.status()).logs):
            await asyncio.sleep(0.005)


async def rebuild(books: Books, views: ViewsDatabase, source: ListSource, **options: Any) -> RebuildReport:
    """To its end, the old copy dropped."""
    report = await Rebuild(books.projection, views, [source], grace_s=0.0, **options).run()
    assert await drop_old_copies(views) is None
    return report


async def assert_true(books: Books, runner: ProjectionRunner, source: ListSource) -> None:
    """The tables are a fold over the log, and the checkpoints count exactly its events."""
    await reached(runner, len(source.events))
    found = await runner._session.observe()
    verification = Verification(books.projection.handlers, Applied(1, books.projection.groups, found.checkpoints))
    (report,) = await verification.run([source])
    assert report.ok, report.findings


def made(connection: sa.Connection) -> Any:
    """All that the database says of the tables, names included."""
    inspector = sa.inspect(connection)
    found = {}
    for table in ("accounts", "payments"):
        found[table] = (
            [{**c, "type": repr(c["type"])} for c in inspector.get_columns(table)],
            inspector.get_pk_constraint(table),
            sorted(inspector.get_foreign_keys(table), key=repr),
            sorted(inspector.get_indexes(table), key=repr),
            sorted(inspector.get_unique_constraints(table), key=repr),
            sorted(inspector.get_check_constraints(table), key=repr),
        )
    tables = sorted(t for t in inspector.get_table_names() if not t.startswith("evsync_"))
    return found, tables, [] if connection.dialect.name == "sqlite" else inspector.get_enums()


async def test_workers_go_on_with_the_new_model_and_readers_meet_the_one_or_the_other(views: ViewsDatabase) -> None:
    """Events keep coming, by code of another rate: the rows are all of the old one, then all of the new one."""
    old, new = Books(), Books(rate=1_000)
    log = bank_events(4_000, 11)
    source = ListSource("bank", log[:3_000])
    seen: list[int] = []
    over = asyncio.Event()

    async def write() -> None:
        for e in log[3_000:]:
            source.append(e)
            await asyncio.sleep(0)

    async def read() -> None:
        amounts = sa.select(sa.func.min(sa.func.abs(old.payments.c.amount)), sa.func.count()).where(
            old.payments.c.amount != 0
        )
        last = 0
        while not over.is_set():
            least, count = (await views.query(amounts)).one()
            state = int(least >= 1_000)
            assert state >= last
            last = state
            seen.append(count)
            await asyncio.sleep(0)

    async with working(old, views, source) as runner:
        await reached(runner, 3_000)
        reader, writer = asyncio.create_task(read()), asyncio.create_task(write())
        report = await Rebuild(new.projection, views, [source], grace_s=0.0).run()
        over.set()
        await writer
        await reader
        assert len(seen) > 3
        assert min(seen) > 400
        assert report.events >= 2_800
        assert not report.resumed
        await reached(runner, len(log))
    # The old worker has applied the rest to the new tables, by its own code: it is of the same version.
    end = fold(log)["payments"]
    rows = (await views.read(old.rows))["payments"]
    assert rows.keys() == end.keys()
    assert {rows[n][3] in (p[3], 1_000 * p[3]) for n, p in end.items()} == {True}
    await drop_old_copies(views)


async def test_the_new_model_is_a_fold_over_the_log_and_its_tables_are_those_that_create_all_makes(
    views: ViewsDatabase,
) -> None:
    """Columns, keys, indexes, constraints and types, names included; twice in a row, while a worker goes on."""
    books, source = Books(), ListSource("bank", bank_events(2_500, 12))
    async with working(books, views, source) as runner:
        await reached(runner, 2_500)
        before = await views.read(made)
        for n in (1, 2):
            await rebuild(Books(), views, source)
            source.append(*bank_events(2_500 + 200 * n, 12)[2_500 + 200 * (n - 1) :])
            await assert_true(books, runner, source)
            assert await views.read(books.rows) == fold(source.events)
            assert await views.read(made) == before


class Disturbed(Rebuild):
    """A rebuild whose first exchange finds the live model otherwise than it left it; `undo` makes that good again."""

    disturb, undo = "", "SELECT 1"
    refused = 0

    async def _carry_out(self) -> None:
        views = self._database
        if not self.refused:
            await views.write(lambda c: c.exec_driver_sql(self.disturb))
        try:
            await super()._carry_out()
        except Lost:
            self.refused += 1
            await views.write(lambda c: c.exec_driver_sql(self.undo))
            raise


class Overtaken(Disturbed):
    """A worker has taken a group back."""

    disturb = "UPDATE evsync_leases SET owner = 'somebody', token = token + 1 WHERE \"group\" = 3"


class Behind(Disturbed):
    """The live model shows an event more than the shadow."""

    disturb = "UPDATE evsync_checkpoints SET position = position + 1"
    undo = "UPDATE evsync_checkpoints SET position = position - 1"


@pytest.mark.parametrize("kind", [Overtaken, Behind])
async def test_an_exchange_that_finds_the_model_changed_changes_nothing(
    views: ViewsDatabase, kind: type[Disturbed]
) -> None:
    """What was applied meanwhile would be lost with the old tables. It is tried again, and succeeds."""
    old, new, source = Books(), Books(rate=1_000), ListSource("bank", bank_events(600, 21))
    async with working(old, views, source) as runner:
        await reached(runner, 600)
    rebuilding = kind(new.projection, views, [source], grace_s=0.0)
    await rebuilding.run()
    assert rebuilding.refused == 1
    assert await views.read(new.rows) == fold(source.events, 1_000)
    await drop_old_copies(views)


async def test_tokens_go_on_rising_through_an_exchange(views: ViewsDatabase) -> None:
    """A worker that slept through it would else find its old token in the new model, and apply its old batch to it."""
    books, source = Books(), ListSource("bank", bank_events(300, 22))
    async with working(books, views, source) as runner:
        await reached(runner, 300)
    tokens = sa.text("SELECT min(token), max(token) FROM evsync_leases")
    before = (await views.read(lambda c: c.execute(tokens).one()))[1]
    await rebuild(Books(), views, source)
    assert (await views.read(lambda c: c.execute(tokens).one()))[0] > before


async def test_another_version_with_other_groups_takes_over(views: ViewsDatabase) -> None:
    """The old one's checkpoints go with its tables; its workers do not touch the new ones."""
    old, new, source = Books(groups=4), Books(version=2, groups=32), ListSource("bank", bank_events(1_500, 13))
    async with working(old, views, source) as runner:
        await reached(runner, 1_500)
    assert (await rebuild(new, views, source)).version == 2
    source.append(*bank_events(2_000, 13)[1_500:])
    async with working(new, views, source) as runner:
        await assert_true(new, runner, source)
        assert len((await runner.status()).logs[0].groups) == 32
        assert await views.read(new.rows) == fold(source.events)
    with pytest.raises(ConfigurationError, match="was made by its version 2, and this is version 1"):
        async with working(old, views, source):
            pass


async def test_code_that_fails_leaves_the_live_model_as_it_is(views: ViewsDatabase) -> None:
    """The rebuild halts at the event; the live one, which had parted with it, goes on."""
    events = bank_events(600, 14)
    books, source = Books(), ListSource("bank", events)

    class Strict(Books):
        def paid(self, e: Event[Paid], db: Tables) -> None:
            if e.position.number == 401:
                raise ValueError("not this one")
            super().paid(e, db)

    assert events[400].type.endswith("Paid")
    async with working(books, views, source) as runner:
        await reached(runner, 600)
        with pytest.raises(Halted, match=r"position 401 .* not this one"):
            await rebuild(Strict(), views, source)
        source.append(*bank_events(700, 14)[600:])
        await assert_true(books, runner, source)
        assert await views.read(books.rows) == fold(source.events)
        # Mended code is other code: what the wrong one has filled is thrown away, and so is what was left behind.
        assert not (await rebuild(Books(rate=2), views, source)).resumed
        assert await views.read(books.rows) == fold(source.events, rate=2)


class Mute(ListSource):
    """A log that says nothing beyond a position, not even where it ends, as when a broker has gone away."""

    beyond: int | None = None

    async def readers(self) -> Sequence[LogReader]:
        return [MuteReader(self)]


class MuteReader(ListReader):
    """Implements LogReader."""

    _source: Mute

    async def read(self, after: int, limit: int, timeout_s: float) -> list[StoredEvent]:
        if self._source.beyond is None:
            return await super().read(after, limit, timeout_s)
        await asyncio.sleep(0.01)
        return self._source.events[after : self._source.beyond]

    async def head(self) -> int | None:
        return await super().head() if self._source.beyond is None else None


async def test_a_log_that_goes_silent_is_told_and_waited_for_so_long_only(tmp_path: Path) -> None:
    """Nothing was said and nothing given up where the reader itself had nothing to say."""
    views, books, source, heard = ViewsDatabase(f"sqlite:///{tmp_path}/views.db"), Books(), Mute("bank"), list[str]()
    source.append(*bank_events(300, 3))
    source.beyond = 100
    reason = "where log 'bank.main' ends cannot be told"
    with pytest.raises(StoreUnavailable, match=rf"nothing has come of it for \d+ s: {reason}.*goes on with what is"):
        await rebuild(books, views, source, timeout_s=0.8, tell=heard.append)
    assert heard == [reason]
    source.beyond = None
    report = await rebuild(books, views, source)
    assert (report.resumed, await views.read(books.rows)) == (True, fold(source.events))
    await views.close()


async def test_a_database_that_is_away_is_told_and_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nobody looks on, in the log of the process."""
    views, books, source = ViewsDatabase(f"sqlite:///{tmp_path}/views.db"), Books(), ListSource("bank")
    source.append(*bank_events(100, 3))
    write = views.write

    async def locked(work: Callable[[sa.Connection], Any]) -> Any:
        if not caplog.messages:
            raise DatabaseAway("database is locked")
        return await write(work)

    monkeypatch.setattr(views, "write", locked)
    report = await rebuild(books, views, source)
    assert caplog.messages == ["a rebuild waits: database is locked"]
    assert (report.waited_for, await views.read(books.rows)) == (("database is locked",), fold(source.events))
    await views.close()


async def test_a_rebuild_is_not_given_up_once_the_new_model_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the exchange took, and though what is left of the shadow cannot be removed: the next one does."""
    views, books, source = ViewsDatabase(f"sqlite:///{tmp_path}/views.db"), Books(), ListSource("bank")
    source.append(*bank_events(100, 3))
    write, exchange = views.write, views.write_beside

    async def locked(work: Callable[[sa.Connection], Any]) -> Any:
        raise DatabaseAway("database is locked")

    async def slow(file: Path, name: str, work: Callable[[sa.Connection], Any]) -> Any:
        await exchange(file, name, work)
        await asyncio.sleep(0.3)
        monkeypatch.setattr(views, "write", locked)

    monkeypatch.setattr(views, "write_beside", slow)
    await Rebuild(books.projection, views, [source], timeout_s=0.2).run()
    assert await views.read(books.rows) == fold(source.events)
    monkeypatch.setattr(views, "write", write)
    monkeypatch.setattr(views, "write_beside", exchange)
    assert not (await rebuild(books, views, source)).resumed
    assert not any("next" in name for name in os.listdir(tmp_path))
    await views.close()


async def test_an_exchange_whose_answer_was_lost_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it took: the live model is not as it was."""
    views, books, source = ViewsDatabase(f"sqlite:///{tmp_path}/views.db"), Books(), ListSource("bank")
    source.append(*bank_events(100, 3))
    exchange = views.write_beside

    async def slow(file: Path, name: str, work: Callable[[sa.Connection], Any]) -> Any:
        monkeypatch.setattr(views, "write_beside", exchange)
        await exchange(file, name, work)
        await asyncio.sleep(0.3)
        raise DatabaseAway("the connection was lost")

    monkeypatch.setattr(views, "write_beside", slow)
    await rebuild(books, views, source, timeout_s=0.2)
    assert await views.read(books.rows) == fold(source.events)
    await views.close()


async def test_what_was_filled_is_gone_on_with_unless_one_wants_it_anew(views: ViewsDatabase) -> None:
    """A rebuild that was broken off has its checkpoints in the shadow."""
    source = ListSource("bank", bank_events(3_000, 15))
    for again in ({}, {"anew": True}):
        task = asyncio.create_task(rebuild(Books(), views, source, batch=50))
        shadow = Rebuild(Books().projection, views, [source])._place

        async def begun() -> bool:
            database = ViewsDatabase(shadow)  # noqa: B023
            runner = ProjectionRunner(Books().projection, database, [source])
            found = (await runner.status()).logs[0].position
            await runner.close()
            await database.close()
            return bool(found)

        async with asyncio.timeout(20):
            while not await begun():
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        report = await rebuild(Books(), views, source, **again)
        assert report.resumed == (not again)
        assert await views.read(Books().rows) == fold(source.events)


async def test_parked_events_are_counted_left_out_and_tried_again_by_a_rebuild(views: ViewsDatabase) -> None:
    """Verify counts them beside the applied ones. Code that can apply them has nothing parked after the rebuild."""
    log = bank_events(400, 19)
    i = next(n for n in range(200, 400) if log[n].type.endswith("Paid"))
    bad = log[i] = log[i]._replace(data=pack({"amount": 1313}))
    books, source = Books(then="park"), ListSource("bank", log)

    async def look() -> Applied:
        return await views.read(lambda connection: applied(connection, "books"))

    async def assert_exact(seen: Applied) -> None:
        (report,) = await Verification(books.projection.handlers, seen).run([source])
        assert report.ok, report.findings
        assert report.events == sum(not e.type.endswith("Audited") for e in log)

    async with working(books, views, source) as runner:
        await reached(runner, 400)
        before = await look()
        parked = [e.position for e in log[i:] if e.stream == bad.stream and not e.type.endswith("Audited")]
        assert [p.event.position for p in before.parked] == parked
        await assert_exact(before)
        found = await explain(
            books.projection, books.metadata, books.accounts, {"id": bad.stream}, applied=before, sources=[source],
            place=views.place, dialect=views.dialect,
        )  # fmt: skip
        assert {c.event.position.number for c in found.causes}.isdisjoint(parked)
        await rebuild(Books(then="park"), views, source)
        again = await look()
        assert [p.event.position for p in again.parked] == parked
        await assert_exact(again)

    class Lucky(Books):
        def paid(self, e: Event[Paid], db: Tables) -> None:
            db.increment(self.accounts, id=e.stream_id, balance=1)

    await rebuild(Lucky(then="park"), views, source)
    assert (await look()).parked == []
    await assert_exact(await look())


async def test_what_others_made_on_the_tables_is_not_lost_in_silence(views: ViewsDatabase) -> None:
    """Views, triggers and foreign keys would stay with the old copy: refused. What others may do is kept."""
    books, source = Books(), ListSource("bank", bank_events(300, 16))
    async with working(books, views, source) as runner:
        await reached(runner, 300)
        await views.write(lambda c: c.exec_driver_sql("CREATE VIEW rich AS SELECT id FROM accounts WHERE balance > 9"))
        with pytest.raises(ConfigurationError, match="view 'rich' in its database belong"):
            await rebuild(books, views, source)
        await views.write(lambda c: c.exec_driver_sql("DROP VIEW rich"))
        key = "CREATE TABLE notes (id VARCHAR REFERENCES accounts (id))"
        await views.write(lambda c: c.exec_driver_sql(key))
        with pytest.raises(ConfigurationError, match="a foreign key of table 'notes'"):
            await rebuild(books, views, source)
        await views.write(lambda c: c.exec_driver_sql("DROP TABLE notes"))
        if views.dialect.name == "sqlite":
            await rebuild(books, views, source)
            return
        await views.write(lambda c: c.exec_driver_sql("CREATE ROLE reporter"))
        await views.write(lambda c: c.exec_driver_sql("GRANT SELECT ON accounts TO reporter"))
        await rebuild(books, views, source)
        allowed = "SELECT has_table_privilege('reporter', 'accounts', 'SELECT')"
        assert await views.read(lambda c: c.exec_driver_sql(allowed).scalar_one())
        await views.write(lambda c: c.exec_driver_sql("REVOKE ALL ON accounts FROM reporter"))


async def test_the_old_copy_is_kept_for_its_grace_and_dropped_by_whoever_comes_by(views: ViewsDatabase) -> None:
    """Until then somebody may look at it."""
    books, source = Books(), ListSource("bank", bank_events(300, 17))
    async with working(books, views, source) as runner:
        await reached(runner, 300)
        await Rebuild(books.projection, views, [source], grace_s=0.5).run()
        rest = await drop_old_copies(views)
        assert rest is not None
        assert 0 < rest <= 0.5
        sqlite = "SELECT name FROM sqlite_master WHERE type = 'table'"
        # Other tests have left copies of theirs in the same database.
        postgres = "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname ~ '^rebuilt__'"
        names = sqlite if views.dialect.name == "sqlite" else postgres

        async def aside() -> int:
            found = await views.read(lambda c: c.exec_driver_sql(names).scalars().all())
            return sum("accounts" in name and "__old_" in name for name in found)

        assert await aside() == 1
        async with asyncio.timeout(5):
            while await drop_old_copies(views) is not None:
                await asyncio.sleep(0.02)
        assert await aside() == 0


async def test_a_model_in_memory_tables_too_and_a_first_one() -> None:
    """An object is made anew at each start; a database in memory is rebuilt like any other; so is an empty one."""
    counts: MemoryModel[dict[str, int]] = MemoryModel(dict)
    with pytest.raises(ConfigurationError, match="each time its service is opened"):
        Rebuild(Projection("counts", model=counts), None, [])
    views = ViewsDatabase("sqlite://")
    books, source = Books(), ListSource("bank", bank_events(300, 18))
    await rebuild(books, views, source)
    assert await views.read(books.rows) == fold(source.events)
    async with working(books, views, source) as runner:
        await rebuild(books, views, source)
        source.append(*bank_events(400, 18)[300:])
        await assert_true(books, runner, source)
        assert await views.read(books.rows) == fold(source.events)
    await views.close()
