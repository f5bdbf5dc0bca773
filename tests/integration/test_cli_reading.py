"""`evsync tail`, `replay` and `status`: looking at a service without touching it."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from pathlib import Path
from uuid import UUID

import pytest
import typer
from rich.cells import cell_len

from evsync import Position
from evsync.cli.options import parse_time
from tests.cli_shop import SUPPLIER, stock
from tests.command_line import ANSI, PATIENCE_S, Shop, item

pytestmark = pytest.mark.anyio

HOSTILE = "a\x1b[2J\n*.> 漢字 " + "x" * 300


@pytest.fixture
async def shop(tmp_path: Path) -> Shop:
    """Two items: one with two prices, one with a hostile id."""
    made = Shop(tmp_path)
    await made.save(item("sku-1", 5, 6))
    await made.save(item(HOSTILE, 7))
    return made


def files(shop: Shop) -> set[str]:
    """What lies in the shop's directory."""
    return {path.name for path in shop.directory.iterdir()}


async def test_tail_prints_an_event_a_line_whole_and_without_colours(shop: Shop) -> None:
    """Into a pipe: position, time, type, stream and data of every event, in the order of the log, nothing cut."""
    done = shop.evsync("tail", "tests.cli_shop:stock")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]
    assert re.fullmatch(
        r"1  \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z  stock\.Item\.Listed +sku-1  "
        r'\{"price":"5","supplier":"[0-9a-f-]{36}"\}',
        lines[0],
    )
    assert "a\\x1b[2J\\n*.> 漢字 " + "x" * 300 in lines[2]
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


async def test_tail_cuts_its_lines_to_the_width_of_a_terminal(shop: Shop) -> None:
    """One line an event, ending in … where something is left out."""
    code, seen = shop.on_terminal("tail", "tests.cli_shop:stock", columns=80)
    lines = [ANSI.sub("", line) for line in seen.splitlines()]
    assert code == 0
    assert len(lines) == 3
    assert max(map(cell_len, lines)) <= 80
    assert "…" in lines[2]
    assert '{"price":"5"' in lines[0]


async def test_tail_prints_json_lines_from_any_place_of_chosen_types(shop: Shop) -> None:
    """--after takes a number or a position, --last counts from the end, --type chooses; every value is there."""
    first, second, third = shop.json("tail", "tests.cli_shop:stock")
    assert second["data"]["price"] == "6"
    assert first["data"] == {"price": "5", "supplier": str(SUPPLIER)}
    assert (first["type"], first["stream"], first["version"], first["number"]) == ("stock.Item.Listed", "sku-1", 1, 1)
    assert Position.parse(first["position"]).number == 1
    assert UUID(first["id"])
    assert first["metadata"] == {}
    assert third["stream"] == HOSTILE
    assert shop.json("tail", "tests.cli_shop:stock", "--after", first["position"]) == [second, third]
    assert shop.json("tail", "tests.cli_shop:stock", "--last", "2", "--type", "*.Priced") == [second]
    assert shop.json("tail", "tests.cli_shop:stock", "--after", "2", "--type", "*.Priced") == []


async def test_tail_says_when_no_event_can_be_of_the_type(shop: Shop) -> None:
    """A pattern that fits nothing is probably a mistake: the types are named."""
    done = shop.evsync("tail", "tests.cli_shop:stock", "--type", "Listed")
    assert done.stdout == ""
    assert "No event type of stock matches 'Listed'" in done.stderr
    assert "stock.Item.Listed" in done.stderr


async def test_tail_follows_until_ctrl_c(shop: Shop) -> None:
    """What is saved later is printed at once; Ctrl-C says nothing."""
    with shop.running("tail", "tests.cli_shop:stock", "--follow", "--json") as tail:
        assert [json.loads(tail.line())["number"] for _ in range(3)] == [1, 2, 3]
        await shop.save(item("sku-2", 8))
        assert json.loads(tail.line())["stream"] == "sku-2"
        assert tail.end(signal.SIGINT) == (130, "", "")


async def test_a_reader_that_has_seen_enough_is_no_error(shop: Shop) -> None:
    """`evsync tail … | head -1`: no traceback when the pipe is closed."""
    await shop.save(*(item(f"{n}-{'y' * 400}", 1) for n in range(400)))  # more than a pipe holds
    with shop.running("tail", "tests.cli_shop:stock") as tail:
        assert tail.line().startswith("  1  ")
        assert tail.process.stdout is not None
        tail.process.stdout.close()
        tail.process.wait(PATIENCE_S)
        assert tail.process.stderr is not None
        assert tail.process.stderr.read() == b""


async def test_bad_places_and_times_say_the_form(shop: Shop) -> None:
    """Exit code 2, the option, and what it takes."""
    said = {
        ("tail", "--after", "yesterday"): "--after: 'yesterday' is not a position; one looks like ",
        ("replay", "Item", "sku-1", "--at", "noon"): "--at: 'noon' is not a time; write it as 2026-01-31T12:00:00Z",
        ("replay", "Article", "sku-1"): "service 'stock' has no aggregate 'Article'; it has Item, Shelf",
    }
    for (command, *rest), text in said.items():
        assert text in shop.evsync(command, "tests.cli_shop:stock", *rest, code=2).stderr
    with pytest.raises(typer.BadParameter, match="'2026-01-31' has no time zone; write it as 2026-01-31T12:00:00Z"):
        parse_time("2026-01-31", "--at")


async def test_replay_shows_an_aggregate_as_it_was(shop: Shop) -> None:
    """At a version, at a time that its own history prints, and now."""
    [now] = shop.json("replay", "tests.cli_shop:stock", "Item", "sku-1")
    assert (now["aggregate"], now["id"], now["version"], now["latest_version"]) == ("Item", "sku-1", 2, 2)
    assert now["state"]["price"] == "6"
    assert (now["state"]["supplier"], now["state"]["tags"], now["state"]["since"]) == (
        str(SUPPLIER),
        ["new"],
        "PT1M30S",
    )
    assert now["state"].keys() == {"price", "supplier", "tags", "since", "_on"}
    assert [e["type"] for e in now["history"]] == ["stock.Item.Listed", "stock.Item.Priced"]
    [first] = shop.json("replay", "tests.cli_shop:stock", "Item", "sku-1", "--version", "1")
    assert (first["version"], first["latest_version"], first["state"]["price"]) == (1, 2, "5")
    assert first["history"] == now["history"][:1]
    assert shop.json("replay", "tests.cli_shop:stock", "Item", "sku-1", "--at", now["history"][0]["time"]) == [first]


async def test_replay_prints_attributes_and_history(shop: Shop) -> None:
    """Into a pipe without frames; on a wide terminal beside each other."""
    piped = shop.evsync("replay", "tests.cli_shop:stock", "Item", "sku-1").stdout
    assert re.search(r'^price +"6"$', piped, re.MULTILINE)
    assert re.search(r'^ +2  \S+Z  Priced  \{"price":"6","on":"\d{4}-\d\d-\d\d"\}$', piped, re.MULTILINE)
    assert piped.startswith("Item sku-1, version 2, ")
    assert piped.isascii()
    code, seen = shop.on_terminal("replay", "tests.cli_shop:stock", "Item", "sku-1", columns=120)
    assert code == 0
    assert re.search(r"^attribute +value +version +time +event +data", ANSI.sub("", seen), re.MULTILINE)


async def test_looking_leaves_no_trace_and_makes_no_store(tmp_path: Path) -> None:
    """In the wrong directory there is an error, not a new and empty store."""
    shop = Shop(tmp_path)
    for command in (["status"], ["replay", "Item", "sku-1"]):
        name, *rest = command
        assert "there is no store at" in shop.evsync(name, "tests.cli_shop:stock", *rest, code=1).stderr
    assert files(shop) == set()


async def test_status_without_a_broker_tells_of_every_part(shop: Shop) -> None:
    """Before anything ran: every projection and reaction at 0, and how many events lie before it."""
    [found] = shop.json("status", "tests.cli_shop:stock")
    own = found["logs"]["stock.main"]
    assert (found["service"], own["head"], own["relay"], found["nats"]) == ("stock", 3, None, None)
    assert [(f["kind"], f["name"]) for f in found["followers"]] == [("projection", "items"), ("reaction", "builder")]
    for follower in found["followers"]:
        (log,) = follower["logs"]
        assert 0 < log.pop("lag_s") < PATIENCE_S
        assert log == {
            "log": "stock.main", "position": 0, "head": 3, "lag": 3, "state": "standby", "reason": None, "groups": [],
        }  # fmt: skip
    printed = shop.evsync("status", "tests.cli_shop:stock").stdout
    assert re.search(r"^items +stock\.main +0 +3 +3 +\d+\.\d s +standby$", printed, re.MULTILINE)


async def test_what_reads_a_broker_that_is_away_ends_with_an_error(shop: Shop) -> None:
    """Rather than wait in silence for ever: `tests.cli_shop:reader` reads the log of stock from NATS."""
    away = {"EVSYNC_NATS": "nats://127.0.0.1:1", "EVSYNC_READER_STORE": f"sqlite:///{shop.directory}/reader.db"}
    shop.evsync("store", "init", "tests.cli_shop:reader", **away)

    def refused(name: str, *rest: str) -> None:
        said = shop.evsync(name, "tests.cli_shop:reader", *rest, code=1, **away).stderr
        assert "no log of service 'stock' was found within 5 s: NATS at nats://127.0.0.1:1" in said

    await asyncio.gather(asyncio.to_thread(refused, "verify"), asyncio.to_thread(refused, "diff", "copied"))


async def test_explain_shows_every_column_on_a_narrow_terminal(shop: Shop) -> None:
    """Position, type and stream of each event whole, the long ones below; a row that is not there is no error."""
    said = shop.evsync("explain", "tests.cli_shop:stock", "items", "sku-1").stdout
    assert "is not there now" in said
    async with stock.open(store=shop.store, nats=""):
        position = await stock.save(item("sku-9", 4))
        await stock.wait(position)
    code, seen = shop.on_terminal("explain", "tests.cli_shop:stock", "items", "sku-9")
    assert code == 0
    seen = ANSI.sub("", seen)
    assert f"stock.main  {position.number}  " in seen
    assert "stock.Item.Listed" in seen
    assert "    stream: sku-9" in seen
    assert '"price":"4"' in seen


async def test_reset_asks_nothing_about_what_is_not_there(shop: Shop) -> None:
    """It says which projections and reactions there are."""
    code, seen = shop.on_terminal("reset", "tests.cli_shop:stock", "itmes", answer="y")
    assert code == 2
    assert "[y/N]" not in seen
    assert "it has items, builder" in " ".join(ANSI.sub("", seen).split())
