"""`evsync store`: what its users see."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event

from evsync.jetstream.server import EmbeddedServer
from tests.command_line import Shop, item

pytestmark = pytest.mark.anyio


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """No store yet."""
    return Shop(tmp_path)


def test_a_store_is_made_once(shop: Shop) -> None:
    """`init` makes it, says so, and does no harm the second time; before, there is nothing to look at."""
    assert "there is no store at" in shop.evsync("store", "info", "tests.cli_shop:stock", code=1).stderr
    assert not (shop.directory / "stock.db").exists()
    [made] = shop.json("store", "init", "tests.cli_shop:stock")
    assert (made["log"], made["slots"], made["made"]) == ("stock.main", 256, True)
    again = shop.evsync("store", "init", "tests.cli_shop:stock").stdout
    assert again == f"the store of stock.main is there already: incarnation {made['incarnation']}, 256 slots\n"


async def test_a_store_is_described_and_checked(shop: Shop) -> None:
    """In words and as JSON; a store that is as it must be ends with 0."""
    await shop.save(item("sku-1", 5, 6, 7), item("sku-2", 1))
    [facts] = shop.json("store", "info", "tests.cli_shop:stock")
    assert (facts["kind"], facts["log"], facts["head"], facts["events"]) == ("SQLite", "stock.main", 4, 4)
    assert (facts["streams"], facts["snapshots"], facts["checkpoints"]) == (2, 0, [])
    seen = shop.evsync("store", "info", "tests.cli_shop:stock").stdout
    assert "kind         SQLite\n" in seen
    assert "events       4\n" in seen
    checked = shop.evsync("store", "check", "tests.cli_shop:stock").stdout.splitlines()
    assert checked == [
        "stock.main: 4 events of 2 streams read, all is well",
        f"incarnation {facts['incarnation']}; the log's head is 4",
    ]
    [report] = shop.json("store", "check", "tests.cli_shop:stock")
    assert (report["ok"], report["checked"], report["problems"]) == (True, 4, [])


async def test_damage_ends_with_1_and_says_what_to_do(shop: Shop) -> None:
    """The position, what is wrong there, what to do; for programs too."""
    await shop.save(item("sku-1", 5, 6, 7))
    with closing(sqlite3.connect(shop.directory / "stock.db", isolation_level=None)) as c:
        c.execute("DELETE FROM events WHERE position = 2")
    seen = shop.evsync("store", "check", "tests.cli_shop:stock", code=1).stdout
    assert "stock.main: 2 events of 1 stream read, 2 problems\n" in seen
    assert "position 2: this position is missing; the next event stands at 3\n" in seen
    assert seen.splitlines()[-1].startswith("Stop what writes to this store, keep a copy of it as it is, and restore")
    report = shop.evsync("store", "check", "tests.cli_shop:stock", "--json", code=1).stdout
    assert '"ok":false' in report
    assert '"position":2,"law":"positions"' in report


async def test_a_bar_shows_how_far_a_check_is(shop: Shop) -> None:
    """On a terminal, and it is gone in the end."""
    await shop.save(item("sku-1", *range(1, 600)))
    code, seen = shop.on_terminal("store", "check", "tests.cli_shop:stock")
    assert code == 0
    assert "Checking" in seen
    assert seen.endswith("the log's head is 599\n")


class Dog(Aggregate):
    """Of an application that knows nothing of evsync."""

    @event("Registered")
    def __init__(self, name: str) -> None:
        self.name = name


def test_a_store_without_a_service_is_named_and_located(shop: Shop) -> None:
    """As an eventsourcing application's is; its events are read as the library reads them."""
    url = f"sqlite:///{shop.directory}/dogs.db"
    dogs: Application = Application(
        {"PERSISTENCE_MODULE": "evsync.interop.eventsourcing", "EVSYNC_STORE": url, "EVSYNC_SERVICE": "dogs"}
    )
    with dogs:
        dogs.save(Dog("Fido"))
        dogs.save(Dog("Rex"))
    seen = shop.evsync("store", "check", "dogs", "--store", url).stdout
    assert "dogs.main: 2 events of 2 streams read, 2 of them by another library, all is well" in seen
    nowhere = shop.evsync("store", "check", "dogs", code=2).stderr
    assert "EVSYNC_DOGS_STORE" in nowhere
    memory = shop.evsync("store", "info", "dogs", "--store", "memory://", code=2).stderr
    assert "a store in memory lives and ends with its process" in memory


def test_a_store_on_nats_is_made_and_checked(shop: Shop, nats_server: EmbeddedServer) -> None:
    """The same commands, whatever the store."""
    url = f"{nats_server.url}/?stream=STOCK"
    assert shop.json("store", "init", "tests.cli_shop:stock", "--store", url)[0]["made"]
    assert shop.json("store", "info", "tests.cli_shop:stock", "--store", url)[0]["kind"] == "JetStream"
    assert shop.json("store", "check", "tests.cli_shop:stock", "--store", url)[0]["ok"]
