"""Slots move to a JetStream shard of three replicas under load: movers die between all steps, and so do servers."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from evsync.jetstream.server import EmbeddedServer
from evsync.sharding import RangeRouter
from evsync.sharding.truth import truth
from tests.faults.test_relay_cluster import cluster, leader_of, ready
from tests.faults.test_shard_moves import finished, goes_on, move, writing
from tests.integration.test_shards import Counted, check_order, home, opened
from tests.relaying import connected, eventually

pytestmark = pytest.mark.anyio

__all__ = ["cluster"]


async def test_movers_and_servers_are_killed_while_slots_move_to_a_stream(
    cluster: list[EmbeddedServer], tmp_path: Path
) -> None:
    """A file's slots all go to the stream; its leaders step down, one is killed, and two writers in processes of their
    own go on. Nothing is lost, doubled or out of order."""
    servers = ",".join(server.url for server in cluster)
    stores = {"a": f"sqlite:///{tmp_path}/a.db", "b": f"{servers}/?replicas=3"}
    ids = [f"stream-{n}" for n in range(8)]
    at_first, target = RangeRouter({"a": range(256)}), RangeRouter({"b": range(256)})
    async with connected(servers) as conn:
        await eventually(lambda: ready(conn), "the cluster ready")
        async with opened(tmp_path, stores=stores, router=at_first, run="none") as service:
            for id in ids:
                await service.save(Counted(id=id))
        with writing(tmp_path, stores, ids[::2], ids[1::2]) as writers:
            for die_after in range(1, 4):  # copied, closed, opened
                killed = await asyncio.to_thread(move, tmp_path, stores, target, die_after)
                assert killed == -signal.SIGKILL
            for stream in ("log", "imports"):
                await conn.request(f"$JS.API.STREAM.LEADER.STEPDOWN.evsync_counts_b_{stream}", timeout_s=5)
            moving = asyncio.create_task(asyncio.to_thread(move, tmp_path, stores, target, 0))
            leader = await eventually(lambda: leader_of(conn, "evsync_counts_b_log"), "a leader")
            cluster[int(leader[1:])].kill()
            if await moving != 0:  # an election that took longer than a mover's patience
                assert await asyncio.to_thread(move, tmp_path, stores, target, 0) == 0
            await asyncio.to_thread(cluster[int(leader[1:])].restart)
            for writer in writers:
                await asyncio.to_thread(goes_on, tmp_path, writer)
            done = await asyncio.to_thread(finished, writers)
        async with opened(tmp_path, stores=stores, router=target) as service:
            now = await truth(home(service).stores)
            assert {(held.shard, held.is_open) for held in now.values()} == {("b", True)}
            await check_order(service, done)
