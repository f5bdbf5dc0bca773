"""How processes end: at a handler that raises, and when they are told to."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from evsync import Halted
from evsync.codec.values import unpack
from evsync.jetstream.server import EmbeddedServer
from tests import spine_services
from tests.spine import LONG_S, Spine, fold, whole
from tests.spine_services import FAILING_TOKEN

pytestmark = pytest.mark.anyio


async def test_a_handler_that_raises_halts_and_is_resumed_when_it_is_mended(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    """The error names type, stream and position; nothing of the batch is applied; whoever waits is told at once; the
    mended handler goes on at that very event."""
    async with Spine.at(tmp_path, nats_server.url) as spine:
        bank = await spine.bank()
        await bank.saves(300)
        await bank.be_quiet()
        token, position = list(bank.acknowledged.items())[200]
        desk = await spine.desk(**{FAILING_TOKEN: token})
        said = await desk.ends()
        async with spine.store("bank") as log:
            events = await whole(log)
        first = next(e for e in events if e.type == "bank.Account.Moved" and unpack(e.data)["token"] == token)
        assert first.position == position - 1
        for word in ("Halted 'accounts'", first.type, repr(first.stream), f"position {first.position} ", "my taste"):
            assert word.replace("\n", " ") in said
        reached = spine.applied_up_to()
        assert reached < first.position
        with closing(sqlite3.connect(spine.views_db)) as c:
            rows = c.execute("SELECT id, owner, balance, moves, notes, version FROM accounts").fetchall()
        applied = {row[0]: row[1:4] + row[5:] for row in rows if row[1] is not None}
        assert applied == {id: row[:3] + row[4:] for id, row in fold(events[:reached], []).accounts.items()}
        async with (
            asyncio.timeout(LONG_S),
            spine_services.desk.open(**spine.settings) as observer,
        ):
            with pytest.raises(Halted) as halted:
                await observer.wait(log.identity.at(position), spine_services.account_view, timeout_s=3600)
        assert (halted.value.position, halted.value.stream) == (first.position, first.stream)
        assert (halted.value.event_type, halted.value.version) == (first.type, first.version)
        await spine.in_step()


async def test_sigterm_under_load_ends_cleanly_and_loses_nothing(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """Exit code 0, every acknowledged save is there, and the read model's place is free for the next at once."""
    async with Spine.at(tmp_path, nats_server.url) as spine:
        bank, desk = await spine.bank(), await spine.desk()
        await spine.applies(200)
        assert await desk.terminate() == 0
        with closing(sqlite3.connect(spine.views_db)) as c:
            leases = c.execute("SELECT DISTINCT projection, expires FROM evsync_leases ORDER BY 1").fetchall()
        assert leases == [("accounts", 0), ("trails", 0)]
        assert await bank.terminate() == 0
        assert "quiet" in bank.lines
        await spine.in_step()
