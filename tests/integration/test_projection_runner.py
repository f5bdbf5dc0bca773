"""The runner of a projection over a SQLite database: visible, exactly once, and clear about what is wrong."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from evsync.codec.values import pack
from evsync.errors import (
    ConfigurationError,
    EvsyncError,
    ForeignMessage,
    Halted,
    NotVisible,
    OtherIncarnation,
    StreamHole,
)
from evsync.projections import Event, FollowerStatus, Projection, ProjectionRunner, SqlModel, Tables, ViewsDatabase
from evsync.projections.failures import DatabaseAway
from evsync.projections.models import engines as database_module
from evsync.projections.models import leases, shares
from evsync.projections.models.shares import Change
from evsync.projections.rebuilding.rebuild import Rebuild
from evsync.records import Position
from tests.projection_logs import INCARNATION, Closed, Ledger, ListSource, Opened, Paid, bank_events, fold_bank, stored

pytestmark = pytest.mark.anyio

PAID = "bank.Account.Paid"


@pytest.fixture
async def views(tmp_path: Path) -> AsyncIterator[ViewsDatabase]:
    """A database in a file."""
    database = ViewsDatabase(f"sqlite:///{tmp_path}/views.db")
    yield database
    await database.close()


def at(number: int, log: str = "bank.main") -> Position:
    """A position of the bank's log."""
    return Position(log, INCARNATION, number)


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 10) -> None:
    """Return when the condition holds; fail when it does not in time."""
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def running(runner: ProjectionRunner) -> AsyncIterator[asyncio.Task[None]]:
    """The runner at work, until the block ends, which must be soon."""
    await runner.open()
    task = asyncio.create_task(runner.run())
    try:
        async with asyncio.timeout(30):
            yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
        await runner.close()


class TestVisible:
    """Events become visible, and wait() tells when."""

    async def test_history_and_new_events_are_applied_and_waited_for(self, views: ViewsDatabase) -> None:
        """A waiter returns once its position shows, whether it lies in the past or comes later."""
        source, ledger = ListSource("bank", bank_events(3_000, 1)), Ledger()
        runner = ProjectionRunner(ledger.projection, views, [source], batch=100)
        async with running(runner):
            later = asyncio.create_task(runner.wait(at(3_001), 10))
            await runner.wait(at(3_000), 10)
            assert await views.read(ledger.rows) == fold_bank(source.events)
            assert not later.done()
            source.add(PAID, "account-1", amount=7)
            await later
            assert await views.read(ledger.rows) == fold_bank(source.events)
            await runner.wait(at(0), 0)
            status = await runner.status()
            assert (status.state, status.logs[0].position, status.logs[0].lag_events) == ("running", 3_001, 0)
        assert (await runner.status()).state == "standby"

    async def test_events_nobody_handles_move_the_checkpoint_too(self, views: ViewsDatabase) -> None:
        """Else a position of theirs could never be waited for."""
        source, ledger = ListSource("bank"), Ledger()
        async with running(runner := ProjectionRunner(ledger.projection, views, [source])):
            source.add("bank.Account.Audited", "a")
            await runner.wait(at(1), 10)

    async def test_two_sources_fill_one_model(self, views: ViewsDatabase) -> None:
        """Each log has its own checkpoints, and the projection waits for each by itself."""
        metadata = sa.MetaData()
        seen = sa.Table("seen", metadata, sa.Column("service", sa.String, primary_key=True), sa.Column("n", sa.Integer))
        view = Projection("seen", model=SqlModel(metadata))

        class Sent(Paid, type="post.Parcel.Sent"):
            pass

        @view.on(Paid)
        def paid(e: Event[Paid], db: Tables) -> None:
            db.increment(seen, service="bank", n=e.data.amount)

        @view.on(Sent)
        def sent(e: Event[Sent], db: Tables) -> None:
            db.increment(seen, service="post", n=e.data.amount)

        bank, post = ListSource("bank"), ListSource("post")
        async with running(runner := ProjectionRunner(view, views, [bank, post])):
            for n in range(20):
                bank.add(PAID, "a", amount=1)
                post.add("post.Parcel.Sent", "p", amount=n)
            await runner.wait(at(20), 10)
            await runner.wait(at(20, "post.main"), 10)
            rows = await views.query(sa.select(seen.c.service, seen.c.n).order_by(seen.c.service))
            assert rows.all() == [("bank", 20), ("post", 190)]
            assert {log.log for log in (await runner.status()).logs} == {"bank.main", "post.main"}

    async def test_a_position_that_does_not_come_is_not_visible_and_the_lag_is_told(self, views: ViewsDatabase) -> None:
        """The error says how far the model is; the write itself is durable."""
        source, ledger = ListSource("bank", bank_events(10, 1)), Ledger()
        async with running(runner := ProjectionRunner(ledger.projection, views, [source])):
            await runner.wait(at(10), 10)
            with pytest.raises(NotVisible, match="up to position 10, 32 events short of 42"):
                await runner.wait(at(42), 0.05)

    async def test_positions_of_other_logs_and_incarnations_are_errors_at_once(self, views: ViewsDatabase) -> None:
        """Nobody waits for what cannot come."""
        source, ledger = ListSource("bank", bank_events(10, 1)), Ledger()
        async with running(runner := ProjectionRunner(ledger.projection, views, [source])):
            await runner.wait(at(10), 10)
            with pytest.raises(ConfigurationError, match=r"does not follow log 'users.main'; it follows bank.main"):
                await runner.wait(at(1, "users.main"), 10)
            with pytest.raises(OtherIncarnation, match="was restored from a backup in between"):
                await runner.wait(Position("bank.main", "0000000000ff", 3), 10)


class TestHalting:
    """An event that cannot be applied stops the projection, with nothing of its batch applied."""

    async def halted(self, views: ViewsDatabase, ledger: Ledger, source: ListSource) -> Halted:
        """Run until it halts; what everybody is told, who waited before and who asks later."""
        runner = ProjectionRunner(ledger.projection, views, [source], batch=10)
        async with running(runner) as task:
            with pytest.raises(Halted) as waiting:
                await runner.wait(at(9_999), 20)
            with pytest.raises(Halted) as run:
                await task
            with pytest.raises(Halted) as later:
                await runner.wait(at(9_999), 20)
            assert str(waiting.value) == str(run.value) == str(later.value) == str(runner.halted)
            assert (await runner.status()).state == "halted"
            assert isinstance(runner.halted, Halted)
            return runner.halted

    async def test_a_handler_that_raises_halts_with_nothing_of_the_batch_applied(self, views: ViewsDatabase) -> None:
        """After the retries; the error names type, stream, version, position and reason; a mended handler resumes."""
        events = bank_events(30, 3)
        events[24] = stored(25, PAID, "account-x", 1, amount=13)
        ledger, source = Ledger(retries=2), ListSource("bank", events)
        attempts = []

        def paid(e: Event[Paid], db: Tables) -> None:
            Ledger.paid(ledger, e, db)
            if e.data.amount == 13:
                attempts.append(e.position.number)
                raise KeyError("account-x")

        ledger.projection = Projection("ledger", model=SqlModel(ledger.metadata), retries=2)
        for contract, handler in ((Opened, ledger.opened), (Paid, paid), (Closed, ledger.closed)):
            ledger.projection.on(contract)(handler)  # type: ignore[arg-type]  # one loop over three contracts
        error = await self.halted(views, ledger, source)
        assert attempts == [25, 25, 25]
        assert (error.event_type, error.stream, error.version, error.position) == (PAID, "account-x", 1, 25)
        assert (error.follower, error.log, error.reason) == ("ledger", "bank.main", "KeyError: 'account-x'")
        assert isinstance(error.__cause__, KeyError)
        assert await views.read(ledger.rows) == fold_bank(events[:20])

        mended = Ledger()
        async with running(runner := ProjectionRunner(mended.projection, views, [source])):
            await runner.wait(at(30), 10)
            assert await views.read(mended.rows) == fold_bank(events)

    async def test_a_culprit_that_only_the_database_can_see_is_found(self, views: ViewsDatabase) -> None:
        """A bulk statement fails as a whole; event by event the one to blame shows."""
        ledger = Ledger(retries=0)
        ledger.accounts.append_constraint(sa.CheckConstraint("balance < 1000"))
        source = ListSource("bank", [stored(n, PAID, f"a{n}", 1, amount=n) for n in range(1, 31)])
        source.events[16] = stored(17, PAID, "a1", 2, amount=999)
        error = await self.halted(views, ledger, source)
        assert (error.position, error.stream, error.version) == (17, "a1", 2)
        assert "CHECK constraint failed" in error.reason
        assert await views.read(ledger.rows) == fold_bank(source.events[:10])

    async def test_a_statement_of_ones_own_does_not_take_the_blame_for_what_was_gathered_before(
        self, views: ViewsDatabase
    ) -> None:
        """execute() writes what earlier events have gathered; the culprit is the event that asked for it."""
        ledger = Ledger(retries=0)
        ledger.accounts.append_constraint(sa.CheckConstraint("balance < 1000"))

        def opened(e: Event[Opened], db: Tables) -> None:
            db.execute(sa.update(ledger.accounts).values(owner=e.data.owner))

        ledger.projection = Projection("ledger", model=SqlModel(ledger.metadata), retries=0)
        ledger.projection.on(Paid)(ledger.paid)
        ledger.projection.on(Opened)(opened)
        source = ListSource("bank", [stored(1, PAID, "a", 1, amount=1), stored(2, PAID, "a", 2, amount=999)])
        source.add("bank.Account.Opened", "b", owner="Bob")
        error = await self.halted(views, ledger, source)
        assert (error.position, error.event_type) == (2, PAID)

    async def test_a_batch_that_only_fails_in_bulk_is_applied_event_by_event(self, views: ViewsDatabase) -> None:
        """Gathering is an optimization: where it trips over a constraint that single events do not, it is left out."""
        ledger = Ledger(retries=0)
        ledger.accounts.c.owner.unique = True
        ledger.accounts.append_constraint(sa.UniqueConstraint("owner"))
        source = ListSource("bank")
        for stream, owner in (("a", "Ada"), ("b", "Bob"), ("c", "Ada L."), ("a", "Carl"), ("b", "Ada"), ("a", "Bob")):
            source.add("bank.Account.Opened", stream, owner=owner)
        async with running(runner := ProjectionRunner(ledger.projection, views, [source])):
            await runner.wait(at(6), 10)
        assert await views.read(ledger.rows) == fold_bank(source.events)

    async def test_an_event_that_does_not_meet_its_contract_halts(self, views: ViewsDatabase) -> None:
        """With pydantic's own words on one line."""
        source = ListSource("bank", [stored(1, PAID, "a", 1, amount="much", more=1)])
        error = await self.halted(views, Ledger(retries=0), source)
        assert error.reason == (
            "it does not meet the contract: amount: Input should be a valid integer, unable to parse string as an "
            "integer (got 'much')"
        )

    async def test_a_corrupt_payload_halts(self, views: ViewsDatabase) -> None:
        """Nothing moves past bytes that cannot be read."""
        source = ListSource("bank", [stored(1, PAID, "a", 1)._replace(data=pack({"amount": 1})[:-1] + b"\xc1")])
        error = await self.halted(views, Ledger(retries=0), source)
        assert "are not a value written by evsync" in error.reason

    async def test_another_worker_is_told_that_the_projection_has_halted(self, tmp_path: Path) -> None:
        """wait() fails at once also where the projection is not run, until somebody takes it over again."""
        url = f"sqlite:///{tmp_path}/views.db"
        here, there = ViewsDatabase(url), ViewsDatabase(url)
        source = ListSource("bank", [stored(1, PAID, "a", 1, amount="much")])
        onlooker = ProjectionRunner(Ledger().projection, there, [source])
        await onlooker.open()
        waiting = asyncio.create_task(onlooker.wait(at(1), 20))
        error = await self.halted(here, Ledger(retries=0), source)
        with pytest.raises(Halted, match="halted at position 1"):
            await waiting
        with pytest.raises(Halted) as told:
            await onlooker.wait(at(1), 20)
        assert vars(told.value) == vars(error)
        source.events[0] = stored(1, PAID, "a", 1, amount=5)
        async with running(heir := ProjectionRunner(Ledger().projection, here, [source])):

            async def taken_over() -> bool:
                return bool(heir.groups)  # until then the others are told of the halt, which is still the last news

            await until(taken_over)
            await onlooker.wait(at(1), 10)
        await onlooker.close()
        await asyncio.gather(here.close(), there.close())


class TestSources:
    """What a log may do, and what it must not."""

    async def test_trouble_that_passes_is_waited_out_and_shows_in_the_status(self, views: ViewsDatabase) -> None:
        """A broker or a store that is away is no reason to stop."""
        source, ledger = ListSource("bank"), Ledger()
        runner = ProjectionRunner(ledger.projection, views, [source])
        async with running(runner):
            source.failure = OSError("no route to host")
            source.add(PAID, "a", amount=1)

            async def retrying() -> bool:
                status = await runner.status()
                return status.state == "retrying" and "no route to host" in str(status.logs[0].reason)

            await until(retrying)
            with pytest.raises(
                NotVisible, match=r"within 0.01 s \(log 'bank.main' cannot be read: .*no route to host\)"
            ):
                await runner.wait(at(1), 0.01)
            source.failure = None
            await runner.wait(at(1), 10)
            assert (await runner.status()).logs[0].reason is None

    async def test_what_a_person_must_mend_halts_at_once(self, views: ViewsDatabase) -> None:
        """The error of the log is what everybody is told."""
        source, ledger = ListSource("bank"), Ledger()
        source.failure = ForeignMessage("message 17 of stream 'bank' was published by somebody else")
        runner = ProjectionRunner(ledger.projection, views, [source])
        async with running(runner) as task:
            with pytest.raises(ForeignMessage, match="published by somebody else"):
                await runner.wait(at(1), 20)
            with pytest.raises(ForeignMessage):
                await task
            assert (await runner.status()).reason == str(source.failure)

    @pytest.mark.parametrize(
        ("event", "error"),
        [
            (stored(12, PAID, "a", 1, amount=1), StreamHole),
            (stored(11, PAID, "a", 1, amount=1)._replace(incarnation="0000000000ff"), OtherIncarnation),
        ],
    )
    async def test_a_gap_or_another_history_stops_before_anything_is_applied(
        self, views: ViewsDatabase, event: Any, error: type[EvsyncError]
    ) -> None:
        """Arithmetic on positions and incarnations is checked with every batch."""
        events = bank_events(10, 1)
        source, ledger = ListSource("bank", events), Ledger()
        runner = ProjectionRunner(ledger.projection, views, [source])
        async with running(runner):
            await runner.wait(at(10), 10)
            source.append(event)
            with pytest.raises(error, match=r"othing was applied"):
                await runner.wait(at(11), 20)
            assert await views.read(ledger.rows) == fold_bank(events)

    async def test_a_log_of_another_incarnation_is_found_out_without_an_event(self, views: ViewsDatabase) -> None:
        """An emptier log under the same name would otherwise just look idle."""
        source, ledger = ListSource("bank", bank_events(10, 1)), Ledger()
        async with running(runner := ProjectionRunner(ledger.projection, views, [source])):
            await runner.wait(at(10), 10)
        source.incarnation = "0000000000ff"
        again = ProjectionRunner(ledger.projection, views, [source])
        async with running(again) as task:
            with pytest.raises(OtherIncarnation, match="is now incarnation 0000000000ff"):
                await task


class TestDatabase:
    """The database's own trouble, and read models that do not fit."""

    async def test_a_batch_and_its_checkpoint_are_stored_in_one_transaction(self, views: ViewsDatabase) -> None:
        """A checkpoint that cannot be stored leaves nothing of its batch, which is applied once when it can be."""
        source, ledger = ListSource("bank", bank_events(200, 8)), Ledger()
        runner = ProjectionRunner(ledger.projection, views, [source])
        await runner.open()
        stuck = "BEFORE INSERT ON evsync_checkpoints BEGIN SELECT RAISE(ABORT, 'stuck'); END"
        await views.write(lambda c: c.exec_driver_sql(f"CREATE TRIGGER stuck {stuck}"))
        assert await runner.step()
        assert await views.read(ledger.rows) == fold_bank([])
        await views.write(lambda c: c.exec_driver_sql("DROP TRIGGER stuck"))
        while await runner.step():
            pass
        assert await views.read(ledger.rows) == fold_bank(source.events)
        await runner.close()

    async def test_a_locked_database_is_waited_for(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is not the event's fault: no attempt counts, the reason is in the status, and work goes on by itself."""
        monkeypatch.setattr(database_module, "BUSY_S", 0.02)
        views = ViewsDatabase(f"sqlite:///{tmp_path}/views.db")
        source, ledger = ListSource("bank"), Ledger(retries=0)
        runner = ProjectionRunner(ledger.projection, views, [source])
        async with running(runner):
            source.add(PAID, "a", amount=1)
            await runner.wait(at(1), 10)
            other = sqlite3.connect(tmp_path / "views.db", isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            source.add(PAID, "a", amount=1)

            async def stuck() -> bool:
                status = await runner.status()
                return status.state == "retrying" and "database is locked" in str(status.logs[0].reason)

            await until(stuck)
            other.execute("ROLLBACK")
            other.close()
            await runner.wait(at(2), 10)
            assert await views.read(ledger.rows) == fold_bank(source.events)
            assert runner.halted is None
        await views.close()

    async def test_a_full_disk_is_waited_for(self, views: ViewsDatabase) -> None:
        """SQLite's limit of pages stands for the disk."""
        pages = [60]

        @sa.event.listens_for(views._write_engine, "connect")
        def limit(connection: sqlite3.Connection, _record: object) -> None:
            connection.execute(f"PRAGMA max_page_count = {pages[0]}")

        ledger = Ledger(retries=0)
        source = ListSource("bank", [stored(n, PAID, f"{n:0100}", 1, amount=1) for n in range(1, 3_001)])
        runner = ProjectionRunner(ledger.projection, views, [source], batch=100)
        async with running(runner):

            async def full() -> bool:
                return "full" in str((await runner.status()).logs[0].reason)

            await until(full)
            pages[0] = 100_000
            await runner.wait(at(3_000), 10)
            assert await views.read(ledger.rows) == fold_bank(source.events)

    async def test_a_query_can_change_nothing(self, views: ViewsDatabase) -> None:
        """Read models are written by projections alone."""
        ledger = Ledger()
        runner = ProjectionRunner(ledger.projection, views, [ListSource("bank")])
        await runner.open()
        with pytest.raises(sa.exc.OperationalError, match="readonly"):
            await views.read(lambda connection: connection.execute(sa.delete(ledger.accounts)))
        await runner.close()

    async def open(self, views: ViewsDatabase, projection: Projection[Any]) -> None:
        await ProjectionRunner(projection, views, [ListSource("bank")]).open()

    async def filled(self, views: ViewsDatabase) -> None:
        """Fill a ledger."""
        source = ListSource("bank", bank_events(50, 1))
        async with running(runner := ProjectionRunner(Ledger().projection, views, [source])):
            await runner.wait(at(50), 10)

    async def test_a_read_model_of_another_version_or_shape_is_refused_and_left_alone(
        self, views: ViewsDatabase
    ) -> None:
        """The error says what is there, what was expected, and how to begin anew."""
        await self.filled(views)
        with pytest.raises(
            ConfigurationError, match=r"made by its version 1, and this is version 2.*`evsync rebuild .* ledger`"
        ):
            await self.open(views, Ledger(version=2).projection)
        with pytest.raises(
            ConfigurationError, match=r"made with groups=16, and this is groups=8.*`evsync rebuild .* ledger`"
        ):
            await self.open(views, Ledger(groups=8).projection)
        wider = Ledger()
        wider.accounts.append_column(sa.Column("colour", sa.String))
        with pytest.raises(ConfigurationError, match=r"'accounts' in .* has no column colour"):
            await self.open(views, wider.projection)
        await views.write(lambda connection: connection.execute(sa.text("DROP TABLE daily")))
        with pytest.raises(ConfigurationError, match=r"'daily' is not in .* say that it has been filled"):
            await self.open(views, Ledger().projection)

    async def test_what_the_error_says_to_do_builds_the_model_anew(self, views: ViewsDatabase) -> None:
        """Whatever is wrong with what is there; the next start goes on with the new one."""
        await self.filled(views)
        await views.write(lambda connection: connection.execute(sa.text("DROP TABLE daily")))
        ledger = Ledger(version=2, groups=3)
        source = ListSource("bank", bank_events(50, 1))
        await Rebuild(ledger.projection, views, [source], grace_s=0.0).run()
        async with running(runner := ProjectionRunner(ledger.projection, views, [source])):
            await runner.wait(at(50), 10)
            assert await views.read(ledger.rows) == fold_bank(source.events)

    async def test_bookkeeping_of_a_newer_evsync_is_refused(self, views: ViewsDatabase) -> None:
        """A layout that is not known is not written to."""
        await self.filled(views)
        await views.write(lambda c: c.execute(sa.text("UPDATE evsync_views SET schema_version = 99")))
        with pytest.raises(EvsyncError, match="layout 99, and this evsync knows layouts up to 2"):
            await self.open(views, Ledger().projection)

    async def test_wrong_urls_and_combinations_are_refused_before_anything_is_touched(self, tmp_path: Path) -> None:
        """Each with what to write instead."""
        for url, says in (
            ("views.db", "is not the URL of a database"),
            ("mysql://x/y", "are kept in SQLite or PostgreSQL"),
            ("oracle://user:secret@host/db", r"oracle://user:\*\*\*@host/db: read models"),
            (f"sqlite:///{tmp_path}/missing/views.db", "the directory .*missing does not exist"),
        ):
            with pytest.raises(ConfigurationError, match=says):
                ViewsDatabase(url)
        bank = ListSource("bank")
        with pytest.raises(ConfigurationError, match="there is no database for them"):
            ProjectionRunner(Ledger().projection, None, [bank])
        views = ViewsDatabase("sqlite://")
        empty: Projection[Tables] = Projection("empty", model=SqlModel(sa.MetaData()))
        with pytest.raises(ConfigurationError, match="has no handlers"):
            await ProjectionRunner(empty, views, []).open()
        with pytest.raises(ConfigurationError, match=r"reads the logs of \['bank'\] and was given \['post'\]"):
            await ProjectionRunner(Ledger().projection, views, [ListSource("post")]).open()
        mine = sa.MetaData()
        sa.Table("evsync_leases", mine, sa.Column("id", sa.Integer, primary_key=True))
        with pytest.raises(ConfigurationError, match="'evsync_leases' is evsync's own"):
            ProjectionRunner(Projection("p", model=SqlModel(mine)), views, [])
        await views.close()

    async def test_a_file_that_is_no_database_is_refused_with_its_name(self, tmp_path: Path) -> None:
        """And it is not overwritten."""
        (tmp_path / "views.db").write_bytes(b"something else entirely, and long enough" * 100)
        views = ViewsDatabase(f"sqlite:///{tmp_path}/views.db")
        with pytest.raises(EvsyncError, match=r"'ledger' cannot be opened: .*views\.db: file is not a database"):
            await self.open(views, Ledger().projection)
        await views.close()
        assert (tmp_path / "views.db").read_bytes().startswith(b"something else")


class TestWorkers:
    """Several runners of one projection."""

    async def test_two_share_the_groups_and_the_one_that_is_left_has_them_all(self, tmp_path: Path) -> None:
        """What either shows can be waited for at both; a clean end hands over at once."""
        url = f"sqlite:///{tmp_path}/views.db"
        databases = [ViewsDatabase(url), ViewsDatabase(url)]
        source, ledger = ListSource("bank", bank_events(200, 1)), Ledger()
        first, second = (ProjectionRunner(ledger.projection, d, [source]) for d in databases)
        async with running(second):
            async with running(first):
                await asyncio.gather(first.wait(at(200), 10), second.wait(at(200), 10))

                async def divided() -> bool:
                    statuses = [await r.status() for r in (first, second)]
                    shown = [(s.state, sorted(w.groups for w in s.workers)) for s in statuses]
                    return len(first.groups) == len(second.groups) == 8 and shown == [("running", [8, 8])] * 2

                await until(divided)
                assert sorted(first.groups + second.groups) == list(range(16))
                before = first.groups, second.groups
                for n in range(60):
                    source.add(PAID, f"account-{n}", amount=1)
                await asyncio.gather(first.wait(at(260), 10), second.wait(at(260), 10))
                assert (first.groups, second.groups) == before
                counts = sa.text("SELECT sum(count), max(position), min(position) FROM evsync_checkpoints")
                assert tuple(await databases[0].read(lambda c: c.execute(counts).one()))[1:] == (260, 260)
            source.add(PAID, "account-1", amount=1)
            await second.wait(at(261), 10)

            async def alone() -> bool:
                return len(second.groups) == 16 and [w.groups for w in (await first.status()).workers] == [16]

            await until(alone)
        assert (await first.status()).workers == []
        assert await databases[0].read(ledger.rows) == fold_bank(source.events)
        await asyncio.gather(*(d.close() for d in databases))

    async def test_one_group_is_never_shared(self, tmp_path: Path) -> None:
        """With groups=1 the full order of each log is kept; the second worker stands by for the first."""
        databases = [ViewsDatabase(f"sqlite:///{tmp_path}/views.db") for _ in range(2)]
        source, ledger = ListSource("bank", bank_events(100, 1)), Ledger(groups=1)
        first, second = (ProjectionRunner(ledger.projection, d, [source], lease_s=1.2) for d in databases)
        async with running(second):
            async with running(first):
                await first.wait(at(100), 10)

                async def both_are_there() -> bool:
                    return len((await first.status()).workers) == 2

                await until(both_are_there)
                assert {len(first.groups), len(second.groups)} == {1, 0}
                source.add(PAID, "account-1", amount=1)
                await asyncio.gather(first.wait(at(101), 10), second.wait(at(101), 10))
            source.add(PAID, "account-1", amount=1)
            await second.wait(at(102), 10)
        assert await databases[0].read(ledger.rows) == fold_bank(source.events)
        await asyncio.gather(*(d.close() for d in databases))

    async def test_a_group_that_is_taken_over_far_behind_is_caught_up(self, views: ViewsDatabase) -> None:
        """A worker that waits at the end of a log goes back for it, and its other groups skip what they know."""
        source, ledger = ListSource("bank", bank_events(300, 1)), Ledger()
        gone = ProjectionRunner(ledger.projection, views, [source], lease_s=0.6)
        heir = ProjectionRunner(ledger.projection, views, [source], lease_s=0.6)
        await asyncio.gather(gone.open(), heir.open())
        assert await gone.balance()
        assert not await heir.balance()
        assert await gone.balance()
        assert await heir.balance()
        async with running(heir):
            with pytest.raises(NotVisible):  # only its own half: the other is far behind, held by who does nothing
                await heir.wait(at(300), 0.3)
            await heir.wait(at(300), 10)
            assert len(heir.groups) == 16
        assert await views.read(ledger.rows) == fold_bank(source.events)
        await gone.close()

    async def test_handlers_that_take_longer_than_a_lease_get_on_all_the_same(self, tmp_path: Path) -> None:
        """While they gather, nothing is locked, and the lease may run out: then the next attempt locks first."""
        databases = [ViewsDatabase(f"sqlite:///{tmp_path}/views.db") for _ in range(2)]
        source, ledger = ListSource("bank", bank_events(60, 1)), Ledger()

        def slow(e: Event[Paid], db: Tables) -> None:
            time.sleep(0.01)
            ledger.paid(e, db)

        ledger.projection.handlers._of[Paid] = slow
        first, second = (ProjectionRunner(ledger.projection, d, [source], lease_s=0.1) for d in databases)
        async with running(first), running(second):
            await asyncio.gather(first.wait(at(60), 20), second.wait(at(60), 20))
        assert await databases[0].read(ledger.rows) == fold_bank(source.events)
        await asyncio.gather(*(d.close() for d in databases))

    async def test_what_is_in_the_way_of_a_worker_shows_in_other_processes(self, tmp_path: Path) -> None:
        """It is written with the sign of life."""
        databases = [ViewsDatabase(f"sqlite:///{tmp_path}/views.db") for _ in range(2)]
        source, ledger = ListSource("bank"), Ledger()
        worker = ProjectionRunner(ledger.projection, databases[0], [source], lease_s=0.4)
        onlooker = ProjectionRunner(Ledger().projection, databases[1], [ListSource("bank")])
        await onlooker.open()
        async with running(worker):
            source.failure = OSError("no route to host")
            source.add(PAID, "a", amount=1)

            async def told() -> bool:
                status = await onlooker.status()
                return status.state == "retrying" and "no route to host" in str(status.reason)

            await until(told)
            source.failure = None

            async def mended() -> bool:
                status = await onlooker.status()
                return status.state == "running" and status.reason is None

            await until(mended)
        await onlooker.close()
        await asyncio.gather(*(d.close() for d in databases))

    async def test_a_projection_that_halts_halts_all_of_its_workers(self, tmp_path: Path) -> None:
        """Whoever takes the group over meets the same event; in the end nobody holds it, and everybody is told why."""
        databases = [ViewsDatabase(f"sqlite:///{tmp_path}/views.db") for _ in range(2)]
        source, ledger = ListSource("bank", bank_events(50, 1)), Ledger(bad={60}, retries=1)
        first, second = (ProjectionRunner(ledger.projection, d, [source], lease_s=0.4) for d in databases)
        async with running(first) as one, running(second) as two:

            async def divided() -> bool:
                return len(first.groups) == len(second.groups) == 8

            await until(divided)
            for n in range(51, 70):
                source.add(PAID, f"account-{n}", amount=1)
            await asyncio.wait([one, two])
            for runner in (first, second):
                assert isinstance(runner.halted, Halted)
                assert runner.halted.position == 60
                with pytest.raises(Halted):
                    await runner.wait(at(69), 10)
        await asyncio.gather(*(d.close() for d in databases))

    async def test_who_has_halted_takes_no_group_and_leaves_its_note(self, views: ViewsDatabase) -> None:
        """Whoever takes groups takes the note away: a sign of life that was due in that moment does neither."""
        source, ledger = ListSource("bank", bank_events(50, 1)), Ledger(bad={60}, retries=0)
        runner = ProjectionRunner(ledger.projection, views, [source])
        for n in range(51, 70):
            source.add(PAID, f"account-{n}", amount=1)
        with pytest.raises(Halted):
            await runner.run()
        assert not await runner.balance()
        assert (await ProjectionRunner(ledger.projection, views, [source]).status()).state == "halted"
        await runner.close()

    async def test_a_halt_is_told_where_its_note_could_not_be_left(
        self, views: ViewsDatabase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The leases that then run out by themselves are its own: nobody has taken over, and nobody need wait."""
        source, ledger = ListSource("bank", bank_events(50, 1)), Ledger(bad={51}, retries=0)
        source.add(PAID, "account-51", amount=1)
        runner = ProjectionRunner(ledger.projection, views, [source], lease_s=1.0)

        async def away(*_: Any) -> None:
            raise DatabaseAway("it has failed")

        monkeypatch.setattr(runner._session, "leave", away)
        with pytest.raises(Halted):
            await runner.run()
        with pytest.raises(Halted):
            await runner.wait(at(51), 5)
        await runner.close()

    async def test_groups_that_a_cancelled_balance_has_taken_are_given_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They stand under its name, and it never heard of it; nobody has to wait for their leases to run out."""
        databases = [ViewsDatabase(f"sqlite:///{tmp_path}/views.db") for _ in range(2)]
        first, second = (
            ProjectionRunner(Ledger().projection, d, [ListSource("bank")], lease_s=60.0) for d in databases
        )
        await first.open()
        deciding, cancelled = threading.Event(), threading.Event()

        def decide(*args: Any) -> Change:
            deciding.set()
            assert cancelled.wait(10)
            return shares.decide(*args)

        monkeypatch.setattr(leases, "decide", decide)
        balance = asyncio.create_task(first.balance())
        await asyncio.to_thread(deciding.wait, 10)
        balance.cancel()
        cancelled.set()
        with pytest.raises(asyncio.CancelledError):
            await balance
        await first.close()
        await second.open()
        assert await second.balance()
        assert len(second.groups) == 16
        await second.close()
        await asyncio.gather(*(d.close() for d in databases))

    async def test_a_lease_that_was_written_by_a_clock_set_back_since_is_not_believed(
        self, views: ViewsDatabase
    ) -> None:
        """It would else keep everybody out for as long as the clock was wrong."""
        runner = ProjectionRunner(Ledger().projection, views, [ListSource("bank")])
        await runner.open()
        now = "(julianday('now') - 2440587.5) * 86400.0"
        for ahead_s, taken in ((30, False), (3_600, True)):
            lease = f"UPDATE evsync_leases SET owner = 'somebody', expires = {now} + {ahead_s}"
            await views.write(lambda c, lease=lease: c.exec_driver_sql(lease))
            assert await runner.balance() is taken
        await runner.close()

    async def test_a_worker_that_was_taken_over_from_applies_nothing_more(self, views: ViewsDatabase) -> None:
        """Its token is not the stored one, so its transaction is rolled back; it comes back where the other is."""
        source, ledger = ListSource("bank", bank_events(100, 1)), Ledger()
        slow = ProjectionRunner(ledger.projection, views, [source], lease_s=1e-6)
        quick = ProjectionRunner(ledger.projection, views, [source])
        await slow.open()
        assert await slow.step(limit=30)
        await asyncio.sleep(0.002)  # for the lease, whose clock has milliseconds
        while await quick.step(limit=50):
            pass
        before = await views.read(ledger.rows)
        assert await slow.step(limit=30)
        assert not slow.groups
        assert not await slow.step(limit=30)
        assert quick.groups
        assert not slow.groups
        assert await views.read(ledger.rows) == before == fold_bank(source.events)
        await asyncio.gather(slow.close(), quick.close())

    async def test_a_worker_is_out_as_soon_as_another_has_taken_its_groups(self, views: ViewsDatabase) -> None:
        """Also where that one has not applied anything yet: then the checkpoints are still those of both."""
        source, ledger = ListSource("bank", bank_events(100, 1)), Ledger()
        slow = ProjectionRunner(ledger.projection, views, [source], lease_s=1e-6)
        quick = ProjectionRunner(ledger.projection, views, [source])
        await slow.open()
        assert await slow.step(limit=30)
        await asyncio.sleep(0.002)  # for the lease, whose clock has milliseconds
        await quick.open()
        assert await quick.balance()
        before = await views.read(ledger.rows)
        await slow.step(limit=30)
        assert not slow.groups
        assert await views.read(ledger.rows) == before
        await asyncio.gather(slow.close(), quick.close())

    async def test_a_cancelled_run_ends_its_transaction_first(self, views: ViewsDatabase) -> None:
        """Whoever cancels finds the batch applied whole, and the groups free."""
        source, ledger = ListSource("bank", bank_events(50, 1)), Ledger()
        entered, go_on = threading.Event(), threading.Event()
        view: Projection[Tables] = Projection("ledger", model=SqlModel(ledger.metadata))

        @view.on(Paid)
        def paid(e: Event[Paid], db: Tables) -> None:
            ledger.paid(e, db)
            entered.set()
            assert go_on.wait(10)

        runner = ProjectionRunner(view, views, [source])
        async with running(runner) as task:
            await asyncio.to_thread(entered.wait, 10)
            task.cancel()
            await asyncio.sleep(0)
            assert not task.done()
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task
        heir = ProjectionRunner(view, views, [source])
        await heir.open()
        assert not await heir.step()  # it could take the groups, and there was nothing left to do
        status: FollowerStatus = await heir.status()
        assert (status.state, status.logs[0].position) == ("running", 50)
        await heir.close()

    async def test_many_that_begin_at_once_make_the_tables_once(self, tmp_path: Path) -> None:
        """Creating what is missing is safe beside others who do the same."""
        databases = [ViewsDatabase(f"sqlite:///{tmp_path}/views.db") for _ in range(8)]
        source, ledger = ListSource("bank", bank_events(10, 1)), Ledger()
        runners = [ProjectionRunner(ledger.projection, d, [source]) for d in databases]
        await asyncio.gather(*(r.open() for r in runners))
        assert await runners[3].step()
        assert await databases[5].read(ledger.rows) == fold_bank(source.events)
        for runner in runners:
            await runner.close()
        await asyncio.gather(*(d.close() for d in databases))
