"""A shard joins a service while others follow it: they find its log, and read it in the order of the slots' moves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from evsync import NamedAggregate, Position, Reaction, Service, event
from evsync.control import SLOT_CLOSED, SLOT_OPENED, SLOTS_STREAM
from evsync.errors import EvsyncError
from evsync.ports import LogReader
from evsync.projections import Event, ProjectionRunner, ViewsDatabase
from evsync.projections.rebuilding import rebuild
from evsync.projections.rebuilding.rebuild import Rebuild
from evsync.records import StoredEvent
from evsync.sharding.slots import slot_of
from tests.integration.test_projection_reactions import AnswerStore, answering, runner_of
from tests.integration.test_projection_reactions import running as answering_now
from tests.integration.test_projection_runner import PAID, at, running, until
from tests.integration.test_shards import SUMS, Added, Counted, counts, move_all, urls, view
from tests.projection_logs import Ledger, ListReader, ListSource, bank_events, fold_bank, stored
from tests.relaying import eventually

pytestmark = pytest.mark.anyio


class Shards(ListSource):
    """A service whose second log, of shard `b`, is there when it is told to be. Implements LogSource."""

    def __init__(self, events: Sequence[StoredEvent]) -> None:
        super().__init__("bank", events)
        self.b = ListSource("bank")
        self.b.incarnation = self.incarnation = events[0].incarnation
        self.is_there = False
        self.looks = 0

    async def readers(self) -> Sequence[LogReader]:
        self.looks += 1
        second = ListReader(self.b)
        second.log = "bank.b"
        return [ListReader(self), *([second] if self.is_there else [])]

    def move(self, stream: str) -> None:
        """The stream's slot closes in the first log, and opens in the other."""
        end, slot = len(self.events) + 1, slot_of(stream)
        closed = stored(end, f"bank.{SLOT_CLOSED}", SLOTS_STREAM, end, slot=slot, to="b", epoch=2)
        self.append(closed._replace(slot=slot))
        begin = len(self.b.events) + 1
        where = {"from": "bank.main", "incarnation": self.incarnation, "position": end}
        opened = stored(begin, f"bank.{SLOT_OPENED}", SLOTS_STREAM, begin, epoch=2, **where)
        self.b.append(opened._replace(slot=slot))

    def pay(self, stream: str, version: int) -> None:
        """A payment in the second log."""
        self.b.append(stored(len(self.b.events) + 1, PAID, stream, version, amount=1))

    @property
    def history(self) -> list[StoredEvent]:
        """Both logs, as they depend on each other."""
        return [*self.events, *self.b.events]


def moved_bank() -> Shards:
    """One stream has moved to the second shard and was paid into there."""
    source = Shards(bank_events(200, 1))
    version = max(e.version for e in source.events if e.stream == "account-1")
    source.move("account-1")
    source.pay("account-1", version + 1)
    return source


class TestProjections:
    """A projection's runner."""

    async def test_a_log_that_can_be_read_long_after_it_was_named_is_found(self, tmp_path: Path) -> None:
        """Whoever waits for it waits; nothing is asked for all the time; heads and lag show it too."""
        views = ViewsDatabase(f"sqlite:///{tmp_path}/views.db")
        source, ledger = moved_bank(), Ledger()
        async with running(runner := ProjectionRunner(ledger.projection, views, [source])):
            await runner.wait(at(201), 10)
            assert [log.log for log in (await runner.status()).logs] == ["bank.main"]
            waiting = asyncio.create_task(runner.wait(at(2, "bank.b"), 10))
            looks = source.looks
            await asyncio.sleep(0.6)
            assert not waiting.done()
            assert source.looks - looks <= 4
            source.is_there = True
            await waiting
            assert await views.read(ledger.rows) == fold_bank(source.history)
            status = await runner.status()
            assert {log.log: (log.position, log.head) for log in status.logs} == {
                "bank.main": (201, 201),
                "bank.b": (2, 2),
            }
        await views.close()

    async def test_a_log_that_waits_for_one_nobody_has_found_yet_does_not_ask_for_it_all_the_time(
        self, tmp_path: Path
    ) -> None:
        """The barrier is looked at often, the source is not; nor is the log behind the barrier read again and again."""
        views = ViewsDatabase(f"sqlite:///{tmp_path}/views.db")
        shards, ledger = moved_bank(), Ledger()
        shards.is_there = True
        first_is_there = False
        reads = 0

        class Second(ListReader):
            async def read(self, after: int, limit: int, timeout_s: float) -> list[StoredEvent]:
                nonlocal reads
                reads += 1
                return await super().read(after, limit, timeout_s)

        class Hidden(Shards):
            async def readers(self) -> Sequence[LogReader]:
                shards.looks += 1
                second = Second(shards.b)
                second.log = "bank.b"
                return [second, *([ListReader(shards)] if first_is_there else [])]

        async with running(runner := ProjectionRunner(ledger.projection, views, [Hidden(shards.events)])):

            async def blocked() -> bool:
                return "waits until log 'bank.main'" in str((await runner.status()).logs[0].reason)

            await until(blocked)
            before, shards.looks = reads, 0
            await asyncio.sleep(0.6)
            assert (reads, shards.looks <= 4) == (before, True)
            first_is_there = True
            await asyncio.gather(runner.wait(at(2, "bank.b"), 10), runner.wait(at(201), 10))
            assert await views.read(ledger.rows) == fold_bank(shards.history)
        await views.close()

    async def test_groups_that_come_and_go_while_a_log_joins_are_applied_once(self, tmp_path: Path) -> None:
        """Two workers, one of which finds the log later than the other and has other groups by then."""
        databases = [ViewsDatabase(f"sqlite:///{tmp_path}/views.db") for _ in range(2)]
        source, late, ledger = moved_bank(), moved_bank(), Ledger()
        late.events, late.b = source.events, source.b
        source.is_there = True
        first, second = (
            ProjectionRunner(ledger.projection, d, [s], lease_s=0.6)
            for d, s in zip(databases, (source, late), strict=True)
        )
        async with running(second):
            async with running(first):

                async def divided() -> bool:
                    return len(first.groups) == len(second.groups) == 8

                await until(divided)
                for n in range(20):
                    source.b.append(stored(n + 3, PAID, f"new-{n}", 1, amount=1))
                await first.wait(at(201), 10)
            late.is_there = True
            await second.wait(at(22, "bank.b"), 10)
            assert await databases[0].read(ledger.rows) == fold_bank(source.history)
        await asyncio.gather(*(d.close() for d in databases))

    async def test_a_rebuild_during_which_a_log_joins_ends_with_all_of_it(self, tmp_path: Path) -> None:
        """It knows where the new log ends."""
        views = ViewsDatabase(f"sqlite:///{tmp_path}/views.db")
        source, ledger = moved_bank(), Ledger()
        async with running(runner := ProjectionRunner(ledger.projection, views, [source], lease_s=0.6)):
            await runner.wait(at(201), 10)

            def join(limit: int) -> int:
                source.is_there = True
                return limit

            source.cut = join  # the shadow has found its logs, and reads
            await Rebuild(ledger.projection, views, [source], grace_s=0.0, batch=20).run()
            await runner.wait(at(2, "bank.b"), 10)
            assert await views.read(ledger.rows) == fold_bank(source.history)
        await views.close()

    async def test_a_rebuild_does_not_leave_out_a_log_that_the_live_model_shows(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It waits until it has found it too; if that does not happen, it says so, and the live model stays."""
        monkeypatch.setattr(rebuild, "_FIND_S", 0.3)
        views = ViewsDatabase(f"sqlite:///{tmp_path}/views.db")
        source, less, ledger = moved_bank(), moved_bank(), Ledger()
        source.is_there = True
        async with running(runner := ProjectionRunner(ledger.projection, views, [source], lease_s=0.6)):
            await runner.wait(at(2, "bank.b"), 10)
            with pytest.raises(EvsyncError, match=r"shows events of bank\.b, and there is no such log"):
                await Rebuild(ledger.projection, views, [less], grace_s=0.0).run()
            assert await views.read(ledger.rows) == fold_bank(source.history)
            less.is_there = True
            await Rebuild(ledger.projection, views, [less], grace_s=0.0).run()
            assert await views.read(ledger.rows) == fold_bank(source.history)
        await views.close()


class TestReactions:
    """A reaction's runner."""

    @pytest.mark.parametrize("since", ["beginning", "now"])
    async def test_a_log_that_joins_is_answered_from_its_beginning(self, since: str) -> None:
        """Behind the barrier, each event once; "now" was settled before it was there."""
        source, store = Shards([stored(1, PAID, "account-1", 1, amount=1)]), AnswerStore()
        async with answering_now(runner := runner_of(answering(since=since), store, source)):
            await eventually(store.at(1), "the first log")
            source.move("account-1")
            source.pay("account-1", 2)

            async def passed() -> bool:
                return (await runner.status()).logs[0].position == 2

            await eventually(passed, "the slot that left")
            source.is_there = True
            await eventually(lambda: len(store.stored) == 2, "the second log")
            heads = {log.log: log.head for log in (await runner.status()).logs}
        assert store.answers == ([1, 2] if since == "beginning" else [2])
        assert heads == {"bank.main": 2, "bank.b": 2}

    async def test_now_is_settled_for_all_logs_that_are_there(self) -> None:
        """Nothing that happened before is answered, in whichever shard."""
        source, store = moved_bank(), AnswerStore()
        source.is_there = True
        async with answering_now(runner_of(answering(since="now"), store, source)):
            await eventually(lambda: len(store.stored) == 2, "now")
            source.pay("account-2", 1)
            await eventually(lambda: store.stored["bank.b"].position == 3, "what came later")
        assert store.answers == [3]


class Thanks(NamedAggregate):
    """What a reaction answers."""

    @event("Sent")
    def __init__(self, id: str) -> None:
        pass


async def test_services_that_follow_in_the_same_process_need_not_be_opened_again(tmp_path: Path) -> None:
    """Real stores: a service gets a second shard, all its slots move there, and everything is seen and answered."""
    counting = counts()
    thanks = Reaction("thanks", since="beginning")

    @thanks.on(Added)
    async def thank(e: Event[Added], service: Any) -> Thanks:
        return Thanks(id=f"{e.stream_id}-{e.version}")

    desk = Service("desk", aggregates=[Thanks], projections=[view()], reactions=[thanks])

    async def count() -> list[Position]:
        for id in ids:
            await counting.execute(Counted, id, Counted.add, 1)
        return [store.identity.at(await store.head()) for store in counting.stores.values()]

    ids = [f"s{n}" for n in range(20)]
    options: Any = {"views": f"sqlite:///{tmp_path}/counts-views.db", "run": "none"}
    async with AsyncExitStack() as stack:
        async with counting.open(store=urls(tmp_path, "main"), **options):
            await stack.enter_async_context(
                desk.open(store="memory://", views=f"sqlite:///{tmp_path}/views.db", sources={"counts": counting})
            )
            for id in ids:
                await counting.save(Counted(id=id))
            for position in await count():
                await desk.wait(position)
        await stack.enter_async_context(counting.open(store=urls(tmp_path, "main", "b"), **options))
        await move_all(counting, ("b",) * 256)
        for position in await count():
            await desk.wait(position)
        rows = (await desk.query(sa.select(SUMS.c.id, SUMS.c.n, SUMS.c.late))).all()
        assert sorted(map(tuple, rows)) == sorted((id, 2, 0) for id in ids)

        async def answered() -> bool:
            return [e.stream_id async for e in desk.log() if e.stream_id.endswith(("-2", "-3"))] == [
                f"{id}-{version}" for version in (2, 3) for id in ids
            ]

        await eventually(answered, "an answer to each event, once and in order")
