"""The whole way with two of everything, one of them paused, and with a stranger in the stream."""

from __future__ import annotations

from pathlib import Path

import pytest

from evsync.jetstream.server import EmbeddedServer
from tests.spine import Spine

pytestmark = pytest.mark.anyio

FOREIGN = "evsync.bank.main.7.Account.Moved.plain"


async def test_two_producers_on_one_file_and_one_is_paused(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """Both save to the same accounts, and each has a relay; whoever stands still, the other goes on, and what the
    first had under way when it comes back changes nothing."""
    async with Spine.at(tmp_path, nats_server.url) as spine:
        one, two = await spine.bank(), await spine.bank()
        await spine.desk()
        for paused, other in ((one, two), (two, one)):
            await spine.applies(100)
            await paused.pause_outside_of_transactions(spine.bank_db)
            await other.saves(100)
            await spine.applies(200)
            paused.resume()
            await paused.saves(20)
        await spine.in_step()
        assert one.lives
        assert two.lives


async def test_a_projection_started_twice_and_one_is_paused(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """They share the groups; one that was taken over from adds nothing when it comes back."""
    async with Spine.at(tmp_path, nats_server.url) as spine:
        await spine.bank()
        one = await spine.desk()
        await spine.applies(100)
        two = await spine.desk()
        await one.pause_outside_of_transactions(spine.views_db, spine.desk_db)
        await spine.applies(300)
        one.resume()
        await spine.applies(100)
        await two.kill()
        await spine.applies(100)
        await spine.in_step()
        assert one.lives


async def test_a_foreign_message_stops_everybody_until_the_stream_is_made_anew(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """Both sides say which message it is and how to mend it; then they go on, and no event is missing."""
    async with Spine.at(tmp_path, nats_server.url) as spine:
        bank, desk = await spine.bank(), await spine.desk()
        await spine.applies(100)
        async with spine.connection() as conn:
            answer = await conn.request(FOREIGN, b"I am not an event", timeout_s=5)
        sequence = answer.body.partition(b'"seq":')[2].rstrip(b"} ").decode()
        for process, kind in ((bank, "StreamDiverged"), (desk, "ForeignMessage")):
            said = await process.ends()
            assert said.startswith(f"{kind} ")
            for word in (sequence, "evsync_bank_main_", "`evsync stream rebuild`", "publish"):
                assert word in said
        assert spine.applied_up_to() < int(sequence)
        await spine.rebuild()
        await spine.in_step()
