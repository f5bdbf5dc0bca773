"""The whole way while the server forgets, loses files, is not there yet, or has its stream taken from it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from evsync.jetstream import streams
from evsync.jetstream.server import EmbeddedServer
from evsync.jetstream.stream_settings import stream_name
from tests.faults.test_relay_server import put_back, zero_and_lose_index
from tests.relaying import eventually
from tests.spine import Spine

pytestmark = pytest.mark.anyio


async def test_a_server_put_back_to_an_older_state_is_mended(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """Acknowledged messages are gone, also such as the read model has applied: each returns at its own place."""
    async with Spine.at(tmp_path, nats_server.url) as spine:
        await spine.bank()
        desk = await spine.desk()
        await spine.applies(100)
        nats_server.stop()
        shutil.copytree(nats_server.store_dir / "jetstream", tmp_path / "copy")
        nats_server.restart()
        await spine.applies(400)
        nats_server.kill()
        put_back(nats_server, tmp_path / "copy")
        nats_server.restart()
        await spine.applies(300)
        await spine.in_step()
        assert desk.lives


async def test_a_server_that_comes_later_is_waited_for(tmp_path: Path) -> None:
    """Nobody needs it to start, to save, or to end; what was saved meanwhile arrives when it is there."""
    with EmbeddedServer.start(tmp_path / "nats") as server:
        server.stop()
        async with Spine.at(tmp_path, server.url) as spine:
            bank, desk = await spine.bank(), await spine.desk()
            await bank.saves(100)
            assert await bank.terminate() == 0
            bank = await spine.bank()
            await bank.saves(100)
            assert desk.lives
            server.restart()
            await spine.in_step()
            assert bank.lives
            assert desk.lives


async def test_a_stream_deleted_under_load_is_made_anew(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """By a stranger, or by a rebuild that nobody needed: the relay fills it again from the log, and the read model goes
    on where it was."""
    async with Spine.at(tmp_path, nats_server.url) as spine:
        bank, desk = await spine.bank(), await spine.desk()
        await spine.applies(300)
        async with spine.store("bank") as log, spine.connection() as conn:
            await streams.delete(conn, stream_name(log.identity))
        await spine.applies(300)
        await spine.rebuild()
        await spine.applies(300)
        await spine.in_step()
        assert bank.lives
        assert desk.lives


def flip_a_byte(block: Path) -> None:
    """One message in the middle can no longer be read; the server does not know yet."""
    content = bytearray(block.read_bytes())
    at = content.rindex(b"bank.Account.Moved", 0, len(content) * 3 // 4)
    content[at] ^= 0xFF
    block.write_bytes(content)


@pytest.mark.parametrize("damage", [flip_a_byte, zero_and_lose_index])
async def test_a_damaged_block_file_stops_everybody_or_is_mended(
    nats_server: EmbeddedServer, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """What the server cut off is filled again. A hole is an error on both sides, with the place and the mend, and
    after that mend both go on where they were. Nobody ever goes past a message that is missing."""
    async with Spine.at(tmp_path, nats_server.url) as spine:
        bank, desk = await spine.bank(), await spine.desk()
        await spine.applies(100)
        await desk.kill()
        await bank.saves(300)
        nats_server.stop()
        [block] = nats_server.store_dir.glob("jetstream/*/streams/evsync_bank*/msgs/1.blk")
        damage(block)
        end = max(bank.acknowledged.values())
        nats_server.restart()
        desk = await spine.desk()
        await eventually(lambda: not bank.lives or spine.applied_up_to() > end, "an error, or a stream that is mended")
        if not bank.lives:
            for said in (await bank.ends(), await desk.ends()):
                kind, _, text = said.partition(" ")
                assert kind in {"StreamHole", "StreamUnreadable"}
                assert "evsync_bank_main_" in text
                assert "`evsync stream rebuild`" in text
            await spine.rebuild()
        await spine.in_step()
