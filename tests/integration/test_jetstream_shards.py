"""A service whose shards are JetStream streams, alone or beside others: placed, read, projected, moved to."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from evsync import Service
from evsync.control import is_control
from evsync.errors import ConfigurationError, SlotMoved
from evsync.jetstream.server import EmbeddedServer
from evsync.jetstream.store.store import JetStreamStore
from evsync.sharding import HashRing, RangeRouter, Router, slot_of
from evsync.sharding.handover import bring_about
from evsync.sharding.truth import truth
from evsync.testing.contracts.samples import one
from tests.command_line import Shop
from tests.integration.test_shards import SUMS, Counted, check_order, counts, home, move_all, view
from tests.relaying import eventually
from tests.sharded_shop import Cart, shop

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def opened(
    directory: Path, server: EmbeddedServer, shards: str, *, router: Router | None = None, **more: Any
) -> AsyncIterator[Service]:
    """The service with these shards: small letters are files, capital ones streams of the letter's small name."""
    service = counts(router)
    views = {"views": f"sqlite:///{directory}/views.db"}
    async with service.open(store=urls(directory, server, shards), **(views | more)):
        yield service


def urls(directory: Path, server: EmbeddedServer, shards: str) -> Mapping[str, str]:
    """A file, or a stream, for each."""
    return {s.lower(): f"sqlite:///{directory}/{s}.db" if s.islower() else f"{server.url}/" for s in shards}


@pytest.mark.parametrize("shards", ["aBC", "ABC", "ABc"])
async def test_streams_and_files_are_shards_of_one_service(
    tmp_path: Path, nats_server: EmbeddedServer, shards: str
) -> None:
    """Whichever is first: placed by the router, found again, read, projected here and, over NATS, elsewhere."""
    router = HashRing(["a", "b", "c"])
    ids = [f"stream-{n}" for n in range(30)]
    async with opened(tmp_path, nats_server, shards, router=router) as service:
        assert set(service.runtime.relays) == {s for s in shards if s.islower()}
        for id in ids:
            assert (await service.save(Counted(id=id))).log == f"counts.{router.shard_of(id)}"
    async with opened(tmp_path, nats_server, shards, router=router) as service:
        middle = (await service.history(Counted, ids[0]))[-1].time
        for id in ids:
            await service.execute(Counted, id, Counted.add, 1)
        await service.execute(Counted, ids[0], Counted.add, 1)
        assert (await service.get(Counted, ids[0], version=2)).n == 1
        assert (await service.get(Counted, ids[0], at=middle)).n == 0
        await check_order(service, dict.fromkeys(ids, 1) | {ids[0]: 2})
        relays = service.runtime.relays.values()
        await eventually(lambda: all(relay.confirmed for relay in relays), "a stream of each relay")
        audit = Service("audit", projections=[view()])
        async with audit.open(store="memory://", nats=nats_server.url, views=f"sqlite:///{tmp_path}/audit.db"):
            for store in service.stores.values():
                await audit.wait(store.identity.at(await store.head()), timeout_s=20)
            rows = (await audit.query(sa.select(SUMS.c.id, SUMS.c.n))).all()
            assert {row.id: row.n for row in rows} == dict.fromkeys(ids, 1) | {ids[0]: 2}


async def test_slots_move_to_a_stream_while_writers_go_on(tmp_path: Path, nats_server: EmbeddedServer) -> None:
    """With their history, more of it than one page: nothing is lost, doubled or out of order, and nobody sees an error;
    nobody can move them back."""
    ids = [f"stream-{n}" for n in range(12)]
    done: Counter[str] = Counter()
    router = RangeRouter({"a": range(256)})
    async with (
        opened(tmp_path, nats_server, "aB", router=router) as service,
        opened(tmp_path, nats_server, "aB", router=router, run="none") as other,
    ):
        for id in ids:
            await service.save(Counted(id=id))
        for _ in range(1_100):
            await service.execute(Counted, ids[0], Counted.add, 1)
            done[ids[0]] += 1
        stop = asyncio.Event()

        async def write(writer: Service, mine: list[str]) -> None:
            while not stop.is_set():
                for id in mine:
                    await writer.execute(Counted, id, Counted.add, 1)
                    done[id] += 1

        writers = [asyncio.create_task(write(w, ids[n::2])) for n, w in enumerate((service, other))]
        await move_all(other, ("b",) * 256)
        before = Counter(done)
        while any(done[id] <= before[id] for id in ids):
            await asyncio.sleep(0.005)
        stop.set()
        await asyncio.gather(*writers)
        assert {held.shard for held in (await truth(home(service).stores)).values()} == {"b"}
        logs = [e.position.log for e in await service.history(Counted, ids[1])]
        assert logs == sorted(logs)
        assert set(logs) == {"counts.a", "counts.b"}
        assert (await service.get(Counted, ids[0], version=1_000)).n == 999
        await check_order(service, done)
        with pytest.raises(ConfigurationError, match="shard 'b' is a JetStream stream that holds events"):
            await move_all(service, HashRing(["a", "b"]))
        assert {held.state.epoch for held in (await truth(home(service).stores)).values()} == {2}
        await check_order(service, done)


async def test_a_process_that_knew_an_empty_stream_learns_which_slots_left(nats_server: EmbeddedServer) -> None:
    """Its first append states that the log is empty: it is refused, and decided again on what is so."""
    old = await JetStreamStore.open(nats_server.url, service="users", shard="a")
    mover = await JetStreamStore.open(nats_server.url, service="users", shard="a")
    b = await JetStreamStore.open(nats_server.url, service="users", shard="b", owns_slots=False)
    try:
        assert await old.slot_state(slot_of("ada")) is not None
        target = ["b" if slot == slot_of("ada") else "a" for slot in range(256)]
        await bring_about({"a": mover, "b": b}, target)
        refused, stored = await old.append([one("ada"), one("bob")])
        assert isinstance(refused, SlotMoved)
        assert (refused.to, stored) == ("b", 2)
        assert [e.stream for e in await old.read(0, 10) if not is_control(e.type)] == ["bob"]
        assert await b.append([one("ada")]) == [2]
        assert isinstance((await mover.append([one("ada")]))[0], SlotMoved)
    finally:
        for store in (old, mover, b):
            await store.close()


async def test_a_close_and_first_appends_at_once_exclude_one_another(nats_server: EmbeddedServer) -> None:
    """Over and over, on a new stream each time: an append is stored before the slot leaves, or not at all."""
    outcomes: Counter[str] = Counter()
    for n in range(12):
        shards = {"a": f"x{n}", "b": f"y{n}"}
        writers = [await JetStreamStore.open(nats_server.url, service="users", shard=shards["a"]) for _ in range(3)]
        b = await JetStreamStore.open(nats_server.url, service="users", shard=shards["b"], owns_slots=False)
        movable = {shards["a"]: await JetStreamStore.open(nats_server.url, service="users", shard=shards["a"])}
        movable[shards["b"]] = b

        async def append(store: JetStreamStore, number: int, delay_s: float) -> Any:
            await asyncio.sleep(delay_s)
            return (await store.append([one(f"{{tag}}{number}")]))[0]

        moving = asyncio.create_task(bring_about(movable, [shards["b"]] * 256))
        appended = await asyncio.gather(*(append(w, i, n * 0.002) for i, w in enumerate(writers)))
        try:
            await moving
        except ConfigurationError:
            outcomes["kept"] += 1
            finished = False
        else:
            outcomes["moved"] += 1
            finished = True
        log = await writers[0].read(0, 1_000)
        closed = [e.position for e in log if e.type.endswith("SlotClosed") and e.slot == slot_of("{tag}")]
        own = {e.stream: e.position for e in log if not is_control(e.type)}
        assert not (closed and own and max(own.values()) > closed[0])
        for number, outcome in enumerate(appended):
            assert own.get(f"{{tag}}{number}") == (None if isinstance(outcome, SlotMoved) else outcome)
        assert not finished or not own
        for store in (*writers, *movable.values()):
            await store.close()
    assert outcomes["kept"] + outcomes["moved"] == 12


async def test_the_command_line_refuses_before_it_shows_a_plan(tmp_path: Path, nats_server: EmbeddedServer) -> None:
    """`drain` of a stream, also as a dry run; what moves to one is done, shown, and verified."""
    stores = {"a": f"sqlite:///{tmp_path}/a.db", "b": nats_server.url}
    async with shop.open(store=stores, run="none", views=f"sqlite:///{tmp_path}/views.db"):
        for n in range(20):
            await shop.save(Cart(id=f"cart-{n}"))
    environment = {"EVSYNC_SHOP_STORE": json.dumps(stores), "EVSYNC_SHOP_VIEWS": f"sqlite:///{tmp_path}/views.db"}
    line, target = Shop(tmp_path), "tests.sharded_shop:shop"
    for more in (("--dry-run",), ()):
        refused = await asyncio.to_thread(line.evsync, "shards", "drain", target, "b", *more, code=2, **environment)
        assert "'b' is a JetStream stream that holds events" in " ".join((refused.stdout + refused.stderr).split())
        assert "->" not in refused.stdout
    moved = await asyncio.to_thread(line.evsync, "shards", "drain", target, "a", code=0, **environment)
    assert moved.stdout.splitlines()[-1] == "moved 128 slots in 2 steps"
    shown = await asyncio.to_thread(line.evsync, "shards", "show", target, "--json", code=0, **environment)
    rows = {row["shard"]: row for row in map(json.loads, shown.stdout.splitlines())}
    assert (rows["a"]["slots"], rows["b"]["slots"]) == (0, 256)
    assert (rows["a"]["streams"], rows["b"]["streams"]) == (0, 20)
    assert rows["a"]["events"] + rows["b"]["events"] == 20
    state = json.loads((await asyncio.to_thread(line.evsync, "status", target, "--json", **environment)).stdout)
    assert [log["relay"] is not None for log in state["logs"].values()] == [True, False]
