"""`evsync stream`: what stands between a log and the stream that mirrors it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evsync import Service
from evsync.cli.status import _look
from evsync.jetstream import streams
from evsync.jetstream.server import EmbeddedServer
from evsync.jetstream.stream_settings import StreamState, stream_name
from evsync.opening import open_store
from evsync.status import Status
from tests.command_line import ANSI, Shop, item
from tests.relaying import connected, eventually
from tests.sharded_shop import Cart

pytestmark = pytest.mark.anyio


@pytest.fixture
async def shop(tmp_path: Path, nats_server: EmbeddedServer) -> Shop:
    """Three events, no stream yet."""
    made = Shop(tmp_path, nats_server.url)
    await made.save(item("sku-1", 5, 6, 7))
    return made


async def stream_of(shop: Shop, nats_server: EmbeddedServer) -> StreamState | None:
    """The stream of the shop's log, if there is one."""
    log = await open_store(shop.store, service="stock", create=False)
    try:
        async with connected(nats_server.url) as conn:
            return await streams.info(conn, stream_name(log.identity))
    finally:
        await log.close()


def relay_of(shop: Shop) -> dict[str, Any]:
    """What `evsync status` says of the relay."""
    [found] = shop.json("status", "tests.cli_shop:stock")
    relay: dict[str, Any] = found["logs"]["stock.main"]["relay"]
    return relay


async def test_a_stream_is_compared_and_made_anew(shop: Shop, nats_server: EmbeddedServer) -> None:
    """`rebuild` makes what is missing, `check` finds what does not belong there, `rebuild` mends it."""
    assert (
        "there is no stream evsync_stock_main_" in shop.evsync("stream", "check", "tests.cli_shop:stock", code=1).stderr
    )
    made = shop.evsync("stream", "rebuild", "tests.cli_shop:stock")  # nothing to delete, nothing to ask
    assert "3 messages published anew and compared with the log, no difference" in made.stdout
    async with connected(nats_server.url) as conn:
        conn.publish("evsync.stock.main.0.Item.Listed.sku-9", "", b"", b"not an event")
        await eventually(lambda: _reaches(shop, nats_server, 4), "the message did not arrive")
    done = shop.evsync("stream", "check", "tests.cli_shop:stock", code=1)
    assert "4 messages compared with the log, 1 problem" in done.stdout
    assert "sequence 4 of stream" in done.stdout
    [mended] = shop.json("stream", "rebuild", "tests.cli_shop:stock", "--yes", "--allow-loss")
    assert (mended["ok"], mended["compared"], mended["first"], mended["last"], mended["head"]) == (True, 3, 1, 3, 3)
    assert mended["problems"] == []


async def _reaches(shop: Shop, nats_server: EmbeddedServer, last: int) -> bool:
    state = await stream_of(shop, nats_server)
    return state is not None and state.last == last


async def test_nothing_is_deleted_without_consent(shop: Shop, nats_server: EmbeddedServer) -> None:
    """Without a terminal to ask at, or with "n", the stream stays; "y" makes it anew."""
    shop.evsync("stream", "rebuild", "tests.cli_shop:stock", "--yes")
    before = await stream_of(shop, nats_server)
    assert before is not None
    refused = shop.evsync("stream", "rebuild", "tests.cli_shop:stock", code=2)
    assert "Give --yes" in refused.stderr
    code, seen = shop.on_terminal("stream", "rebuild", "tests.cli_shop:stock", answer="n", columns=300)
    assert code == 1
    assert f"Stream {before.name} at {nats_server.url} holds positions 1 to 3. It will be deleted" in ANSI.sub("", seen)
    after = await stream_of(shop, nats_server)
    assert after is not None
    assert after.created == before.created
    code, seen = shop.on_terminal("stream", "rebuild", "tests.cli_shop:stock", answer="y", columns=300)
    assert (code, "no difference" in seen) == (0, True), seen
    after = await stream_of(shop, nats_server)
    assert after is not None
    assert after.created != before.created


async def test_a_stream_needs_a_broker_that_is_there(shop: Shop, nats_server: EmbeddedServer) -> None:
    """No server named is a matter of configuration; one that is away is not, and `status` tells of it all the same."""
    none = shop.evsync("stream", "check", "tests.cli_shop:stock", code=2, EVSYNC_NATS="")
    assert none.stderr == "Error: service 'stock' has no NATS server: set EVSYNC_NATS, such as nats://127.0.0.1:4222\n"
    nats_server.kill()
    with (
        shop.running("stream", "check", "tests.cli_shop:stock") as check,
        shop.running("status", "tests.cli_shop:stock", "--json") as status,
    ):
        found = json.loads(status.line())["logs"]["stock.main"]
        code, _, said = check.wait()
    assert code == 1
    assert "no connection within 3 s" in said
    assert (found["relay"]["state"], found["relay"]["confirmed"], found["head"]) == ("unreachable", None, 3)


async def test_status_takes_no_stream_for_faulty_while_its_service_writes(
    tmp_path: Path, nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was saved and published after a first look at the log is in the stream by then, and in the log too."""
    service = Service("carts", aggregates=[Cart])
    async with service.open(store=f"sqlite:///{tmp_path}/carts.db", nats=nats_server.url):
        status = service.status

        async def status_and_more() -> Status:
            found = await status()
            saved = await service.save(Cart(id="cart"))
            relay = service.runtime.relay
            await eventually(lambda: relay is not None and relay.confirmed == saved.number, "the event in the stream")
            return found

        monkeypatch.setattr(service, "status", status_and_more)
        log = (await _look(service))["logs"]["carts.main"]
        assert (log["head"], log["relay"]["confirmed"], log["relay"]["state"]) == (1, 1, "current")


async def test_status_tells_what_is_wrong_with_a_stream(shop: Shop, nats_server: EmbeddedServer) -> None:
    """Behind, current, or faulty with the reason: all that can be told without reading the stream."""
    relay = relay_of(shop)
    assert (relay["state"], relay["lag"], relay["reason"]) == ("behind", 3, "no relay has made the stream yet")
    shop.evsync("stream", "rebuild", "tests.cli_shop:stock")
    assert relay_of(shop)["state"] == "current"
    async with connected(nats_server.url) as conn:
        config = await conn.api(f"STREAM.INFO.{relay['stream']}")
        await conn.api(f"STREAM.UPDATE.{relay['stream']}", {**config["config"], "discard": "old"})
    found = relay_of(shop)
    assert (found["state"], found["lag"]) == ("faulty", 0)
    assert "discard = 'old'" in found["reason"]


async def test_status_says_what_to_do_about_the_stream_of_another_store(
    shop: Shop, nats_server: EmbeddedServer
) -> None:
    """As the relay does, which cannot make a stream of its own while that one has the subjects."""
    shop.evsync("stream", "rebuild", "tests.cli_shop:stock")
    for file in shop.directory.glob("stock.db*"):
        file.unlink()
    await shop.save(item("sku-1", 4))
    relay = relay_of(shop)
    assert (relay["state"], relay["lag"]) == ("faulty", 1)
    assert "have it made anew: `evsync stream rebuild`" in relay["reason"]
