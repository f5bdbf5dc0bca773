"""kill -9 of every process on the way from command to read model, again and again, under load."""

from __future__ import annotations

from pathlib import Path

import pytest

from evsync.jetstream.server import EmbeddedServer
from tests.spine import Spine

pytestmark = pytest.mark.anyio


async def test_a_producer_killed_under_load_loses_and_doubles_nothing(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """Writer and relay die in the middle of commits and of publishing; what was acknowledged is there, once."""
    async with Spine.at(tmp_path, nats_server.url) as spine:
        await spine.desk()
        for saves in (50, 150, 300):
            bank = await spine.bank()
            await bank.saves(saves)
            await bank.kill()
        await spine.in_step()


async def test_a_consumer_killed_under_load_applies_every_event_once(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """The checkpoint is in the transaction: read models and answers go on exactly where they were."""
    async with Spine.at(tmp_path, nats_server.url) as spine:
        await spine.bank()
        for events in (1, 300, 500):
            desk = await spine.desk()
            await spine.applies(events)
            await desk.kill()
        await spine.in_step()


async def test_a_server_killed_under_load_loses_and_doubles_nothing(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """Saves go on, and the read model catches up when the server is back on its directory."""
    async with Spine.at(tmp_path, nats_server.url) as spine:
        bank, _ = await spine.bank(), await spine.desk()
        for _ in range(3):
            await spine.applies(200)
            nats_server.kill()
            await bank.saves(100)
            nats_server.restart()
        await spine.in_step()


async def test_everything_killed_at_once_comes_back_in_step(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """As when a machine goes down: each part finds its place again from its own files."""
    async with Spine.at(tmp_path, nats_server.url) as spine:
        bank, desk = await spine.bank(), await spine.desk()
        await spine.applies(200)
        nats_server.kill()
        await bank.kill()
        await desk.kill()
        nats_server.restart()
        await spine.in_step()
