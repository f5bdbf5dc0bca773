"""What is found out about shards from outside: streams that came with their slots, and a shard that is not named."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from evsync import Service
from evsync.errors import StoreUnavailable, WrongStore
from evsync.inspection import Inspectable
from evsync.operations.store_check import StoreReport, check_store, reader
from evsync.ports import LogReader
from evsync.sharding import RangeRouter
from evsync.sources import StoreSource
from tests.command_line import Shop
from tests.integration.test_shards import Counted, move_all, opened, urls, view
from tests.sharded_shop import Cart, shop

pytestmark = pytest.mark.anyio


async def checked(service: Service) -> list[StoreReport]:
    """What the check finds in each of the service's stores."""
    stores = [store for store in service.stores.values() if isinstance(store, Inspectable)]
    return [await check_store(store, reader(service.codec)) for store in stores]


@pytest.mark.parametrize("kind", ["SQLite", "PostgreSQL", "JetStream"])
async def test_streams_that_came_with_their_slots_are_checked_with_their_imports(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """A stream goes on in its new shard behind events that are in another log: nothing is wrong with that. An import
    that is gone is found."""
    other = urls(tmp_path, "b")["b"]
    if kind == "PostgreSQL":
        other = f"{request.getfixturevalue('postgres_url')}&schema=looked_at"
    elif kind == "JetStream":
        other = f"{request.getfixturevalue('nats_server').url}/"
    ids = [f"stream-{n}" for n in range(20)]
    async with opened(tmp_path, stores={**urls(tmp_path, "a"), "b": other}, run="none") as service:
        await move_all(service, RangeRouter({"a": range(256)}))
        for id in ids:
            counted = Counted(id=id)
            counted.add(1)
            await service.save(counted)
        for shard in ("b",) if kind == "JetStream" else ("b", "a", "b"):
            await move_all(service, RangeRouter({shard: range(256)}))
            for id in ids:
                await service.execute(Counted, id, Counted.add, 1)
        assert [report.problems for report in await checked(service)] == [[], []]
        if kind == "JetStream":
            return
        gone = "DELETE FROM {}imports WHERE stream = 'stream-7' AND version = 1"
        if kind == "PostgreSQL":
            with psycopg.connect(other.partition("&schema")[0], autocommit=True) as connection:
                connection.execute(gone.format("looked_at."))  # type: ignore[arg-type]
        else:
            with closing(sqlite3.connect(tmp_path / "b.db", isolation_level=None)) as file:
                file.execute(gone.format(""))
        [report] = [report for report in await checked(service) if not report.ok]
        assert report.log == "counts.b"
        assert "imported from incarnation" in report.problems[0].text
        assert "'stream-7' goes on with version 2, where 1 belongs" in report.problems[0].text


async def test_a_shard_that_is_not_named_is_missed(tmp_path: Path) -> None:
    """Also one that was drained: without its log read models would wait for it for ever. By whoever opens the service,
    looks at its stores, or follows it."""
    async with opened(tmp_path, "a", "b", run="none") as service:
        await service.save(Counted(id="x"))
        await move_all(service, RangeRouter({"b": range(256)}))
        await service.execute(Counted, "x", Counted.add, 1)
    follower: dict[str, Any] = {"store": "memory://", "views": f"sqlite:///{tmp_path}/follower.db"}
    for shard, said in (("b", "came to shard 'b' from another one"), ("a", "went from shard 'a' to shard 'b'")):
        with pytest.raises((WrongStore, StoreUnavailable), match="not know" if shard == "a" else said):
            async with opened(tmp_path, shard):
                pass
        with pytest.raises(WrongStore, match=said):
            async with Service("follower", projections=[view()]).open(
                **follower, sources={"counts": urls(tmp_path, shard)}
            ):
                pass


async def test_the_check_of_stores_misses_a_shard(tmp_path: Path) -> None:
    """What is there is checked, and the exit code is 1."""
    stores = urls(tmp_path, "a", "b")
    async with shop.open(store=stores, run="none"):
        for n in range(10):
            await shop.save(Cart(id=f"cart-{n}"))
    for shard, said in (("a", "to shard 'b'"), ("b", "a shard is missing")):
        left = json.dumps({shard: stores[shard]})
        done = Shop(tmp_path, "").evsync("store", "check", "tests.sharded_shop:shop", code=1, EVSYNC_SHOP_STORE=left)
        assert "all is well" in done.stdout
        assert said in done.stderr


async def test_who_follows_is_told_when_slots_go_to_a_shard_that_it_does_not_know(tmp_path: Path) -> None:
    """It goes on with what it knows; the reason is there for whoever looks, until the shard is named."""
    async with opened(tmp_path, "a", "b", run="none") as service:
        await move_all(service, RangeRouter({"a": range(256)}))
        await service.save(Counted(id="x"))
    async with opened(tmp_path, "a", "b", "c", run="none") as service:
        source = StoreSource("counts", urls(tmp_path, "a", "b"))
        await source.check()
        readers: list[LogReader] = list(await source.readers())
        await move_all(service, RangeRouter({"c": range(256)}))
        with pytest.raises(StoreUnavailable, match=r"to shard 'c', and of the service's shards only a, b are named"):
            await source.readers()
        assert [e.stream for e in await readers[0].read(0, 1, 0)] != []
        await source.close()
