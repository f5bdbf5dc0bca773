"""`evsync parked`: streams that a projection has set aside, and what a person does about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from evsync import Parked
from tests.cli_parking import stock
from tests.command_line import PATIENCE_S, Shop, item

pytestmark = pytest.mark.anyio
TARGET = "tests.cli_parking:stock"


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """A directory for the stores."""
    return Shop(tmp_path)


async def filled(shop: Shop) -> None:
    """Three items, two of which have cost 13 for a while, and a read model that has come past them."""
    async with stock.open(store=shop.store, nats=""):
        last = await stock.save(item("sku-0", 10), item("sku-1", 11, 13, 20), item("sku-2", 12, 13, 20))
        with pytest.raises(Parked, match="parked stream 'sku-1'"):
            await stock.wait(last, timeout_s=PATIENCE_S)


async def test_parked_streams_are_listed_shown_retried_and_skipped(shop: Shop) -> None:
    """Everything about them is told, for people and for programs; what succeeds is free again."""
    await filled(shop)
    assert "prices: 4 events are parked; see `evsync parked list`" in shop.evsync("status", TARGET).stdout

    listed = shop.evsync("parked", "list", TARGET).stdout.splitlines()
    assert [line.split()[:6] for line in listed] == [
        ["projection", "service", "stream", "events", "position", "type"],
        ["prices", "stock", "sku-1", "2", "3", "stock.Item.Priced"],
        ["prices", "stock", "sku-2", "2", "6", "stock.Item.Priced"],
    ]
    assert listed[1].endswith("ValueError: 13 is unlucky")
    first, second = shop.json("parked", "list", TARGET, "prices")
    assert (first["stream"], first["events"], first["first"]["data"]["price"]) == ("sku-1", 2, "13")
    assert [e["reason"] for e in shop.json("parked", "show", TARGET, "prices", "sku-1")] == [
        "ValueError: 13 is unlucky",
        None,
    ]
    events = {e["position"]: e for e in shop.json("tail", TARGET)}
    for parked in shop.json("parked", "show", TARGET, "prices", "sku-1"):
        assert parked == {**events[parked["position"]], "reason": parked["reason"]}, "an event has one JSON form"
    shown = shop.evsync("parked", "show", TARGET, "prices", "sku-1").stdout
    assert '{"price":"13","on":' in shown
    assert "behind the first" in shown

    failed = shop.evsync("parked", "retry", TARGET, "prices", "--all", code=1)
    assert failed.stderr.count("13 is unlucky") == 2
    assert shop.evsync("parked", "skip", TARGET, "prices", "sku-1").stdout == (
        "stream sku-1: 1 event skipped, 1 still parked: `evsync parked retry` applies the rest\n"
    )
    assert shop.evsync("parked", "retry", TARGET, "prices", "sku-1").stdout == (
        "stream sku-1: 1 event applied, it is free again\n"
    )
    assert shop.evsync("parked", "retry", TARGET, "prices", "--all", MENDED="1").stdout == (
        "stream sku-2: 2 events applied, it is free again\n"
    )
    assert shop.evsync("parked", "list", TARGET).stdout == "nothing is parked\nprices: 1 event skipped for good\n"
    assert second["service"] == "stock"


async def test_what_is_not_parked_is_refused_with_what_there_is(shop: Shop) -> None:
    """A wrong name changes nothing."""
    await filled(shop)
    for arguments, says in (
        (("show", TARGET, "prices", "sku-0"), "stream 'sku-0' is not parked; `evsync parked list` shows which are"),
        (("retry", TARGET, "prices"), "say which stream, or --all"),
        (("skip", TARGET, "nothing", "sku-1"), "has no projection 'nothing' that keeps tables; it has: prices"),
    ):
        assert says in shop.evsync("parked", *arguments, code=2).stderr
