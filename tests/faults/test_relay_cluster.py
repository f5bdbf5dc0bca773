"""The relay and a stream of three replicas, whose leaders change and whose nodes die."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from evsync.errors import BrokerError
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.server import EmbeddedServer
from evsync.jetstream.stream_settings import stream_name
from tests.fences import three_servers
from tests.relaying import caught_up, connected, eventually, mirrored_again, new_log, relaying, save

pytestmark = pytest.mark.anyio


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[EmbeddedServer]]:
    """Three servers that know one another."""
    with three_servers(tmp_path) as servers:
        yield servers


async def leader_of(conn: Connection, name: str) -> str:
    """The name of the stream's leader, "" if it has none that answers."""
    with suppress(BrokerError):
        answer = await conn.api(f"STREAM.INFO.{name}", timeout_s=0.5)
        return str(answer["cluster"].get("leader", ""))
    return ""


async def test_changes_of_leader_lose_and_double_nothing(cluster: list[EmbeddedServer]) -> None:
    """Leaders step down and are killed in mid-stream; acknowledgements get lost; event n ends at sequence n."""
    log = new_log()
    name = stream_name(log.identity)
    urls = ",".join(server.url for server in cluster)
    async with connected(urls) as conn, connected(urls) as other:
        await eventually(lambda: ready(conn), "the cluster ready")
        async with relaying(log, conn, replicas=3, window=100) as relay:
            await save(log, 500)
            await caught_up(relay, 100)

            async def keep_saving() -> None:
                while True:
                    await save(log, 3)
                    await asyncio.sleep(0.001)

            task = asyncio.create_task(keep_saving())
            for _ in range(3):
                await caught_up(relay, relay.confirmed + 200)
                leader = await eventually(lambda: leader_of(other, name), "a leader")
                with suppress(BrokerError):
                    await other.api(f"STREAM.LEADER.STEPDOWN.{name}")
            leader = await eventually(lambda: leader_of(other, name), "a leader")
            cluster[int(leader[1:])].kill()
            await asyncio.sleep(0)
            await caught_up(relay, relay.confirmed + 200)
            cluster[int(leader[1:])].restart()
            task.cancel()
            await mirrored_again(log, other)
            assert relay.halted is None


async def ready(conn: Connection) -> bool:
    """Whether the cluster has elected whom it needs."""
    with suppress(BrokerError):
        return bool(await conn.api("STREAM.NAMES", timeout_s=0.5))
    return False
