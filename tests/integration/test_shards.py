"""A service with several shards: routing, moves while it writes, what a process with an old map does."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from evsync import Contract, Event, NamedAggregate, Projection, Service, SqlModel, Tables, event
from evsync.errors import AcrossShards, ConfigurationError, StoreUnavailable, WrongStore
from evsync.homes import ShardedStores
from evsync.records import History, LogIdentity, Opening
from evsync.sharding import HashRing, RangeRouter, Router, slot_of
from evsync.sharding.handover import BEGINNING, Move, Step, bring_about, carry_out, moves_between
from evsync.sharding.truth import truth

pytestmark = pytest.mark.anyio


class Counted(NamedAggregate):
    """Counts."""

    @event("Begun")
    def __init__(self, id: str) -> None:
        self.n = 0

    @event("Added")
    def add(self, n: int) -> None:
        self.n += n


class Added(Contract, type="counts.Counted.Added"):
    """What the read model needs."""

    n: int


TABLES = sa.MetaData()
SUMS = sa.Table(
    "sums",
    TABLES,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("n", sa.Integer),
    sa.Column("version", sa.Integer),
    sa.Column("late", sa.Integer),
)


def view() -> Projection[Tables]:
    """Sums by stream; `late` counts events that came after a later one of their stream."""
    projection = Projection("sums", model=SqlModel(TABLES))

    @projection.on(Added)
    def added(e: Event[Added], db: Tables) -> None:
        row = db.execute(sa.select(SUMS.c.version).where(SUMS.c.id == e.stream_id)).first()
        late = int(row is not None and row.version is not None and row.version != e.version - 1)
        db.increment(SUMS, id=e.stream_id, n=e.data.n, late=late)
        db.upsert(SUMS, id=e.stream_id, version=e.version)

    return projection


def counts(router: Router | None = None) -> Service:
    """The service, not open yet."""
    return Service("counts", aggregates=[Counted], projections=[view()], router=router)


@asynccontextmanager
async def opened(
    directory: Path,
    *shards: str,
    router: Router | None = None,
    run: Any = "all",
    stores: Mapping[str, str] | None = None,
) -> AsyncIterator[Service]:
    """The service with these shards: each a file in the directory, or where `stores` says."""
    service, store = counts(router), stores or urls(directory, *shards)
    async with service.open(store=store, views=f"sqlite:///{directory}/views.db", run=run):
        yield service


def urls(directory: Path, *shards: str) -> Mapping[str, str]:
    """A file for each."""
    return {shard: f"sqlite:///{directory}/{shard}.db" for shard in shards}


def home(service: Service) -> ShardedStores:
    """Where its streams are."""
    found = service.runtime.home
    assert isinstance(found, ShardedStores)
    return found


async def move_all(service: Service, target: Router | tuple[str, ...]) -> None:
    """Bring the service's slots where they shall be."""
    placement = target if isinstance(target, tuple) else target.placement
    await bring_about(home(service).stores, placement)


async def check_order(service: Service, expected: Mapping[str, int]) -> None:
    """All logs together hold every event once; each stream is whole; the read model is a fold over all logs."""
    events = [e async for e in service.log()]
    own = [e for e in events if not e.stream_id.startswith("evsync/")]
    assert len({(e.stream_id, e.version) for e in own}) == len(own) == sum(expected.values()) + len(expected)
    for stream, adds in expected.items():
        found = await service.get(Counted, stream)
        assert (found.n, found.version) == (adds, adds + 1)
        assert [e.version for e in await service.history(Counted, stream)] == list(range(1, adds + 2))
    for store in service.stores.values():
        await service.wait(store.identity.at(await store.head()), timeout_s=20)
    rows = (await service.query(sa.select(SUMS.c.id, SUMS.c.n, SUMS.c.late))).all()
    assert {row.id: row.n for row in rows} == {stream: adds for stream, adds in expected.items() if adds}
    assert sum(row.late for row in rows) == 0


async def test_each_stream_lives_in_the_shard_that_the_router_says(tmp_path: Path) -> None:
    """And get, save and execute find it there, now and when the service is opened again."""
    router = HashRing(["a", "b", "c"])
    ids = [f"stream-{n}" for n in range(60)]
    async with opened(tmp_path, "a", "b", "c", router=router) as service:
        for id in ids:
            position = await service.save(Counted(id=id))
            assert position.log == f"counts.{router.shard_of(id)}"
    async with opened(tmp_path, "a", "b", "c", router=router) as service:
        for id in ids:
            await service.execute(Counted, id, Counted.add, 1)
        await check_order(service, dict.fromkeys(ids, 1))
        at_home = Counter([e.position.log async for e in service.log() if not e.stream_id.startswith("evsync/")])
        assert at_home == Counter(f"counts.{router.shard_of(id)}" for id in ids for _ in range(2))


def test_what_is_no_router_is_refused_when_the_service_is_made() -> None:
    """With its value, and what is needed."""
    with pytest.raises(ConfigurationError, match="router=5, where a HashRing or a RangeRouter is needed"):
        counts(5)  # type: ignore[arg-type]


async def test_the_number_of_slots_is_the_routers_when_the_stores_are_made_and_never_changes(tmp_path: Path) -> None:
    """Every shard has it, also one that joins later without a router; another number is refused."""
    async with opened(tmp_path, "a", "b", router=HashRing(["a", "b"], slots=64)) as service:
        for n in range(20):
            await service.save(Counted(id=f"stream-{n}"))
    async with opened(tmp_path, "a", "b", "c") as service:
        assert {store.identity.slots for store in service.stores.values()} == {64}
        await move_all(service, HashRing(["a", "b"], slots=64).adding("c"))
        assert [(await service.get(Counted, f"stream-{n}")).version for n in range(20)] == [1] * 20
    with pytest.raises(ConfigurationError, match="256 slots, and the service's stores have 64"):
        async with opened(tmp_path, "a", "b", "c", router=HashRing(["a", "b", "c"])):
            pass


async def test_another_service_reads_the_logs_of_all_shards_from_their_stores(tmp_path: Path) -> None:
    """`sources=` names a store for each, before slots move and after."""
    shards, reader = urls(tmp_path, "a", "b"), Service("reader", projections=[view()])
    where: Any = {"store": "memory://", "views": f"sqlite:///{tmp_path}/read.db", "sources": {"counts": shards}}
    async with opened(tmp_path, "a", "b", run="none") as service, reader.open(**where):
        for n in range(20):
            await service.save(Counted(id=f"stream-{n}"))
            last = await service.execute(Counted, f"stream-{n}", Counted.add, n)
        await reader.wait(last, timeout_s=20)
        await move_all(service, HashRing(["a", "b"]).without("a"))
        for n in range(20):
            last = await service.execute(Counted, f"stream-{n}", Counted.add, 1)
        rows = (await reader.query(sa.select(SUMS.c.id, SUMS.c.n, SUMS.c.late), after=last, timeout_s=20)).all()
        assert {(r.id, r.n, r.late) for r in rows} == {(f"stream-{n}", n + 1, 0) for n in range(20)}


async def test_a_save_that_spans_shards_is_refused_and_says_what_would_do(tmp_path: Path) -> None:
    """Streams, shards, and the tag; a tag keeps them together."""
    router = HashRing(["a", "b"])
    here, there = "one", next(f"x{n}" for n in range(50) if router.shard_of(f"x{n}") != router.shard_of("one"))
    async with opened(tmp_path, "a", "b", router=router) as service:
        with pytest.raises(AcrossShards) as refused:
            await service.save(Counted(id=here), Counted(id=there))
        text = str(refused.value)
        assert all(
            word in text for word in (repr(here), repr(there), "'a'", "'b'", f"'{{{here}}}.{there}'", f"'{{{here}}}'")
        )
        assert refused.value.shards == {here: router.shard_of(here), there: router.shard_of(there)}
        assert [e async for e in service.log() if not e.stream_id.startswith("evsync/")] == []
        assert router.shard_of("{one}") == router.shard_of("one")
        await service.save(Counted(id="{one}.x"), Counted(id="{one}.y"))
        await check_order(service, {"{one}.x": 0, "{one}.y": 0})


async def test_slots_move_while_writers_go_on(tmp_path: Path) -> None:
    """Two shards become four, then three: nothing lost, doubled or out of order, and no writer sees an error."""
    ids = [f"stream-{n}" for n in range(24)]
    done: Counter[str] = Counter()
    async with opened(tmp_path, "a", "b") as service, opened(tmp_path, "a", "b", run="none") as other:
        for id in ids:
            await service.save(Counted(id=id))

    async with (
        opened(tmp_path, "a", "b", "c", "d", router=HashRing(["a", "b"])) as service,
        opened(tmp_path, "a", "b", "c", "d", router=HashRing(["a", "b"]), run="none") as other,
    ):
        stop = asyncio.Event()

        async def write(writer: Service, mine: list[str]) -> None:
            while not stop.is_set():
                for id in mine:
                    await writer.execute(Counted, id, Counted.add, 1)
                    done[id] += 1
                await asyncio.sleep(0)

        writers = [asyncio.create_task(write(w, ids[n::2])) for n, w in enumerate((service, other))]
        ring = HashRing(["a", "b"]).adding("c").adding("d")
        await move_all(other, ring)
        before = sum(done.values())
        while sum(done.values()) < before + 50:
            await asyncio.sleep(0.005)
        await move_all(service, ring.without("b"))
        before = sum(done.values())
        while sum(done.values()) < before + 50:
            await asyncio.sleep(0.005)
        stop.set()
        await asyncio.gather(*writers)
        now = await truth(home(service).stores)
        assert {held.shard for held in now.values()} == {"a", "c", "d"}
        await check_order(service, done)


async def test_a_move_that_was_left_anywhere_is_finished_by_anybody(tmp_path: Path) -> None:
    """There and back, broken off after every step in turn."""
    ids = [f"s{n}" for n in range(12)]
    done: Counter[str] = Counter(dict.fromkeys(ids, 0))
    there, back = RangeRouter({"b": range(256)}), RangeRouter({"a": range(256)})
    async with opened(tmp_path, "a", "b", router=back) as service:
        for id in ids:
            await service.save(Counted(id=id))

        class Left(Exception):
            pass

        for number, stop_at in enumerate(("copied", "closed", "opened", "closed", "copied", "opened")):
            target = there if number % 2 == 0 else back

            def leave(step: Step, stop_at: str = stop_at) -> None:
                if step.what == stop_at:
                    raise Left

            stores = home(service).stores
            move = moves_between(await truth(stores), target.placement)[0]
            with pytest.raises(Left):
                await carry_out(stores, move, leave)
            if stop_at != "closed":  # nobody waits for a mover that has not closed anything, or has opened it again
                for id in ids:
                    await service.execute(Counted, id, Counted.add, 1)
                    done[id] += 1
            else:
                finishing = asyncio.create_task(bring_about(stores, target.placement))
                for id in ids:
                    await service.execute(Counted, id, Counted.add, 1)
                    done[id] += 1
                await finishing
            await bring_about(stores, target.placement)
        await check_order(service, done)


async def test_two_movers_at_once_do_no_harm(tmp_path: Path) -> None:
    """Each step is a compare-and-set."""
    ids = [f"s{n}" for n in range(30)]
    async with opened(tmp_path, "a", "b", router=RangeRouter({"a": range(256)})) as service:
        for id in ids:
            await service.save(Counted(id=id))
        stores = home(service).stores
        target = HashRing(["a", "b"]).placement
        await asyncio.gather(*(bring_about(stores, target) for _ in range(3)))
        now = await truth(stores)
        assert tuple(now[slot].shard for slot in range(256)) == target
        assert {held.state.epoch for held in now.values() if held.shard == "b"} == {2}
        await check_order(service, dict.fromkeys(ids, 0))


async def test_two_movers_who_want_different_things_come_to_an_end(tmp_path: Path) -> None:
    """Each brings a slot where it shall be once: whoever is later has it, and it is not moved to and fro for ever."""
    ids, there, back = [f"s{n}" for n in range(30)], ("b",) * 256, ("a",) * 256
    async with opened(tmp_path, "a", "b", router=RangeRouter({"a": range(256)})) as service:
        for id in ids:
            await service.save(Counted(id=id))
        stores = home(service).stores
        open_slots = stores["b"].open_slots

        async def open_and_lose(opening: Mapping[int, Opening], source: LogIdentity | None = None) -> bool:
            opened = await open_slots(opening, source)
            await bring_about(stores, back)
            return opened

        stores["b"].open_slots = open_and_lose  # type: ignore[method-assign]
        async with asyncio.timeout(30):
            assert await bring_about(stores, there) == 4
        stores["b"].open_slots = open_slots  # type: ignore[method-assign]
        assert {(held.shard, held.state.epoch) for held in (await truth(stores)).values()} == {("a", 3)}
        async with asyncio.timeout(30):
            await asyncio.gather(*(bring_about(stores, target) for target in (there, back, there, back)))
        assert all(held.is_open for held in (await truth(stores)).values())
        for id in ids:
            await service.execute(Counted, id, Counted.add, 1)
        await check_order(service, dict.fromkeys(ids, 1))


async def test_a_copy_that_differs_stops_the_move(tmp_path: Path) -> None:
    """Imports that are not the slot's history are not built on: the slot stays open where it is."""
    async with opened(tmp_path, "a", "b", router=RangeRouter({"a": range(256)})) as service:
        await service.save(Counted(id="x"))
        stores, slot = home(service).stores, slot_of("x")
        [(_, event)] = await stores["a"].slot_events([slot], BEGINNING, 10)
        assert await stores["b"].import_events([event._replace(id=bytes(16))], {slot: History()})
        async with asyncio.timeout(20):
            with pytest.raises(WrongStore, match=f"slot {slot}: what shard 'b' holds of its history is not what"):
                await carry_out(stores, Move("a", "b", (slot,)))
        await service.execute(Counted, "x", Counted.add, 1)
        assert (await truth(stores))[slot].shard == "a"


async def test_a_process_with_an_old_map_is_told_at_its_first_write(tmp_path: Path) -> None:
    """It follows if it has all stores; else the error says what it lacks, and nothing is stored."""
    to_b = RangeRouter({"b": range(256)})
    async with (
        opened(tmp_path, "main", run="none") as one,
        opened(tmp_path, "main", "b", router=RangeRouter({"main": range(256)})) as old,
        opened(tmp_path, "main", "b", router=RangeRouter({"main": range(256)}), run="none") as mover,
    ):
        alone = counts()
        async with alone.open(store=f"sqlite:///{tmp_path}/main.db", run="none"):
            await old.save(Counted(id="x"))
            loaded = await one.get(Counted, "x")
            await move_all(mover, to_b)
            await old.execute(Counted, "x", Counted.add, 1)
            loaded.add(5)
            for behind in (one, alone):
                with pytest.raises(StoreUnavailable, match="shard 'b'"):
                    await behind.save(Counted(id=f"new-{behind is one}"))
            with pytest.raises(StoreUnavailable, match="shard 'b'"):
                await one.save(loaded)
            assert loaded.pending_events
            await check_order(old, {"x": 1})


@pytest.mark.parametrize("read", ["a state", "events"])
async def test_a_process_with_an_old_map_reads_nothing_old(tmp_path: Path, read: str) -> None:
    """It asks the shard that it knows whether the slot is still there, and then reads where it is."""
    here = RangeRouter({"a": range(256)})
    async with (
        opened(tmp_path, "a", "b", router=here, run="none") as old,
        opened(tmp_path, "a", "b", router=here, run="none") as mover,
    ):
        await old.save(Counted(id="x"))
        await move_all(mover, RangeRouter({"b": range(256)}))
        await mover.execute(Counted, "x", Counted.add, 1)
        if read == "a state":
            assert (await old.get(Counted, "x")).n == 1
        else:
            assert len(await old.history(Counted, "x")) == 2


async def test_a_process_with_one_store_reads_nothing_old(tmp_path: Path) -> None:
    """It is told that a stream has left, and reads all of it when it is back, with what was done elsewhere."""
    async with opened(tmp_path, "main", "b", router=RangeRouter({"main": range(256)}), run="none") as mover:
        alone = counts()
        async with alone.open(store=f"sqlite:///{tmp_path}/main.db", run="none"):
            await alone.save(Counted(id="x"))
            assert (await alone.get(Counted, "x")).n == 0
            await move_all(mover, RangeRouter({"b": range(256)}))
            await mover.execute(Counted, "x", Counted.add, 1)
            for read in (alone.get, alone.history):
                with pytest.raises(StoreUnavailable, match="shard 'b'"):
                    await read(Counted, "x")
            await move_all(mover, RangeRouter({"main": range(256)}))
            assert (await alone.get(Counted, "x")).n == 1
            await alone.execute(Counted, "x", Counted.add, 1)
            assert (await mover.get(Counted, "x")).n == 2


async def test_a_router_is_not_ignored_where_there_is_one_store(tmp_path: Path) -> None:
    """A URL alone is that of shard "main": a plan for others is refused before anything is made."""
    with pytest.raises(ConfigurationError, match=r"plans for shard 'a', .* one URL alone is that of shard 'main'"):
        async with counts(HashRing(["a", "b"])).open(store=f"sqlite:///{tmp_path}/z.db"):
            pass
    assert not (tmp_path / "z.db").exists()
    async with counts(HashRing(["main"], slots=64)).open(store=f"sqlite:///{tmp_path}/z.db") as service:
        assert service.runtime.store.identity.slots == 64
    with pytest.raises(ConfigurationError, match="the router has 32 slots, and the service's stores have 64"):
        async with counts(HashRing(["main"], slots=32)).open(store=f"sqlite:///{tmp_path}/z.db"):
            pass


async def test_stores_that_are_not_of_one_service_are_refused(tmp_path: Path) -> None:
    """Two first shards, a missing one, a router for others: nothing is touched."""
    for shard in ("a", "b"):
        async with opened(tmp_path, shard):
            pass
    with pytest.raises(WrongStore, match="open in shard 'a' and in shard 'b'"):
        async with opened(tmp_path, "a", "b"):
            pass
    with pytest.raises(ConfigurationError, match="plans for shard 'z'"):
        async with opened(tmp_path, "a", router=HashRing(["a", "z"])):
            pass
    with pytest.raises(ConfigurationError, match="16 slots"):
        async with opened(tmp_path, "a", router=HashRing(["a"], slots=16)):
            pass
    with pytest.raises(ConfigurationError, match="shard 'm' is in memory, and others are not"):
        async with opened(tmp_path, stores={"z": f"sqlite:///{tmp_path}/z.db", "m": "memory://"}):
            pass
    assert not (tmp_path / "z.db").exists()
    with pytest.raises(ConfigurationError, match="plans for shard 'y'"):
        async with opened(tmp_path, "z", router=HashRing(["z", "y"])):
            pass
    assert not (tmp_path / "z.db").exists()
    pair = tmp_path / "pair"
    pair.mkdir()
    async with opened(pair, "a", "b") as service:
        assert {service.runtime.home.slots} == {256}
    with pytest.raises(StoreUnavailable, match="shard 'b', which this process does not know"):
        async with opened(pair, "a"):
            pass


async def test_snapshots_and_time_travel_go_with_a_stream(tmp_path: Path) -> None:
    """The past is asked in the new shard, from events that lie in the old one's log."""
    async with opened(tmp_path, "a", "b", router=RangeRouter({"a": range(256)})) as service:
        await service.save(Counted(id="x"))
        for _ in range(3):
            await service.execute(Counted, "x", Counted.add, 1)
        await move_all(service, ("b",) * 256)
        middle = (await service.history(Counted, "x"))[-1].time
        position = await service.execute(Counted, "x", Counted.add, 10)
        assert position.log == "counts.b"
        assert (await service.get(Counted, "x", version=2)).n == 1
        assert (await service.get(Counted, "x", at=middle)).n == 3
        logs = [e.position.log for e in await service.history(Counted, "x")]
        assert logs == ["counts.a"] * 4 + ["counts.b"]
        await check_order_of_one(service)


async def check_order_of_one(service: Service) -> None:
    """The read model of the one stream, at the end."""
    for store in service.stores.values():
        await service.wait(store.identity.at(await store.head()))
    row = (await service.query(sa.select(SUMS.c.n, SUMS.c.late))).one()
    assert tuple(row) == (13, 0)
    assert slot_of("x") in range(256)
