"""Restores: the log is what it was, up to where it was wanted; followers that are not ahead go on, others stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from evsync import (
    Contract,
    Event,
    NamedAggregate,
    Projection,
    Reaction,
    Service,
    SqlModel,
    Tables,
    event,
)
from evsync.archive.backup import Backups
from evsync.archive.copies import Archive
from evsync.archive.restore import Part, Until, restore_shards
from evsync.archive.targets import open_target
from evsync.archive.verification import verify_copy
from evsync.control import is_control
from evsync.errors import ArchiveDamaged, ArchiveIncomplete, ConfigurationError, OtherIncarnation
from evsync.inspection import Inspectable
from evsync.opening import open_store, restore_store
from evsync.operations.recovery import digest_of, drill, last_drill, restore_log
from evsync.operations.resets import reset_follower
from evsync.operations.store_check import check_store, reader
from evsync.ports import BackupTarget
from evsync.projections.running.continuity import check_batch
from evsync.records import StoredEvent
from evsync.restores import Restored, restored_event
from evsync.stores.memory import MemoryStore
from tests.archiving import IDENTITY, START_US, MemoryTarget, archived, copy_of, fill, read_all
from tests.restored_memory import MemoryRestore, RestoredMemoryStore

pytestmark = pytest.mark.anyio


async def restore_to_memory(until: Until, *targets: BackupTarget) -> MemoryStore:
    """The store that a restore gives."""
    into = MemoryRestore()
    await restore_shards({"main": Part(await Archive.find(targets, IDENTITY.name), into)}, until=until)
    assert into.store is not None
    return into.store


def whole(events: Sequence[StoredEvent], position: int) -> int:
    """The last end of a commit at or before a position."""
    return max((e.position for e in events if e.position <= position and e.remaining == 0), default=0)


@settings(max_examples=40, deadline=None, database=None)
@given(data=st.data())
async def test_a_log_is_restored_up_to_a_position(data: st.DataObject) -> None:
    """To the last whole commit at or before it, and goes on with an event that says so, as another incarnation."""
    target = MemoryTarget()
    _, events = await archived(60, target)
    wanted = data.draw(st.integers(0, len(events)))
    store = await restore_to_memory(Until(position=wanted), target)
    last = whole(events, wanted)
    *log, restored = await read_all(store)
    assert log == events[:last]
    said = Restored.of(restored)
    assert (said.position, said.parent) == (last, IDENTITY.incarnation if last else "")
    assert [tuple(a) for a in store.identity.ancestry] == [(IDENTITY.incarnation, last)]
    assert restored.incarnation == said.incarnation == store.identity.incarnation != IDENTITY.incarnation


def test_a_batch_passes_a_restore_of_its_own_history_only() -> None:
    """Who has applied the event before, in the incarnation that was restored, goes on; who comes from another stops."""
    identity = IDENTITY.restored(3, "bbbbbbbbbbbb")
    restore = restored_event(identity, 3, 1, START_US)
    check_batch(IDENTITY.name, 3, IDENTITY.incarnation, [restore])
    with pytest.raises(OtherIncarnation):
        check_batch(IDENTITY.name, 3, "cccccccccccc", [restore])


@settings(max_examples=30, deadline=None, database=None)
@given(offset=st.integers(-5, 80_000))
async def test_a_log_is_restored_up_to_a_time(offset: int) -> None:
    """To the last whole commit before the first event that is later: a state that the log was in."""
    target = MemoryTarget()
    _, events = await archived(60, target)
    time_us = START_US + offset
    later = next((e.position for e in events if e.time_us > time_us), len(events) + 1)
    end = whole(events, later - 1)
    if end == 0:
        with pytest.raises(ArchiveIncomplete, match="no whole commit at or before"):
            await restore_to_memory(Until(time_us=time_us), target)
        return
    assert (await read_all(await restore_to_memory(Until(time_us=time_us), target)))[:-1] == events[:end]


async def test_a_time_before_the_first_event_is_refused() -> None:
    """It would make an empty store of a slip; what is said names the log, the time, and when the log begins."""
    target = MemoryTarget()
    await archived(20, target)
    with pytest.raises(ArchiveIncomplete) as refused:
        await restore_to_memory(Until(time_us=START_US - 1), target)
    assert str(refused.value) == (
        "log bank.main has no whole commit at or before 2023-11-14T22:13:19.999999+00:00: its first event is of "
        "2023-11-14T22:13:20+00:00. Nothing was restored: name a later time"
    )


async def test_a_position_beyond_the_archive_is_refused() -> None:
    """Rather than restored to something else."""
    target = MemoryTarget()
    _, events = await archived(60, target)
    with pytest.raises(ArchiveIncomplete, match=f"position {len(events) + 1} is not in the archive"):
        await restore_to_memory(Until(position=len(events) + 1), target)
    with pytest.raises(ArchiveIncomplete, match=r"no archive of log bank\.main"):
        await restore_to_memory(Until(), MemoryTarget("empty"))


@pytest.mark.parametrize("content", [b"", b"EVSYNC"])
async def test_a_copy_whose_last_segment_says_nothing_does_not_keep_a_whole_copy_back(content: bytes) -> None:
    """Emptied or cut in its header, it cannot say where it ended: the whole copy is restored, and the damage told."""
    one, two = MemoryTarget("memory://one"), MemoryTarget("memory://two")
    _, events = await archived(40, one, two)
    for name in await two.list(""):
        await two.put(name, content, replace=True)
    for targets in ((one, two), (two, one)):
        into = MemoryRestore()
        found = await Archive.find(targets, IDENTITY.name, IDENTITY.incarnation)
        report = (await restore_shards({"main": Part(found, into)}, until=Until()))["main"]
        assert report.position == len(events)
        assert any(two.url in told for told in report.worked_around)


async def test_a_segment_that_nobody_else_has_is_still_missed() -> None:
    """Its name says that there were positions which no other copy holds: restoring less would be silent loss."""
    one, two = MemoryTarget("memory://one"), MemoryTarget("memory://two")
    store, _ = await archived(40, one, two)
    await fill(store, 20, seed=1)
    await Backups(store, [two], copies=1).run()
    for name in await two.list(""):
        if name not in await one.list(""):
            await two.put(name, b"", replace=True)
    with pytest.raises(ArchiveDamaged):
        await restore_to_memory(Until(), one, two)


async def test_restores_of_restores_remember_where_they_come_from() -> None:
    """At every position one incarnation is right, and a restored log is archived and restored like any other."""
    target = MemoryTarget()
    store, events = await archived(40, target)
    for at in (30, 50, 20):
        store = await restore_to_memory(Until(position=at), target)
        await fill(store, 40, at)
        assert (await Backups(store, [target], copies=1, clock=lambda at=at: 2e9 + 100 / at).run()).ok  # type: ignore[misc]
        log = await read_all(store)
        assert [e.incarnation for e in log] == [store.identity.incarnation_at(e.position) for e in log]
        again = MemoryRestore()
        archive = await Archive.find([target], IDENTITY.name, store.identity.incarnation)
        await restore_shards({"main": Part(archive, again)}, until=Until())
        assert again.store is not None
        assert (await read_all(again.store))[:-1] == log
        assert not (await verify_copy(archive.copies[0])).problems
        target.kept = {n: c for n, c in target.kept.items() if store.identity.incarnation in n}
    assert len(store.identity.ancestry) == 3
    assert [a.last for a in store.identity.ancestry] == sorted(a.last for a in store.identity.ancestry)
    assert copy_of(target).log == IDENTITY.name
    assert events


KINDS = ["sqlite", "postgres", "nats"]


@pytest.fixture
def urls(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """Where a store of each kind can be made."""
    schema = f"{tmp_path.name}_{id(tmp_path)}"
    return {
        "sqlite": f"sqlite:///{tmp_path}/restored.db",
        "postgres": f"{request.getfixturevalue('postgres_url')}&schema={schema}",
        "nats": f"{request.getfixturevalue('nats_server').url}/?stream=s{id(tmp_path)}",
    }


@pytest.mark.parametrize("kind", KINDS)
async def test_a_log_is_restored_into_any_kind_of_store(kind: str, urls: dict[str, str], tmp_path: Path) -> None:
    """With the digest of the original's prefix; it is not touched by a second restore."""
    target = open_target(str(tmp_path / "backups"))
    shard = f"of{kind}{id(tmp_path)}"
    original = await open_store(f"sqlite:///{tmp_path}/bank.db", service="bank", shard=shard)
    events = await fill(original, 400)
    assert (await Backups(original, [target], copies=1, segment_events=90).run()).ok
    archive = await Archive.find([target], f"bank.{shard}")
    report = await restore_log(archive, urls[kind], Until())
    restored = await open_store(urls[kind], service="bank", shard=shard, create=False)
    assert report.position == len(events)
    assert await digest_of(restored, len(events)) == await digest_of(original, len(events))
    assert (await read_all(restored))[: len(events)] == events
    assert isinstance(restored, Inspectable)
    assert (await check_store(restored, reader(None))).problems == []
    with pytest.raises(ConfigurationError, match="already"):
        await restore_store(urls[kind], service="bank", shard=shard, slots=256)
    await restored.close()
    await original.close()


# ---- those who follow


class Account(NamedAggregate):
    """An account."""

    @event("Opened")
    def __init__(self, id: str) -> None:
        self.balance = 0

    @event("Paid")
    def pay(self, amount: int) -> None:
        """Money comes in."""
        self.balance += amount


class Paid(Contract, type="bank.Account.Paid"):
    """What the others need of it."""

    amount: int


class Letter(NamedAggregate):
    """What the reaction writes."""

    @event("Written")
    def __init__(self, id: str, amount: int) -> None:
        self.amount = amount


class Anything(Contract, type="bank.*"):
    """Every event of the service."""


def a_bank() -> Service:
    """The service whose log is restored."""
    return Service("bank", aggregates=[Account])


class Post:
    """A service that follows the bank: a ledger, and a letter for each payment."""

    def __init__(self, directory: Path, bank: Service, *, since: str = "beginning") -> None:
        tables = sa.MetaData()
        self.ledger = sa.Table(
            "ledger", tables, sa.Column("id", sa.String, primary_key=True), sa.Column("paid", sa.Integer)
        )
        self.types: list[str] = []
        self.view = Projection("ledger", model=SqlModel(tables))
        self.writer = Reaction("writer", since=since)  # type: ignore[arg-type]

        @self.view.on(Paid)
        def paid(e: Event[Paid], db: Tables) -> None:
            db.increment(self.ledger, id=e.stream_id, paid=e.data.amount)

        @self.view.on(Anything)
        def seen(e: Event[Anything], db: Tables) -> None:
            self.types.append(e.type)

        @self.writer.on(Paid)
        async def write(e: Event[Paid], post: Service) -> Letter:
            return Letter(f"letter {e.position.number} {e.position.incarnation}", e.data.amount)

        self.service = Service("post", aggregates=[Letter], projections=[self.view], reactions=[self.writer])
        self.store = f"sqlite:///{directory}/post.db"
        self.bank = bank

    @asynccontextmanager
    async def open(self, run: str = "all") -> AsyncIterator[Service]:
        """Follow the bank."""
        async with self.service.open(store=self.store, sources={"bank": self.bank}, run=run):
            yield self.service

    async def total(self) -> int:
        """What the ledger says."""
        rows = await self.service.query(sa.select(sa.func.sum(self.ledger.c.paid)))
        return rows.scalar_one() or 0

    async def letters(self) -> int:
        """How many were written."""
        return sum([e.type == "post.Letter.Written" async for e in self.service.log()])

    async def until(self, letters: int) -> None:
        """So many letters are written."""
        async with asyncio.timeout(20):
            while await self.letters() < letters:
                await asyncio.sleep(0.01)

    async def halted(self, name: str) -> BaseException:
        """What stopped a part."""
        part = {**self.service.runtime.projections, **self.service.runtime.reactions}[name]
        async with asyncio.timeout(20):
            while part.halted is None:
                await asyncio.sleep(0.01)
        return part.halted


async def pay(bank: Service, *amounts: int) -> None:
    """Each in a commit of its own."""
    for amount in amounts:
        account = Account(f"account {amount}")
        account.pay(amount)
        await bank.save(account)


async def restored_bank(bank: Service, directory: Path, until: Until) -> str:
    """Archive the bank's open log, and restore it: the URL of the new store."""
    target = open_target(str(directory / "backups"))
    assert bank.store is not None
    assert (await Backups(bank.store, [target], copies=1).run()).ok
    url = f"sqlite:///{directory}/restored.db"
    await restore_log(await Archive.find([target], "bank.main"), url, until)
    return url


async def test_followers_that_are_not_ahead_go_on_by_themselves(tmp_path: Path) -> None:
    """They pass the restore without anybody's help; its event reaches no handler."""
    bank = a_bank()
    post = Post(tmp_path, bank)
    async with bank.open(store=f"sqlite:///{tmp_path}/bank.db"):
        await pay(bank, 1, 2, 3)
        async with post.open():
            await post.until(3)
            position = await bank.runtime.store.head()
        await pay(bank, 4, 5)
        url = await restored_bank(bank, tmp_path, Until(position=position + 2))
    async with bank.open(store=url), post.open():
        # At once: before the projection has come to the restore, and for a position from before it.
        identity = bank.runtime.store.identity
        await post.service.wait(identity.at(await bank.runtime.store.head()))
        await post.service.wait(identity.at(position))
        assert identity.at(position).incarnation != identity.incarnation
        await post.until(4)
        await pay(bank, 60)
        last = bank.runtime.store.identity.at(await bank.runtime.store.head())
        await post.service.wait(last)
        await post.until(5)
        assert await post.total() == 1 + 2 + 3 + 4 + 60
        assert await post.letters() == 5
        assert not any(is_control(t) for t in post.types)


@pytest.mark.parametrize("grown", [False, True])
async def test_followers_that_are_ahead_stop_and_a_command_mends_it(tmp_path: Path, grown: bool) -> None:
    """With both positions in the error, also where the log has grown beyond theirs again; and after the reset the read
    model is a fold over the restored log."""
    bank = a_bank()
    post = Post(tmp_path, bank)
    async with bank.open(store=f"sqlite:///{tmp_path}/bank.db"):
        await pay(bank, 1, 2, 3)
        async with post.open():
            await post.until(3)
            await post.service.wait(bank.runtime.store.identity.at(6))
        url = await restored_bank(bank, tmp_path, Until(position=4))
    async with bank.open(store=url):
        await pay(bank, *([60, 70, 80] if grown else [60]))
        async with post.open():
            for name in ("ledger", "writer"):
                error = await post.halted(name)
                assert isinstance(error, OtherIncarnation)
                assert (error.values["position"], error.values["other_position"]) == (6, 4), error
                for words in ("position 6", "position 4", "evsync reset module:service"):
                    assert words in str(error)
        async with post.service.inspect(store=post.store, sources={"bank": bank}, followers=True):
            for name in ("ledger", "writer"):
                assert await reset_follower(post.service.runtime, name)
        async with post.open():
            await post.until(3 + (3 if grown else 1))
            await post.service.wait(bank.runtime.store.identity.at(await bank.runtime.store.head()))
            assert await post.total() == 1 + 2 + (60 + 70 + 80 if grown else 60)


async def test_a_restore_brings_the_checkpoints_of_reactions_back(tmp_path: Path) -> None:
    """At any position the reaction has answered what the restored log says that it has: nothing twice, nothing not."""
    bank = a_bank()
    async with bank.open(store=f"sqlite:///{tmp_path}/bank.db"):
        await pay(bank, *range(1, 7))
        post = Post(tmp_path, bank)
        async with post.open():
            await post.until(6)
            target = open_target(str(tmp_path / "backups"))
            store = post.service.runtime.store
            assert (await Backups(store, [target], copies=1, followers=["writer"]).run()).ok
        archive = await Archive.find([target], "post.main")
        for position in (0, 3, 6):
            post.store = f"sqlite:///{tmp_path}/post{position}.db"
            report = await restore_log(archive, post.store, Until(position=position))
            assert report.checkpoints == bool(position)
            async with post.open():
                await post.until(6)
                amounts = [e.data["amount"] async for e in post.service.log() if e.type == "post.Letter.Written"]
                assert amounts == [1, 2, 3, 4, 5, 6]


async def test_a_reaction_since_now_is_restored_where_it_began(tmp_path: Path) -> None:
    """Its first checkpoint came without an event: the segment holds it."""
    bank = a_bank()
    async with bank.open(store=f"sqlite:///{tmp_path}/bank.db"):
        await pay(bank, 1, 2)
        post = Post(tmp_path, bank, since="now")
        async with post.open():
            async with asyncio.timeout(20):
                while not await post.service.runtime.store.checkpoints("writer"):
                    await asyncio.sleep(0.01)
            await pay(bank, 3)
            await post.until(1)
            target = open_target(str(tmp_path / "backups"))
            backups = Backups(post.service.runtime.store, [target], copies=1, followers=["writer"])
            assert (await backups.run()).ok
        post.store = f"sqlite:///{tmp_path}/post2.db"
        await restore_log(await Archive.find([target], "post.main"), post.store, Until())
        await pay(bank, 4)
        async with post.open():
            await post.until(2)
            amounts = [e.data["amount"] async for e in post.service.log() if e.type == "post.Letter.Written"]
            assert amounts == [3, 4]


async def test_a_drill_measures_and_is_remembered(tmp_path: Path) -> None:
    """How much would be lost and how long a restore takes; a log that differs from its archive is a difference."""
    bank, target = a_bank(), MemoryTarget()
    async with bank.open(store=f"sqlite:///{tmp_path}/bank.db"):
        await pay(bank, *range(1, 20))
        store = bank.runtime.store
        assert (await Backups(store, [target], copies=1).run()).ok
        await pay(bank, 99)
        (report,) = await drill(bank.stores, [target], bank.codec)
        assert (report.ok, report.position, report.head, report.events_behind) == (True, 38, 40, 2)
        assert report.aggregates == 19
        assert report.digest == await digest_of(store, 38)
        assert 0 <= report.seconds_behind < 60
        record = await last_drill(target, "bank.main")
        assert record is not None
        assert (record["position"], record["ok"]) == (38, True)
        assert datetime.fromisoformat(record["at"]) > datetime.now(UTC) - timedelta(minutes=1)
        forged = RestoredMemoryStore(store.identity, [e._replace(time_us=e.time_us + 1) for e in await read_all(store)])
        assert not (await drill({"main": forged}, [target], bank.codec))[0].ok
