"""Shards of several kinds of stores, and what is asked of a read model across a move."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from evsync import Event, Projection, Service, SqlModel, Tables
from evsync.errors import AcrossShards, Parked, StoreUnavailable
from evsync.operations.explanation import explain
from evsync.operations.verification import verify
from evsync.projections.event import Event as AppliedEvent
from evsync.sharding import HashRing, RangeRouter, Router
from evsync.sharding.handover import Step, bring_about
from evsync.testing import world
from tests.command_line import Shop
from tests.integration.test_shards import SUMS, TABLES, Added, Counted, check_order, counts, home, move_all
from tests.sharded_shop import Cart, shop

pytestmark = pytest.mark.anyio
_numbers = count()


class Place:
    """Where the shards of one service are: `s…` in SQLite, `p…` in PostgreSQL."""

    def __init__(self, directory: Path, postgres_url: str) -> None:
        self.directory, self.postgres_url = directory, postgres_url
        self.prefix = f"mixed{next(_numbers)}"
        self.views = f"sqlite:///{directory}/views.db"

    def url(self, shard: str) -> str:
        """Of one shard's store."""
        if shard.startswith("p"):
            return f"{self.postgres_url}&schema={self.prefix}_{shard}"
        return f"sqlite:///{self.directory}/{shard}.db"

    @asynccontextmanager
    async def opened(self, *shards: str, service: Service | None = None, **options: Any) -> AsyncIterator[Service]:
        """The service with these shards; all slots are in the first."""
        service = service or counts(all_in(shards[0]))
        stores: str | Mapping[str, str] = {shard: self.url(shard) for shard in shards}
        async with service.open(store=stores, views=self.views, **options):
            yield service


@pytest.fixture
def place(tmp_path: Path, postgres_url: str) -> Place:
    """Nothing is there yet."""
    return Place(tmp_path, postgres_url)


def all_in(shard: str) -> Router:
    """All slots in one shard."""
    return RangeRouter({shard: range(256)})


async def test_slots_move_between_kinds_of_stores_while_writers_go_on(place: Place) -> None:
    """PostgreSQL to SQLite, back, and to another PostgreSQL: nothing lost, doubled or out of order, and no error."""
    ids = [f"stream-{n}" for n in range(10)]
    done: Counter[str] = Counter()
    async with place.opened("p1", "s", "p2") as service, place.opened("p1", "s", "p2", run="none") as other:
        for id in ids:
            await service.save(Counted(id=id))
        stop = asyncio.Event()

        async def write(writer: Service, mine: list[str]) -> None:
            while not stop.is_set():
                for id in mine:
                    await writer.execute(Counted, id, Counted.add, 1)
                    done[id] += 1

        writers = [asyncio.create_task(write(w, ids[n::2])) for n, w in enumerate((service, other))]
        async with asyncio.timeout(60):
            for target in (HashRing(["p1", "s"]), all_in("p1"), HashRing(["p1", "s", "p2"]), all_in("p2")):
                await move_all(other, target)
                before = dict(done)
                while any(done[id] <= before.get(id, 0) for id in ids):
                    await asyncio.sleep(0.005)
        stop.set()
        await asyncio.gather(*writers)
        await check_order(service, done)
        (report,) = [await verify(service.runtime, p) for p in service.projections]
        assert report.ok
        assert len(report.logs) == 3


async def test_one_postgresql_store_says_that_a_stream_has_left(place: Place) -> None:
    """Also to a process that has it open since before, at its first read and at its first write."""
    url = f"{place.postgres_url}&schema={place.prefix}_main"
    alone = Service("counts", aggregates=[Counted])
    service = counts(all_in("main"))
    async with alone.open(store=url, run="none"):
        await alone.save(Counted(id="x"))
        async with service.open(store={"main": url, "s": place.url("s")}, views=place.views, run="none"):
            await move_all(service, all_in("s"))
            await service.execute(Counted, "x", Counted.add, 1)
            for refused in (alone.get(Counted, "x"), alone.save(Counted(id="y"))):
                with pytest.raises(StoreUnavailable, match="moved to shard 's'"):
                    await refused
            await move_all(service, all_in("main"))
            assert (await alone.get(Counted, "x")).n == 1
            await alone.execute(Counted, "x", Counted.add, 1)
            assert (await service.get(Counted, "x")).n == 2


async def test_a_read_model_is_rebuilt_while_slots_move(place: Place) -> None:
    """What the new model holds is a fold over all logs, in each stream's order; `verify` agrees before and after."""
    ids = [f"s{n}" for n in range(8)]
    done: Counter[str] = Counter(dict.fromkeys(ids, 0))
    async with place.opened("s", "p") as service:
        (projection,) = service.projections
        for id in ids:
            await service.save(Counted(id=id))
        for target in ("p", "s"):
            rebuilding = asyncio.create_task(service.rebuild())
            moving = asyncio.create_task(move_all(service, all_in(target)))
            while not (rebuilding.done() and moving.done()):
                for id in ids:
                    await service.execute(Counted, id, Counted.add, 1)
                    done[id] += 1
            await asyncio.gather(rebuilding, moving)
            await service.rebuild()
            await check_order(service, done)
            assert (await verify(service.runtime, projection)).ok


async def test_a_row_is_explained_by_events_of_several_logs(place: Place) -> None:
    """In the stream's order, whichever log holds them."""
    async with place.opened("s", "p") as service:
        await service.save(Counted(id="x"))
        for target in ("p", "s", "p"):
            await service.execute(Counted, "x", Counted.add, 1)
            await move_all(service, all_in(target))
        await service.execute(Counted, "x", Counted.add, 1)
        await check_order(service, {"x": 4})
        (report,) = await explain(service.runtime, "sums", ["x"])
        causes: list[AppliedEvent[Any]] = [cause.event for cause in report.explanation.causes]
        assert [(e.version, e.position.log) for e in causes] == [
            (2, "counts.s"), (3, "counts.p"), (4, "counts.s"), (5, "counts.p"),
        ]  # fmt: skip


async def test_a_stream_that_is_parked_stays_so_when_its_slot_moves(place: Place) -> None:
    """Later events of it, in the other log, are set aside behind it; a retry applies all of them in order."""
    broken, seen = {"x"}, []
    view = Projection("sums", model=SqlModel(TABLES), then="park", retries=0)

    @view.on(Added)
    def added(e: Event[Added], db: Tables) -> None:
        if e.stream_id in broken:
            raise ValueError("no")
        seen.append((e.stream_id, e.version))
        db.increment(SUMS, id=e.stream_id, n=e.data.n)

    service = Service("counts", aggregates=[Counted], projections=[view], router=all_in("s"))
    async with place.opened("s", "p", service=service):
        for id in ("x", "y"):
            await service.save(Counted(id=id))
            await service.execute(Counted, id, Counted.add, 1)
        await move_all(service, all_in("p"))
        for id in ("x", "y"):
            position = await service.execute(Counted, id, Counted.add, 10)
        await service.wait(position)
        with pytest.raises(Parked):
            await service.wait(await service.execute(Counted, "x", Counted.add, 100))
        rows = (await service.query(sa.select(SUMS.c.id, SUMS.c.n))).all()
        assert {row.id: row.n for row in rows} == {"y": 11}
        assert (await verify(service.runtime, view)).ok


async def test_the_command_line_moves_slots_between_kinds_of_stores(place: Place) -> None:
    """A plan before, and everything is where it was said to be: added, drained, evened out."""
    stores = {shard: place.url(shard) for shard in ("s", "p")}
    async with shop.open(store={"s": stores["s"]}, run="none"):
        for n in range(20):
            await shop.save(Cart(id=f"cart-{n}"))
    command_line = Shop(place.directory)

    def evsync(*arguments: str, **more: str) -> list[str]:
        verb, *rest = arguments
        environment = {"EVSYNC_SHOP_STORE": json.dumps(stores), **more}
        done = command_line.evsync("shards", verb, "tests.sharded_shop:shop", *rest, **environment)
        return [*done.stdout.splitlines()]

    def shown() -> dict[str, tuple[int, int, int]]:
        rows = map(json.loads, evsync("show", "--json"))
        return {row["shard"]: (row["slots"], row["streams"], row["events"]) for row in rows}

    assert evsync("add", "p") == ["s -> p: 128 slots", "moved 128 slots in 2 steps"]
    assert evsync("drain", "p", "--dry-run") == ["p -> s: 128 slots"]
    apart = shown()
    assert [apart[shard][0] for shard in "sp"] == [128, 128]
    assert apart["s"][1] + apart["p"][1] == apart["s"][2] == 20
    evsync("drain", "s")
    assert shown() == {"s": (0, 0, 20), "p": (256, 20, 0)}
    assert evsync("rebalance", RING="p,s")[-1] == "moved 128 slots in 2 steps"


async def test_a_world_has_shards_in_memory() -> None:
    """A service with a router is spread over its shards, moves included, and a projection follows them all."""
    router = HashRing(["a", "b"])
    service = counts(router)
    async with world(service) as made:
        ids = [f"s{n}" for n in range(20)]
        for id in ids:
            position = await service.save(Counted(id=id))
            assert position.log == f"counts.{router.shard_of(id)}"
        await made.settled()
        apart = next(id for id in ids if router.shard_of(id) != router.shard_of("s0"))
        with pytest.raises(AcrossShards):
            await service.save(Counted(id="{s0}"), Counted(id=f"{{{apart}}}"))
        steps: list[Step] = []
        await bring_about(home(service).stores, all_in("b").placement, steps.append)
        assert [step.what for step in steps[-3:]] == ["copied", "closed", "opened"]
        for id in ids:
            await service.execute(Counted, id, Counted.add, 1)
        await made.settled()
        await check_order(service, dict.fromkeys(ids, 1))
