"""One shard is restored beside others that live on, and goes on with what these hold of it."""

from __future__ import annotations

from collections import Counter

import pytest

from evsync import Service
from evsync.archive.restore import RestoreReport, Until
from evsync.control import FENCES_STREAM
from evsync.errors import ArchiveIncomplete, ConfigurationError, OtherIncarnation, WrongStore
from evsync.operations.recovery import archives_of, restore_shard
from evsync.operations.resets import reset_follower
from evsync.operations.store_check import check_store, reader
from evsync.operations.verification import verify
from evsync.ports import BackupTarget
from evsync.sharding import HashRing
from tests.archiving import MemoryTarget
from tests.integration.test_shards import check_order, counts, move_all
from tests.integration.test_shards_mixed import Place, all_in, place
from tests.integration.test_shards_restored import add_to_each, backup, held, stop_after_closing
from tests.relaying import eventually

pytestmark = pytest.mark.anyio
__all__ = ["place"]


async def restored(place: Place, target: BackupTarget, lost: str, to: str, *others: str) -> RestoreReport:
    """The shard, from its newest archive."""
    archives = await archives_of([target], "counts", {lost: None})
    urls = {shard: place.url(shard) for shard in others}
    return await restore_shard(lost, archives[lost], None, place.url(to), urls, Until())


async def check_whole(service: Service) -> None:
    """What the stores hold of each slot agrees, and their logs keep their laws."""
    histories: dict[int, list[bytes]] = {}
    for store in service.stores.values():
        for slot, events in (await held(store))[1].items():
            known, found = sorted([histories.get(slot, []), [e.id for e in events]], key=len)
            assert found[: len(known)] == known
            histories[slot] = found
        assert (await check_store(store, reader(service.codec))).problems == []


@pytest.mark.parametrize("lost", ["s", "p"])
async def test_what_others_hold_of_a_lost_shard_comes_back_with_it(place: Place, lost: str) -> None:
    """Slots that have left it since its backup, with their events; the read model is a fold over all logs; slots move
    on, those of the lost store to nobody."""
    target, done = MemoryTarget(), Counter[str]()
    other = "p" if lost == "s" else "s"
    ring = HashRing(["s", "p"])
    async with place.opened("s", "p", run="none") as service:
        await move_all(service, ring)
        await add_to_each(service, done)
        await backup(service.stores, target, lost)
        await add_to_each(service, done)
        await move_all(service, all_in(other))
        await add_to_each(service, done)
        to = f"{other}-restored"
        report = await restored(place, target, lost, to, other)
        assert report.from_shards > 0
        await move_all(service, all_in(lost))  # into the lost store: to be taken for the restored one's
        with pytest.raises(WrongStore, match="was restored since, as incarnation"):
            await move_all(service, all_in(other))
    with pytest.raises(WrongStore, match=f"log counts.{lost} was restored since"):
        async with place.opened("s", "p", run="none"):
            pass
    urls = {shard: place.url(to if shard == lost else shard) for shard in ("s", "p")}
    service = counts()
    async with service.open(store=urls, views=place.views):
        await check_whole(service)
        for placement in (ring, all_in(lost), ring):
            await move_all(service, placement)
            await add_to_each(service, done)
        await check_order(service, done)
        await check_whole(service)
        assert (await verify(service.runtime, *service.projections)).ok


async def test_a_shard_comes_back_with_its_slots_where_movers_were_at_work(place: Place) -> None:
    """Some were copied, some closed for it, some had come and gone: each is open in one shard, and moves on."""
    target, done = MemoryTarget(), Counter[str]()
    async with place.opened("s", "s2", "p", run="none") as service:
        await move_all(service, HashRing(["s", "s2"]))
        await add_to_each(service, done)
        await backup(service.stores, target, "s2")
        await stop_after_closing(service, HashRing(["s", "p"]))
        await move_all(service, HashRing(["s", "p"]))
        await add_to_each(service, done)
        await stop_after_closing(service, all_in("s2"))
        heads = {shard: await store.head() for shard, store in service.stores.items()}
        await restored(place, target, "s2", "s-restored", "s", "p")
        for shard in ("s", "p"):
            fences = await service.stores[shard].read_stream(FENCES_STREAM)
            assert [e.position for e in fences] == [heads[shard] + 1]
        with pytest.raises(ConfigurationError, match="there already"):
            await restored(place, target, "s2", "s-restored", "s", "p")
    urls = {"s": place.url("s"), "s2": place.url("s-restored"), "p": place.url("p")}
    service = counts()
    async with service.open(store=urls, views=place.views):
        await add_to_each(service, done)
        await check_order(service, done)
        await check_whole(service)
        await move_all(service, HashRing(["s", "s2", "p"]))
        await add_to_each(service, done)
        await check_order(service, done)


async def test_who_follows_a_shard_that_was_restored_alone_goes_on_unless_it_is_ahead(place: Place) -> None:
    """One that was not ahead applies what was brought back, before what follows it in the other shard; one that was
    stops with the command that mends it."""
    target, done = MemoryTarget(), Counter[str]()
    async with place.opened("s", "s2") as service:
        await move_all(service, HashRing(["s", "s2"]))
        await add_to_each(service, done)
        await check_order(service, done)
        await backup(service.stores, target, "s")
    async with place.opened("s", "s2", run="none") as service:
        await add_to_each(service, done)
        await move_all(service, all_in("s2"))
        await add_to_each(service, done)
    await restored(place, target, "s", "s-first", "s2")
    urls = {"s": place.url("s-first"), "s2": place.url("s2")}
    service = counts()
    async with service.open(store=urls, views=place.views):
        await move_all(service, HashRing(["s", "s2"]))
        await add_to_each(service, done)
        await check_order(service, done)
        assert (await verify(service.runtime, *service.projections)).ok
        await backup(service.stores, target, "s")
        await add_to_each(service, done)
        await move_all(service, all_in("s2"))
        await check_order(service, done)
    await restored(place, target, "s", "s-second", "s2")
    urls["s"] = place.url("s-second")
    service = counts()
    async with service.open(store=urls, views=place.views):
        runner = service.runtime.projections["sums"]
        error = await eventually(lambda: runner.halted, "the projection halts")
        assert isinstance(error, OtherIncarnation)
        assert "evsync reset module:service" in str(error)
    async with service.inspect(store=urls, views=place.views, followers=True):
        assert await reset_follower(service.runtime, "sums")
    async with service.open(store=urls, views=place.views):
        await check_order(service, done)
        await check_whole(service)


async def test_a_shard_whose_slots_came_and_went_both_ways_is_not_restored_alone(place: Place) -> None:
    """What it would have to say in one commit of those that came and left again waits in the other shard's log for what
    it says of those that had left. It is told what to do; nothing is made."""
    target, done = MemoryTarget(), Counter[str]()
    async with place.opened("s", "s2", run="none") as service:
        await add_to_each(service, done)
        await backup(service.stores, target, "s")
        for placement in (all_in("s2"), all_in("s"), all_in("s2")):
            await move_all(service, placement)
            await add_to_each(service, done)
    with pytest.raises(ArchiveIncomplete, match=r"others have come back since.*restore all shards together"):
        await restored(place, target, "s", "s-new", "s2")
    assert not list(place.directory.glob("s-new*"))


@pytest.mark.parametrize(
    ("to", "other", "said"),
    [
        ("sqlite:///new.db", "nats://127.0.0.1:1", "cannot be restored into a JetStream stream"),
        ("nats://127.0.0.1:1", "sqlite:///s2.db", "cannot be restored into a JetStream stream"),
        ("sqlite:///new.db", "memory://", "cannot be restored beside shard 's2'"),
    ],
)
async def test_beside_stores_that_cannot_take_part_no_shard_is_restored(
    place: Place, to: str, other: str, said: str
) -> None:
    """It is said, and nothing is made."""
    target = MemoryTarget()
    async with place.opened("s", "s2", run="none") as service:
        await move_all(service, HashRing(["s", "s2"]))
        await backup(service.stores, target, "s")
    archives = await archives_of([target], "counts", {"s": None})
    to = to.replace("new.db", f"{place.directory}/new.db")
    with pytest.raises(ConfigurationError, match=said):
        await restore_shard("s", archives["s"], None, to, {"s2": other}, Until())
    assert not list(place.directory.glob("new*"))
