"""The shards of a service, archived each by itself and restored together."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import timedelta

import psycopg
import pytest
from psycopg import sql

from evsync import BackupPolicy, Service
from evsync.archive.backup import Backups
from evsync.archive.marking import ToMark, make_mark
from evsync.archive.marks import find_mark
from evsync.archive.restore import RestoreReport, Until
from evsync.archive.targets import open_target
from evsync.errors import ArchiveIncomplete, ConfigurationError, OtherIncarnation, StoreUnavailable, WrongStore
from evsync.operations.recovery import archives_of, digest_of, restore_logs
from evsync.operations.resets import reset_follower
from evsync.operations.store_check import check_store, reader
from evsync.operations.verification import verify
from evsync.ports import BackupTarget, Store
from evsync.records import History, SlotState, StoredEvent
from evsync.sharding import HashRing, Router
from evsync.sharding.handover import BEGINNING, Step, bring_about
from evsync.shards import open_home, open_shards
from evsync.stores.postgres.restore import PostgresRestore
from tests.archiving import MemoryTarget
from tests.integration.test_shards import Counted, check_order, counts, home, move_all
from tests.integration.test_shards_mixed import Place, all_in, place
from tests.relaying import eventually

pytestmark = pytest.mark.anyio
__all__ = ["place"]
POLICY = BackupPolicy(targets=["memory"], loss=0.01)
IDS = [f"stream-{n}" for n in range(24)]


async def backup(stores: Mapping[str, Store], target: BackupTarget, *shards: str) -> None:
    """Archive the logs of these shards, or all, in small segments."""
    for shard in shards or stores:
        assert (await Backups(stores[shard], [target], copies=1, segment_events=20).run()).ok


async def restored(target: BackupTarget, to: Mapping[str, str], mark: str | None = None) -> dict[str, RestoreReport]:
    """Restore the newest archive of each shard, or to a mark."""
    shard = next(iter(to))
    parts = (await find_mark([target], f"counts.{shard}", mark)).logs if mark is not None else {}
    marked = {shard: parts.get(f"counts.{shard}") for shard in to}
    archives = await archives_of([target], "counts", {s: m.incarnation if m else None for s, m in marked.items()})
    return await restore_logs({shard: (a, marked[shard]) for shard, a in archives.items()}, to, Until())


async def add_to_each(service: Service, done: Counter[str]) -> None:
    """One more event for each stream."""
    for id in IDS:
        if not done[id]:
            await service.save(Counted(id=id))
        await service.execute(Counted, id, Counted.add, 1)
        done[id] += 1


async def held(store: Store) -> tuple[Mapping[int, SlotState], dict[int, list[StoredEvent]]]:
    """What a store says of each slot, and all events that it has of each."""
    events: dict[int, list[StoredEvent]] = {}
    at = BEGINNING
    while found := await store.slot_events(range(256), at, 500):
        at = found[-1][0]
        for _, event in found:
            events.setdefault(event.slot, []).append(event)
    return await store.slot_states(), events


async def test_shards_are_restored_into_stores_of_other_kinds_with_all_that_came_with_slots(place: Place) -> None:
    """What each store says of slots, and holds of them, is what it was; the logs are the originals' prefixes; slots
    move on, into higher epochs; and the read model is a fold over all logs."""
    target, done = MemoryTarget(), Counter[str]()
    async with place.opened("s", "p", run="none") as service:
        ring = HashRing(["s", "p"])
        await add_to_each(service, done)
        for placement in (ring, all_in("p"), ring, all_in("s"), ring):
            await move_all(service, placement)
            await add_to_each(service, done)
        await backup(service.stores, target)
        before = {shard: await held(store) for shard, store in service.stores.items()}
        heads = {shard: await store.head() for shard, store in service.stores.items()}
        digests = {shard: await digest_of(store, heads[shard]) for shard, store in service.stores.items()}
    to = {"s": place.url("p-restored"), "p": place.url("s-restored")}
    reports = await restored(target, to)
    assert {shard: (r.position, r.left_out) for shard, r in reports.items()} == {s: (h, 0) for s, h in heads.items()}
    service = counts()
    async with service.open(store=to, views=place.views):
        for shard, store in service.stores.items():
            assert await digest_of(store, heads[shard]) == digests[shard]
            assert await held(store) == before[shard]
            assert (await check_store(store, reader(service.codec))).problems == []
        await add_to_each(service, done)
        await move_all(service, all_in("p"))
        await add_to_each(service, done)
        await move_all(service, ring)
        await add_to_each(service, done)
        await check_order(service, done)
        assert (await verify(service.runtime, *service.projections)).ok


async def test_each_shard_is_restored_up_to_where_the_others_fit(place: Place) -> None:
    """A shard whose archive is older: a slot that came from behind its end has not come, and what the newer shard has
    done since is left out. None is open twice, nowhere, or without a part of its history."""
    target, done = MemoryTarget(), Counter[str]()
    async with place.opened("s", "s2", "s3", run="none") as service:
        await move_all(service, HashRing(["s", "s2"]))
        await add_to_each(service, done)
        await backup(service.stores, target)
        early = dict(done)
        await move_all(service, HashRing(["s2", "s3"]))
        await add_to_each(service, done)
        await backup(service.stores, target, "s2", "s3")
        archived = {shard: await store.head() for shard, store in service.stores.items()}
    to = {shard: place.url(f"s-{shard}") for shard in archived}
    reports = await restored(target, to)
    assert reports["s"].left_out == 0
    assert reports["s3"].position + reports["s3"].left_out == archived["s3"]
    assert reports["s3"].left_out > 0, "it had slots that the archive of the first has not let go"
    service = counts()
    async with service.open(store=to, views=place.views):
        assert all(held.is_open for held in (await home(service).look()).values())
        left = Counter({id: (await service.get(Counted, id)).n for id in IDS})
        assert all(early[id] <= n <= done[id] for id, n in left.items())
        await check_order(service, left)
        await move_all(service, HashRing(["s", "s2", "s3"]))
        await add_to_each(service, left)
        await check_order(service, left)


async def stop_after_closing(service: Service, target: Router) -> None:
    """Begin to move slots; the mover stops when the first of them are closed."""

    def stop(step: Step) -> None:
        if step.what == "closed":
            raise asyncio.CancelledError

    with contextlib.suppress(asyncio.CancelledError):
        await bring_about(home(service).stores, target.placement, stop)


async def test_a_slot_that_was_on_its_way_arrives_with_the_restore(place: Place) -> None:
    """Closed for a shard that had not opened it: one with an archive, or one of which a mark says that it was empty."""
    target, done = MemoryTarget(), Counter[str]()
    async with place.opened("s", "s2", run="none") as service:
        await add_to_each(service, done)
        await stop_after_closing(service, all_in("s2"))
        logs = [ToMark(store, [target], POLICY) for store in service.stores.values()]
        await make_mark("empty", logs)
        to = {shard: place.url(f"s-none-{shard}") for shard in service.stores}
        with pytest.raises(ArchiveIncomplete, match=r"no archive of log counts\.s2, and the log of shard 's' says"):
            await restored(target, to)
        assert not list(place.directory.glob("s-none*")), "nothing was made"
    await restored(target, to, mark="empty")
    async with counts().open(store=to, views=place.views, run="none") as service:
        assert {held.shard for held in (await home(service).look()).values() if held.is_open} == {"s", "s2"}
        assert all(held.is_open for held in (await home(service).look()).values())
        await move_all(service, all_in("s2"))
        await stop_after_closing(service, all_in("s"))
        await backup(service.stores, target)
    again = {shard: place.url(f"s-again-{shard}") for shard in to}
    await restored(target, again)
    service = counts()
    async with service.open(store=again, views=place.views):
        assert all(held.is_open for held in (await home(service).look()).values())
        await add_to_each(service, done)
        await check_order(service, done)


async def test_a_restored_service_is_marked_and_restored_again(place: Place) -> None:
    """Moves name the incarnation in which a slot was closed, also of a log that was restored since."""
    target, done = MemoryTarget(), Counter[str]()
    ring = HashRing(["s", "s2"])
    for n, (placement, next_) in enumerate([(ring, all_in("s2")), (all_in("s"), ring), (ring, all_in("s"))]):
        async with place.opened("s", "s2", run="none") as service:
            await move_all(service, placement)
            await add_to_each(service, done)
            await stop_after_closing(service, next_)
            assert not all(held.is_open for held in (await home(service).look()).values())
            logs = [ToMark(store, [target], POLICY) for store in service.stores.values()]
            report = await make_mark(f"mark-{n}", logs)
            assert [m.head - m.position for m in report.logs] == [0, 0]
        place.prefix, place.directory = f"{place.prefix}{n}", place.directory / str(n)
        place.directory.mkdir()
        to = {shard: place.url(shard) for shard in ("s", "s2")}
        reports = await restored(target, to, mark=f"mark-{n}")
        assert [r.left_out for r in reports.values()] == [0, 0]
    async with place.opened("s", "s2") as service:
        await add_to_each(service, done)
        await check_order(service, done)
        assert all(len(store.identity.ancestry) == 3 for store in service.stores.values())


async def test_a_restore_that_ends_between_two_stores_gives_no_service(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first shard's store comes last, and without it nothing opens on the others; begun again it names what is
    there, and comes to its end when that is gone."""
    target, done = MemoryTarget(), Counter[str]()
    async with place.opened("s", "s2", "p", run="none") as service:
        await move_all(service, HashRing(["s", "s2", "p"]))
        await add_to_each(service, done)
        await backup(service.stores, target)
    to = {"s": place.url("s-first"), "s2": place.url("s-second"), "p": place.url("p-third")}

    async def fails(*_: object) -> None:
        raise StoreUnavailable("the disk is gone")

    with monkeypatch.context() as broken:
        broken.setattr(PostgresRestore, "complete", fails)
        with pytest.raises(StoreUnavailable, match="the disk is gone"):
            await restored(target, to)
    assert not (place.directory / "s-first.db").exists()

    async def open_them(create: bool) -> None:
        async with AsyncExitStack() as stack:
            await open_home(await open_shards(to, "counts", stack, create=create), None, stack, place=True)

    for create in (False, True):
        with pytest.raises((StoreUnavailable, WrongStore)):
            await open_them(create)
    with pytest.raises(ConfigurationError, match="there already"):
        await restored(target, to)
    for file in place.directory.glob("s-*.db"):
        file.unlink()
    async with await psycopg.AsyncConnection.connect(place.postgres_url.partition("&schema")[0]) as c:
        await c.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(f"{place.prefix}_p-third")))
    await restored(target, to)
    service = counts()
    async with service.open(store=to, views=place.views):
        await check_order(service, done)


async def test_a_process_that_has_slept_through_a_restore_changes_nothing(place: Place) -> None:
    """The stores have the old ones' names. It can neither save nor move slots, and is told to start again."""
    target, done = MemoryTarget(), Counter[str]()
    async with place.opened("s", "p", run="none") as sleeper:
        await move_all(sleeper, HashRing(["s", "p"]))
        await add_to_each(sleeper, done)
        await backup(sleeper.stores, target)
        (place.directory / "s.db").rename(place.directory / "lost.db")
        async with await psycopg.AsyncConnection.connect(place.postgres_url.partition("&schema")[0]) as c:
            old, new = sql.Identifier(f"{place.prefix}_p"), sql.Identifier(f"{place.prefix}_lost")
            await c.execute(sql.SQL("ALTER SCHEMA {} RENAME TO {}").format(old, new))
        for file in place.directory.glob("s.db-*"):
            file.unlink()
        await restored(target, {"s": place.url("s"), "p": place.url("p")})
        shards = {home(sleeper).shard_of(id): id for id in IDS}
        with pytest.raises(StoreUnavailable, match="deleted, moved or replaced"):
            await sleeper.execute(Counted, shards["s"], Counted.add, 1)
        with pytest.raises(WrongStore, match="it was restored from a backup"):
            await sleeper.execute(Counted, shards["p"], Counted.add, 1)
        slots = [slot for slot, held in (await home(sleeper).look()).items() if held.shard == "p"]
        with pytest.raises(WrongStore, match="Start the process again"):
            await sleeper.stores["p"].close_slots({slots[0]: 3}, "s", 0, {slots[0]: History()})
    async with place.opened("s", "p") as service:
        await check_order(service, done)


async def test_who_follows_restored_shards_goes_on_unless_it_is_ahead(place: Place) -> None:
    """Who was not ahead of any applies each event once; who was stops with both positions and the command that mends
    it, and then the read model is a fold over all restored logs."""
    target, done = MemoryTarget(), Counter[str]()
    ring = HashRing(["s", "s2"])
    async with place.opened("s", "s2") as service:
        await move_all(service, ring)
        await add_to_each(service, done)
        await backup(service.stores, target)
        await check_order(service, done)
    to = {shard: place.url(f"s-first-{shard}") for shard in ("s", "s2")}
    await restored(target, to)
    service = counts()
    async with service.open(store=to, views=place.views):
        await move_all(service, all_in("s"))
        await add_to_each(service, done)
        await check_order(service, done)
        assert (await verify(service.runtime, *service.projections)).ok
        await backup(service.stores, target)
        early, ends = Counter(done), {store.identity.name: await store.head() for store in service.stores.values()}
        await add_to_each(service, done)
        await check_order(service, done)
    again = {shard: place.url(f"s-again-{shard}") for shard in to}
    await restored(target, again)
    service, done = counts(), early
    async with service.open(store=again, views=place.views):
        await move_all(service, all_in("s2"))
        await add_to_each(service, done)
        runner = service.runtime.projections["sums"]
        error = await eventually(lambda: runner.halted, "the projection halts")
        assert isinstance(error, OtherIncarnation)
        assert error.values["other_position"] == ends[error.values["log"]] < error.values["position"]
        assert "evsync reset module:service" in str(error)
    async with service.inspect(store=again, views=place.views, followers=True):
        assert await reset_follower(service.runtime, "sums")
    async with service.open(store=again, views=place.views):
        await check_order(service, done)
        assert (await verify(service.runtime, *service.projections)).ok


async def test_a_service_archives_all_of_its_shards_by_itself(place: Place) -> None:
    """Each log, as often as the policy says; `status` tells of each."""
    policy = BackupPolicy(targets=[str(place.directory / "disk")], loss=0.01, interval=timedelta(milliseconds=20))
    service = Service("counts", aggregates=[Counted], backups=policy, router=HashRing(["s", "s2"]))
    done = Counter[str]()
    async with service.open(store={shard: place.url(shard) for shard in ("s", "s2")}, run=["backup"]):
        await add_to_each(service, done)

        async def archived() -> bool:
            status = await service.status()
            heads = {name: log.head for name, log in status.logs.items()}
            return {name: backups.position for name, backups in status.backups.items()} == heads

        async with asyncio.timeout(20):
            while not await archived():
                await asyncio.sleep(0.01)
    reports = await restored(
        open_target(policy.targets[0]), {shard: place.url(f"s-new-{shard}") for shard in ("s", "s2")}
    )
    assert sum(report.events for report in reports.values()) == 256 + 2 * len(IDS)
