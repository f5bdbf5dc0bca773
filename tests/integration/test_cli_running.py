"""`evsync nats` and `evsync run`: processes that work until they are told to end."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from evsync.jetstream.server import EmbeddedServer
from tests.command_line import Shop, item, until
from tests.relaying import connected

pytestmark = pytest.mark.anyio


def is_alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def shown(shop: Shop) -> dict[str, str]:
    """The read model, straight from its file."""
    file = shop.directory / "stock_views.db"
    if not file.exists():
        return {}
    db = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
    try:
        return dict(db.execute("SELECT id, price FROM items"))
    except sqlite3.OperationalError:  # no tables yet
        return {}
    finally:
        db.close()


def settled(shop: Shop) -> dict[str, Any] | None:
    """What `evsync status` says, once every part is at the head of what it follows."""
    [found] = shop.json("status", "tests.cli_shop:stock")
    logs = [log for follower in found["followers"] for log in follower["logs"]]
    return found if found["logs"]["stock.main"]["relay"]["lag"] == 0 and all(log["lag"] == 0 for log in logs) else None


async def test_nats_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    """It says where, serves JetStream there, and takes the server with it; the data stays."""
    shop = Shop(tmp_path)
    with shop.running("nats", "--port", "0", "--dir", "data", "--json") as nats:
        told = json.loads(nats.line())
        assert told["dir"] == str(tmp_path / "data")
        async with connected(told["url"]) as conn:
            await conn.api("STREAM.CREATE.things", {"name": "things", "subjects": ["things"]})
        assert nats.end(signal.SIGTERM) == (0, "", "")
        assert not is_alive(told["pid"])
    with shop.running("nats", "--port", told["url"].rpartition(":")[2], "--dir", "data") as nats:
        assert nats.line() == f"NATS with JetStream at {told['url']}, data in data/ (Ctrl-C ends it)"
        assert nats.line() == f"Tell the services:  export EVSYNC_NATS={told['url']}"
        async with connected(told["url"]) as conn:
            assert (await conn.api("STREAM.INFO.things"))["config"]["name"] == "things"
        assert nats.end(signal.SIGINT) == (0, "", "")


async def test_nats_says_why_it_cannot_start(tmp_path: Path, nats_server: EmbeddedServer) -> None:
    """A port that is taken, a directory that cannot be one: exit code 2 and what to do."""
    shop, port = Shop(tmp_path), nats_server.url.rpartition(":")[2]
    said = shop.evsync("nats", "--port", port, code=2).stderr
    assert said.startswith(f"Error: port {port} of 127.0.0.1 cannot be used (Address already in use).")
    assert f"export EVSYNC_NATS={nats_server.url}" in said
    (tmp_path / "file").touch()
    assert "directory file cannot be used" in shop.evsync("nats", "--port", "0", "--dir", "file", code=2).stderr


async def test_nats_ends_when_its_server_dies(tmp_path: Path) -> None:
    """A server that was killed is an error, with the place of its log."""
    with Shop(tmp_path).running("nats", "--port", "0", "--dir", "data", "--json") as nats:
        os.kill(json.loads(nats.line())["pid"], signal.SIGKILL)
        code, _, said = nats.wait()
    assert code == 1
    assert said == "Error: nats-server ended by itself; its log is data/nats-server.log\n"


async def test_run_keeps_every_part_going_and_loses_nothing_at_its_end(
    tmp_path: Path, nats_server: EmbeddedServer
) -> None:
    """Stopped by SIGTERM in the middle of its work it ends with 0; the next one goes on where it was, to the end."""
    shop = Shop(tmp_path, nats_server.url.replace("nats://", "nats://ada:geheim@"))
    await shop.save(*(item(f"sku-{n}", 1) for n in range(400)))
    with shop.running("run", "tests.cli_shop:stock") as run:
        assert run.line() == f"stock runs relay, items, builder; store {shop.store}, NATS {nats_server.url}"
        until(lambda: shown(shop), "the projection does nothing")
        assert run.end(signal.SIGTERM) == (0, "", "")
    with shop.running("run", "tests.cli_shop:stock") as run:
        await shop.save(*(item(f"more-{n}", 2) for n in range(50)))
        until(lambda: len(shown(shop)) == 450, "the projection stands still")
        found = until(lambda: settled(shop), "not all parts come to the head of the log")
        own = found["logs"]["stock.main"]
        assert own["head"] == 900  # each item got one shelf
        assert (own["relay"]["confirmed"], own["relay"]["state"]) == (900, "current")
        assert found["nats"] == nats_server.url
        assert run.end(signal.SIGINT)[::2] == (0, "")
    assert shown(shop) == {f"sku-{n}": "1" for n in range(400)} | {f"more-{n}": "2" for n in range(50)}
    assert len(shop.json("tail", "tests.cli_shop:stock", "--type", "stock.Shelf.Built")) == 450


async def test_run_ends_with_the_error_of_a_part_that_halted(tmp_path: Path) -> None:
    """Exit code 1, the event's type, stream and position, once, and no traceback; `status` still knows why."""
    shop = Shop(tmp_path)
    await shop.save(item("fine", 5))
    await shop.save(item("bad", 13))
    done = shop.evsync("run", "tests.cli_shop:stock", "--only", "items", code=1)
    assert done.stdout == f"stock runs items; store {shop.store}, no NATS server\n"
    assert done.stderr.startswith(
        "Error: 'items' halted at position 2 of log 'stock.main': stock.Item.Listed (version 1 of stream 'bad') could "
        "not be applied: ValueError: 13 is unlucky."
    )
    assert done.stderr.count("\n") == 1
    [follower] = [f for f in shop.json("status", "tests.cli_shop:stock")[0]["followers"] if f["name"] == "items"]
    assert follower["state"] == "halted"
    assert "13 is unlucky" in follower["reason"]


async def test_run_refuses_what_cannot_run(tmp_path: Path) -> None:
    """A part nobody knows, or nothing at all to do: exit code 2, and what there is."""
    shop = Shop(tmp_path)
    unknown = shop.evsync("run", "tests.cli_shop:stock", "--only", "items,nothing", code=2)
    assert "no part named nothing" in unknown.stderr
    assert "builder, items, relay" in unknown.stderr
    nothing = shop.evsync("run", "tests.cli_shop:idle", code=2)
    assert "service 'idle' has nothing to run" in nothing.stderr
    assert "without a NATS server (EVSYNC_NATS) no relay" in nothing.stderr


async def test_a_rebuild_says_what_it_waits_for_and_gives_up_in_time(
    tmp_path: Path, nats_server: EmbeddedServer
) -> None:
    """A broker that is away, then a stream that nobody has made; with --json in the end, too."""
    shop = Shop(tmp_path, nats_server.url)
    read = {"EVSYNC_READER_STORE": "sqlite:///reader.db", "EVSYNC_READER_NATS": nats_server.url}
    for command in (("store", "init", "tests.cli_shop:reader"), ("store", "init", "tests.cli_shop:stock")):
        shop.evsync(*command, **read)
    rebuild = ("rebuild", "tests.cli_shop:reader", "copied", "--grace", "0")
    nats_server.stop()
    away = shop.evsync(*rebuild, "--timeout", "1", code=1, **read)
    first, last = away.stderr.splitlines()
    assert first.startswith("Waiting: ")
    assert f"NATS at {nats_server.url}: " in first
    assert last.startswith("Error: projection 'copied' was not rebuilt: nothing has come of it for ")
    nats_server.restart()
    with shop.running(*rebuild, "--json", **read) as running:
        error = running.process.stderr
        assert error is not None
        assert "there is no stream of service 'stock'" in error.readline().decode()
        await shop.save(item("sku-1", 5))
        shop.evsync("stream", "rebuild", "tests.cli_shop:stock")
        report = json.loads(running.line())
        assert running.wait()[0] == 0
    assert report["events"] == 1
    assert [text.partition(" at ")[0] for text in report["waited_for"]] == ["there is no stream of service 'stock'"]
