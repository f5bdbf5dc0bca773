"""The JetStream store with three replicas, whose leader is killed under load."""

from __future__ import annotations

import pytest

from evsync.jetstream.server import EmbeddedServer
from evsync.jetstream.store.store import JetStreamStore
from evsync.testing.contracts.samples import one, whole_log
from tests.faults.test_relay_cluster import cluster, leader_of, ready
from tests.jetstream_stores import Load
from tests.relaying import connected, eventually

pytestmark = pytest.mark.anyio

__all__ = ["cluster"]


async def test_a_killed_leader_loses_and_doubles_nothing(cluster: list[EmbeddedServer]) -> None:
    """Leaders step down, and one is killed: saves wait for the election and go on; each is stored once, whole, and
    readable at once, whichever replica answers."""
    urls = ",".join(server.url for server in cluster)
    async with connected(urls) as conn:
        await eventually(lambda: ready(conn), "the cluster ready")
        store = await JetStreamStore.open(f"{urls}/?replicas=3", service="users", patience_s=30)
        load = Load(store)
        async with load.running():
            await load.reaches(60)
            await conn.request(f"$JS.API.STREAM.LEADER.STEPDOWN.{store.stream}", timeout_s=5)
            await load.reaches(120)
            leader = await eventually(lambda: leader_of(conn, store.stream), "a leader")
            cluster[int(leader[1:])].kill()
            await load.reaches(len(load.acknowledged) + 60)
            cluster[int(leader[1:])].restart()
            await load.reaches(len(load.acknowledged) + 30)
        await load.verdict()
        for n in range(30):
            (position,) = await store.append([one("ada", n)])
            assert isinstance(position, int)
            assert len(await store.read_stream("ada")) == n + 1
            assert [e.position for e in await store.read(position - 1, 10)] == [position]
        log = await whole_log(store)
        await store.close()
        again = await JetStreamStore.open(urls, service="users", create=False)
        assert await whole_log(again) == log
        await again.close()
