"""The command line's way with backups: what it prints, its exit codes, what it refuses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from evsync import Service, SnapshotPolicy
from evsync.cli import app
from evsync.jetstream.server import EmbeddedServer
from tests.cli_shop import Item
from tests.command_line import Shop, item, until

pytestmark = pytest.mark.anyio

MODULE = """
from datetime import timedelta

from evsync import BackupPolicy, Service
from tests.cli_shop import Item, Shelf, builder, view

stock = Service("stock", aggregates=[Item, Shelf], projections=[view], reactions=[builder],
                backups=BackupPolicy(targets=["disk-a", "disk-b"], loss=0.1, interval=timedelta(milliseconds=20)))
bare = Service("stock", aggregates=[Item, Shelf])
"""


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """A shop whose stock is backed up."""
    (tmp_path / "archived.py").write_text(MODULE)
    return Shop(tmp_path)


def segments(shop: Shop, place: str) -> list[Path]:
    """The files of a place."""
    return sorted((shop.directory / place).rglob("*.segment"))


async def test_backups_from_run_to_restore(shop: Shop) -> None:
    """Run, list, verify, drill, restore: as JSON, for programs."""
    await shop.save(item("sku-1", 5, 6, 7), item("sku-2", 8))
    [ran] = shop.json("backup", "run", "archived:stock")
    assert (ran["ok"], ran["backed_up"], ran["copies"]) == (True, 4, 2)
    [drilled] = shop.json("backup", "drill", "archived:stock")
    assert (drilled["ok"], drilled["position"], drilled["aggregates"]) == (True, 4, 2)
    [listed] = shop.json("backup", "list", "archived:stock")
    assert [(c["target"], c["last"], c["drill"]["ok"]) for c in listed] == [("disk-a", 4, True), ("disk-b", 4, True)]
    [restored] = shop.json("restore", "archived:stock", "--to", "sqlite:///restored.db", "--position", "3")
    assert (restored["position"], restored["parent"]) == (0, ran["incarnation"])  # all four are one commit
    [again] = shop.json("restore", "archived:stock", "--to", "sqlite:///again.db")
    assert (again["position"], again["events"]) == (4, 4)
    tail = shop.evsync("tail", "archived:stock", EVSYNC_STOCK_STORE="sqlite:///again.db").stdout
    assert "stock.evsync.LogRestored" in tail.splitlines()[-1]


async def test_damage_is_shown_and_worked_around(shop: Shop) -> None:
    """The exit code is 1, the segment is named, and a restore takes it from the other place."""
    await shop.save(item("sku-1", 5, 6, 7))
    shop.evsync("backup", "run", "archived:stock")
    [file] = segments(shop, "disk-a")
    file.write_bytes(file.read_bytes()[:-1])
    shown = shop.evsync("backup", "verify", "archived:stock", code=1).stdout
    assert f"{file.relative_to(shop.directory / 'disk-a')} in disk-a: its" in shown
    restored = shop.evsync("restore", "archived:stock", "--to", "sqlite:///restored.db").stdout
    assert "worked around" in restored
    assert "3 events" in restored
    one_place = ("restore", "archived:stock", "--to", "sqlite:///other.db", "--from", "disk-a")
    assert "do not have the SHA-256" in shop.evsync(*one_place, code=1).stderr


async def test_too_few_places_are_a_failure(shop: Shop) -> None:
    """The exit code is 1, and the place and the reason are shown."""
    await shop.save(item("sku-1", 5))
    (shop.directory / "disk-b").write_text("no directory")
    shown = shop.evsync("backup", "run", "archived:stock", code=1).stdout
    assert "archived up to position 0 of 1 in 2 places" in shown
    assert "the backup directory disk-b" in shown
    assert segments(shop, "disk-a")


async def test_a_service_makes_backups_while_it_runs(shop: Shop) -> None:
    """`evsync run` has them among its parts."""
    await shop.save(item("sku-1", 5))
    with shop.running("run", "archived:stock", "--only", "backup") as running:
        assert running.line().startswith("stock runs backup;")
        until(lambda: all(segments(shop, place) for place in ("disk-a", "disk-b")), "two copies of the first item")
        await shop.save(item("sku-2", 6))
        until(lambda: all(len(segments(shop, p)) == 2 for p in ("disk-a", "disk-b")), "two copies of both items")
        code, _, err = running.end()
    assert (code, err) == (0, "")
    [verified] = shop.json("backup", "verify", "archived:stock")
    assert [copy["last"] for copy in verified["copies"]] == [2, 2]


def test_what_cannot_be_done_is_refused(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to do instead, and nothing touched."""
    monkeypatch.chdir(shop.directory)
    monkeypatch.syspath_prepend(str(shop.directory))
    monkeypatch.setenv("EVSYNC_STOCK_STORE", shop.store)
    monkeypatch.delenv("EVSYNC_NATS", raising=False)
    asyncio.run(shop.save(item("sku-1", 5)))

    def refused(*arguments: str, code: int = 2) -> str:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == code, done.output
        return " ".join(done.output.split())

    for command in ("run", "list", "verify", "drill"):
        assert "has no backups" in refused("backup", command, "archived:bare")
    unasked = refused("archive", "trim", "archived:bare", "--to", "1")
    assert "has no backups" in unasked, "what cannot be done is not asked about"
    assert "will be made anew" not in unasked
    to = ("--to", "sqlite:///restored.db")
    assert "there is no archive" in refused("restore", "archived:stock", *to, code=1)
    assert CliRunner().invoke(app, ("backup", "run", "archived:stock")).exit_code == 0
    for wrong, code, words in [
        (("--to", "sqlite:///stock.db"), 2, "is there already"),
        (("--to", "memory://"), 2, "a store that lasts"),
        ((*to, "--at", "yesterday"), 2, "is not a time"),
        ((*to, "--position", "9"), 1, "which ends at 1"),
        ((*to, "--incarnation", "x"), 1, "no archive of incarnation x"),
        ((*to, "--from-stream"), 2, "EVSYNC_NATS"),
        ((*to, "--from", "ftp://x"), 2, "not a place for backups"),
    ]:
        assert words in refused("restore", "archived:stock", *wrong, code=code), wrong
    assert not (shop.directory / "restored.db").exists()
    assert "has no projection and no reaction 'x'" in refused("reset", "archived:stock", "x", "--yes")
    assert "no terminal" in refused("reset", "archived:stock", "items")


async def test_a_restore_shows_a_bar_on_a_terminal(shop: Shop) -> None:
    """And what it did, when it is done."""
    await shop.save(item("sku-1", 5))
    shop.evsync("backup", "run", "archived:stock")
    code, screen = shop.on_terminal("restore", "archived:stock", "--to", "sqlite:///restored.db")
    assert code == 0
    assert "Restoring" in screen
    assert "it goes on as incarnation" in screen


async def test_a_trim_of_what_is_not_archived_is_refused(
    shop: Shop, tmp_path: Path, nats_server: EmbeddedServer
) -> None:
    """Unless enough copies hold it whole; then the stream begins behind it."""
    trim = ("archive", "trim", "archived:stock", "--to", "3", "--yes")
    await shop.save(item("sku-1", 5, 6, 7, 8))
    with shop.running("run", "archived:stock", "--only", "relay", EVSYNC_NATS=nats_server.url) as running:
        assert running.line().startswith("stock runs relay;")
        until(lambda: "positions 1 to 4" in _checked(shop, nats_server.url), "the relay publishes everything")
        refused = shop.evsync(*trim, code=1, EVSYNC_NATS=nats_server.url).stderr
        assert "whole in 0 places" in refused
        beyond = ("archive", "trim", "archived:stock", "--to", "50", "--yes")
        assert "ends at position 4, before 50" in shop.evsync(*beyond, code=2, EVSYNC_NATS=nats_server.url).stderr
        shop.evsync("backup", "run", "archived:stock")
        [file] = segments(shop, "disk-a")
        whole = file.read_bytes()
        file.write_bytes(whole[:-1])
        refused = shop.evsync(*trim, code=1, EVSYNC_NATS=nats_server.url).stderr
        assert "whole in 1 places (disk-b), and the policy needs 2" in refused
        assert "positions 1 to 4" in _checked(shop, nats_server.url)
        file.write_bytes(whole)
        shown = shop.evsync(*trim, EVSYNC_NATS=nats_server.url).stdout
        assert "positions 4 to 4; the log's head is 4" in shown


def _checked(shop: Shop, nats: str) -> str:
    """What `evsync stream check` says, whether there is a stream yet or not."""
    return shop.evsync("stream", "check", "archived:stock", code=None, EVSYNC_NATS=nats).stdout


async def test_a_reset_asks_first(shop: Shop) -> None:
    """On a terminal; then the tables are gone, and made anew by the next run."""
    await shop.save(item("sku-1", 5))
    code, screen = shop.on_terminal("reset", "archived:stock", "items", answer="y")
    assert code == 0, screen
    assert "Go on?" in screen
    assert "are made anew" in screen


@pytest.fixture
def run(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command in this process, to its end, which must be with this exit code: what it wrote."""
    monkeypatch.chdir(shop.directory)
    monkeypatch.syspath_prepend(str(shop.directory))
    monkeypatch.setenv("EVSYNC_STOCK_STORE", shop.store)
    monkeypatch.delenv("EVSYNC_NATS", raising=False)

    def run(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == code, done.output
        return done.stdout if code == 0 else done.output

    return run


def test_services_are_marked_and_restored_to_the_mark(shop: Shop, run: Callable[..., str]) -> None:
    """The mark is listed and verified; a restore to it stops there, whatever was archived since."""
    asyncio.run(shop.save(item("sku-1", 5)))
    shown = run("backup", "mark", "archived:stock", "--name", "noon").splitlines()
    assert shown[0] == "mark noon"
    assert shown[2].split()[2:] == ["1", "0", "2", "disk-a,", "disk-b"]
    asyncio.run(shop.save(item("sku-2", 6)))
    second = json.loads(run("backup", "mark", "archived:stock", "--json"))
    assert [(m["log"], m["position"], m["places"]) for m in second["logs"]] == [("stock.main", 2, ["disk-a", "disk-b"])]
    listed = json.loads(run("backup", "list", "archived:stock", "--json"))
    assert [[(m["name"], m["logs"]) for m in c["marks"]] for c in listed] == [
        [("noon", {"stock.main": 1}), (second["name"], {"stock.main": 2})]
    ] * 2
    assert "noon" in run("backup", "list", "archived:stock")
    to = ("restore", "archived:stock", "--to")
    restored = json.loads(run(*to, "sqlite:///restored.db", "--mark", "noon", "--json"))
    assert (restored["position"], restored["parent"]) == (1, second["logs"][0]["incarnation"])
    (shop.directory / "disk-a" / "stock.main" / "marks" / "noon.json").write_text("{}")
    assert "noon.json in disk-a" in run("backup", "verify", "archived:stock", code=1)
    assert "noon.json in disk-a" in run("backup", "list", "archived:stock")
    run(*to, "sqlite:///other.db", "--mark", "noon")  # from the other place
    assert "there is no mark 'midnight'" in run(*to, "sqlite:///x.db", "--mark", "midnight", code=1)
    assert "--mark" in run(*to, "sqlite:///x.db", "--mark", "noon", "--position", "1", code=2)


def test_damaged_segments_are_listed_and_mended(shop: Shop, run: Callable[..., str]) -> None:
    """The list shows what can be read, and what cannot; verify says how it is mended, and the next backup does it."""
    for sku in ("sku-1", "sku-2", "sku-3"):
        asyncio.run(shop.save(item(sku, 5)))
        run("backup", "run", "archived:stock")
    first, second, _ = segments(shop, "disk-a")
    first.write_text("nothing")
    content = bytearray(second.read_bytes())
    content[-40] ^= 1
    second.write_bytes(content)
    listed = run("backup", "list", "archived:stock").splitlines()
    assert [line.split()[2:4] for line in listed[1:3]] == [["2", "3"], ["3", "3"]]
    assert f"{first.name} in disk-a: it is no segment" in listed[3]
    verified = run("backup", "verify", "archived:stock", code=1)
    assert "delete the files of damaged segments: the next `evsync backup run` writes them anew" in verified
    second.unlink()
    assert ["disk-a", "3", "2", "0"] in [line.split() for line in run("backup", "run", "archived:stock").splitlines()]
    [whole] = shop.json("backup", "verify", "archived:stock")
    assert ([c["last"] for c in whole["copies"]], whole["problems"]) == ([3, 3], [])


def test_a_store_is_trimmed_and_says_so(shop: Shop, run: Callable[..., str]) -> None:
    """Asked first, refused without an archive, and shown by `store info`; history is read as before."""
    (shop.directory / "trimmed.py").write_text(
        """
from evsync import BackupPolicy, Service, SnapshotPolicy
from tests.cli_shop import Item

stock = Service("stock", aggregates=[Item], snapshots=SnapshotPolicy(every_events=2),
                backups=BackupPolicy(targets=["disk-a"], loss=0.01))
"""
    )
    asyncio.run(_save_with_snapshots(shop))
    trim = ("archive", "trim", "trimmed:stock", "--to", "4", "--store")
    assert "no terminal" in run(*trim, code=2)
    assert "ends at position 4, before 9" in run(*trim, "--to", "9", "--yes", code=2)
    assert "whole in 0 places" in run(*trim, "--yes", code=1)
    run("backup", "run", "trimmed:stock")
    before = run("tail", "trimmed:stock", "--after", "0")
    shown = run(*trim, "--yes").splitlines()
    assert shown[0] == "log stock.main: trimmed up to position 4; 3 events of 1 stream left the store"
    info = json.loads(run("store", "info", "trimmed:stock", "--json"))
    assert (info["head"], info["events"], info["trimmed"]) == (4, 1, 4)
    assert "trimmed up to" in run("store", "info", "trimmed:stock")
    assert "all is well" in run("store", "check", "trimmed:stock")
    assert run("tail", "trimmed:stock", "--after", "0") == before
    again = json.loads(run(*trim, "--yes", "--json"))
    assert (again["dropped"], again["position"]) == (0, 4)


async def _save_with_snapshots(shop: Shop) -> None:
    service = Service("stock", aggregates=[Item], snapshots=SnapshotPolicy(every_events=2), store=shop.store, run=())
    async with service.open():
        await service.save(item("sku-1", 5, 6, 7, 8))
