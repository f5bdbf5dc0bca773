"""`evsync shards`, and what the other commands do of several shards, as their users run them."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from evsync.cli import app
from evsync.jetstream.server import EmbeddedServer
from evsync.sharding import HashRing, slot_of
from tests.command_line import Shop
from tests.sharded_shop import Cart, shop

pytestmark = pytest.mark.anyio
TARGET = "tests.sharded_shop:shop"


class Shards:
    """A directory with a sharded service of 40 carts, two of which were saved together."""

    def __init__(self, directory: Path, nats: str = "") -> None:
        self.directory = directory
        self.shop = Shop(directory, nats)

    def stores(self, *shards: str) -> dict[str, str]:
        """A file for each."""
        return {shard: f"sqlite:///{self.directory}/{shard}.db" for shard in shards}

    async def fill(self, *shards: str) -> None:
        """Made with these shards, by a ring of all."""
        async with shop.open(store=self.stores(*shards), run="none"):
            for n in range(40):
                await shop.save(Cart(id=f"cart-{n}"))
            ring = HashRing(list(shards))
            pair = [n for n in range(100, 200) if ring.shard_of(f"cart-{n}") == ring.shard_of("cart-100")][:2]
            await shop.save(*(Cart(id=f"cart-{n}") for n in pair))

    def evsync(self, shards: str, *arguments: str, code: int = 0, target: str = TARGET, **more: str) -> Any:
        """A command, with the stores of these shards."""
        stores = json.dumps(self.stores(*shards.split()))
        words = 2 if arguments[0] in ("shards", "store", "stream", "backup", "archive") else 1
        named = (*arguments[:words], target, *arguments[words:])
        return self.shop.evsync(*named, code=code, EVSYNC_SHOP_STORE=stores, **more)

    def run(self, shards: str, *arguments: str, code: int = 0, **more: str) -> Any:
        """One of `evsync shards`."""
        return self.evsync(shards, "shards", *arguments, code=code, **more)

    def json(self, shards: str, *arguments: str, code: int = 0) -> list[Any]:
        """The lines of JSON that a command prints."""
        return [json.loads(line) for line in self.evsync(shards, *arguments, "--json", code=code).stdout.splitlines()]

    def show(self, shards: str) -> dict[str, dict[str, Any]]:
        """What `show --json` says, by shard."""
        return {row["shard"]: row for row in self.json(shards, "shards", "show")}


async def test_a_shard_is_planned_before_it_has_a_store(tmp_path: Path) -> None:
    """What would move is told, and nothing is made; of another shard the store must be there."""
    shards = Shards(tmp_path)
    await shards.fill("a", "b")
    planned = shards.evsync("a b c", "shards", "add", "c", "--dry-run")
    assert re.findall(r"(\w) -> c: (\d+) slots", planned.stdout) == [("a", "43"), ("b", "42")]
    assert "Shard c has no store yet" in planned.stderr
    assert not (tmp_path / "c.db").exists()
    missing = shards.evsync("a b c d", "shards", "add", "c", "--dry-run", code=1)
    assert "there is no store at" in missing.stderr


async def test_shards_are_added_shown_drained_and_evened_out(tmp_path: Path) -> None:
    """A plan before, progress during, and everything is where it was said to be."""
    shards = Shards(tmp_path)
    await shards.fill("a", "b")
    before = shards.show("a b")
    assert [before[s]["slots"] for s in "ab"] == [128, 128]
    assert sum(row["streams"] for row in before.values()) == sum(row["events"] for row in before.values()) == 42
    done = shards.run("a b c", "add", "c")
    assert done.stdout.splitlines() == ["a -> c: 43 slots", "b -> c: 42 slots", "moved 85 slots in 2 steps"]
    assert "opened 43 slots from a to c" in done.stderr
    shards.run("a b c", "move", "0-9,255", "a")
    shards.run("a b c", "drain", "b")
    table = shards.run("a b c", "show").stdout.splitlines()
    assert table[0].split() == ["shard", "slots", "leaving", "streams", "events", "bytes", "head"]
    assert table[2].split()[:2] == ["b", "0"]
    assert shards.run("a b c", "move", "0-9", "a", "--dry-run").stdout == "nothing to move\n"
    shards.run("a b c", "rebalance", RING="a,c")
    after = shards.show("a b c")
    assert [after[s]["slots"] for s in "abc"] == [128, 0, 128]
    assert sum(row["streams"] for row in after.values()) == 42


async def test_a_dry_run_shows_the_plan_and_what_it_would_split_and_moves_nothing(tmp_path: Path) -> None:
    """Past commits of several aggregates that would lie on several shards."""
    shards = Shards(tmp_path)
    await shards.fill("a", "b")
    before = shards.show("a b")
    slots = [n for n, owner in enumerate(HashRing(["a", "b"]).placement) if owner == "a"]
    done = shards.run("a b", "move", "--dry-run", ",".join(map(str, slots[:64])), "b", "--json")
    assert json.loads(done.stdout) == {"from": "a", "to": "b", "slots": 64, "begun": 0}
    slot = slot_of("cart-100")
    split = shards.run("a b", "move", "--dry-run", str(slot), "b" if slot in slots else "a").stderr
    assert "saved in one commit, and apart then: cart-100, " in split
    assert shards.show("a b") == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("add", "z"), "has no shard 'z'"),
        (("drain", "z"), "has no shard 'z'"),
        (("add", "a"), "holds slots already"),
        (("move", "300", "a"), "slots are 0 to 255"),
        (("move", "0-256", "a"), "slots are 0 to 255"),
        (("move", "5-1", "a"), "'5-1' ends before it begins; write 1-5"),
        (("move", "x", "a"), "'x' is not a slot"),
        (("move", "7-", "a"), "'7-' is not a slot"),
    ],
)
async def test_what_cannot_be_is_refused_and_nothing_moves(tmp_path: Path, arguments: Any, words: str) -> None:
    """With exit code 2 and a line that says why."""
    shards = Shards(tmp_path)
    async with shop.open(store=shards.stores("a", "b"), run="none"):
        pass
    assert words in shards.run("a b", *arguments, code=2).stderr


async def test_the_last_shard_cannot_be_drained_nor_a_service_without_shards_moved(tmp_path: Path) -> None:
    """Nor a shard be added to ranges, which say by hand what lies where."""
    shards = Shards(tmp_path)
    async with shop.open(store=shards.stores("a"), run="none"):
        await shop.save(Cart(id="cart"))
    assert "'a' is the last shard" in shards.run("a", "drain", "a", code=2).stderr
    assert "use `evsync shards rebalance`" in shards.run("a b", "add", "b", code=2, RANGES="a,b").stderr
    alone = {"EVSYNC_SHOP_STORE": f"sqlite:///{tmp_path}/main.db"}
    async with shop.open(store=alone["EVSYNC_SHOP_STORE"], run="none"):
        pass
    assert "one store and no shards" in shards.shop.evsync("shards", "drain", TARGET, "a", code=2, **alone).stderr


async def test_one_store_is_shown_as_one_shard(tmp_path: Path, postgres_url: str) -> None:
    """Whatever it is: all slots, and what there is in it."""
    shards = Shards(tmp_path)
    for url in (f"sqlite:///{tmp_path}/main.db", postgres_url):
        async with shop.open(store=url, run="none"):
            await shop.save(Cart(id="one"), Cart(id="two"))
        [row] = shards.shop.json("shards", "show", TARGET, EVSYNC_SHOP_STORE=url)
        assert row.pop("bytes") > 0
        assert row == {"shard": "main", "slots": 256, "leaving": 0, "streams": 2, "events": 2, "head": 2}


# ---- the other commands


async def test_commands_about_logs_show_those_of_all_shards_or_of_one(
    tmp_path: Path, nats_server: EmbeddedServer
) -> None:
    """One after the other, as JSON an object for each with its log; the exit code is of all."""
    shards = Shards(tmp_path, nats=nats_server.url)
    logs = ["shop.a", "shop.b", "shop.c"]
    assert [(made["log"], made["made"]) for made in shards.json("a b c", "store", "init")] == [
        (log, True) for log in logs
    ]
    await shards.fill("a", "b", "c")
    assert [report["log"] for report in shards.json("a b c", "stream", "rebuild")] == logs

    [status] = shards.json("a b c", "status")
    heads = {log: at["head"] for log, at in status["logs"].items()}
    assert list(heads) == logs
    assert all(
        (at["relay"]["confirmed"], at["relay"]["state"]) == (at["head"], "current") for at in status["logs"].values()
    )
    assert "relay  shop.c" in shards.evsync("a b c", "status").stdout

    events = shards.json("a b c", "tail")
    assert Counter(e["position"].partition(":")[0] for e in events) == heads
    assert sum(e["type"] == "shop.Cart.Begun" for e in events) == 42
    lines = shards.evsync("a b c", "tail", "--last", "1").stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [[log[-1], f"{head}"] for log, head in heads.items()]
    beyond = f"{events[-1]['position'].rpartition(':')[0]}:{heads['shop.c'] - 1}"
    for chosen in (("--after", beyond), ("--shard", "c", "--after", f"{heads['shop.c'] - 1}")):
        assert [e["position"] for e in shards.json("a b c", "tail", *chosen)] == [events[-1]["position"]]

    for noun in ("store", "stream"):
        assert [(r["log"], r["ok"]) for r in shards.json("a b c", noun, "check")] == [(log, True) for log in logs]
    facts = shards.json("a b c", "store", "info")
    assert {f["log"]: f["events"] for f in facts} == heads
    assert [f["log"] for f in shards.json("a b c", "store", "info", "--shard", "b")] == ["shop.b"]
    [cart] = shards.json("a b c", "replay", "Cart", "cart-7")
    assert (cart["version"], cart["history"][0]["stream"]) == (1, "cart-7")

    with closing(sqlite3.connect(tmp_path / "b.db", isolation_level=None)) as c:
        c.execute("UPDATE events SET slot = 256 WHERE position IN (1, ?)", (heads["shop.b"],))
    checked = shards.json("a b c", "store", "check", code=1)
    assert [(r["log"], [p["position"] for p in r["problems"]]) for r in checked] == [
        ("shop.a", []), ("shop.b", [1, heads["shop.b"]]), ("shop.c", []),
    ]  # fmt: skip
    shards.json("a b c", "stream", "check", "--shard", "a")
    compared = shards.json("a b c", "stream", "check", code=1)
    assert [(r["log"], r["ok"]) for r in compared] == [("shop.a", True), ("shop.b", False), ("shop.c", True)]


async def test_all_shards_are_followed_at_once(tmp_path: Path) -> None:
    """`evsync tail --follow` prints what comes, of whichever log."""
    shards = Shards(tmp_path)
    await shards.fill("a", "b")
    with shards.shop.running(
        "tail", TARGET, "--follow", "--last", "1", "--json", EVSYNC_SHOP_STORE=json.dumps(shards.stores("a", "b"))
    ) as tail:
        assert {json.loads(tail.line())["position"].partition(":")[0] for _ in "ab"} == {"shop.a", "shop.b"}
        async with shop.open(store=shards.stores("a", "b"), run="none"):
            for n in range(50, 60):
                await shop.save(Cart(id=f"cart-{n}"))
        seen = [json.loads(tail.line()) for _ in range(10)]
        assert tail.end(signal.SIGINT)[2] == ""
    assert sorted(e["stream"] for e in seen) == [f"cart-{n}" for n in range(50, 60)]
    assert {e["position"].partition(":")[0] for e in seen} == {"shop.a", "shop.b"}


ARCHIVED = """
from evsync import BackupPolicy, Service
from tests.sharded_shop import Cart
shop = Service('shop', aggregates=[Cart], backups=BackupPolicy(targets=['disk'], loss=0.01))
"""


class Archived(Shards):
    """One that is backed up, with shards `a` and `b`."""

    async def more(self, *names: str) -> None:
        """Carts that no backup has."""
        async with shop.open(store=self.stores(*names), run="none"):
            for n in range(20):
                await shop.save(Cart(id=f"later-{n}"))

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(directory)
        (directory / "archived_shop.py").write_text(ARCHIVED)
        monkeypatch.chdir(directory)
        monkeypatch.syspath_prepend(directory)
        asyncio.run(self.fill("a", "b"))

    def said(self, names: str, *arguments: str, code: int = 0) -> str:
        """What a command says, to its end."""
        stores = {"EVSYNC_SHOP_STORE": json.dumps(self.stores(*names))}
        done = CliRunner().invoke(app, arguments, env=stores)
        assert done.exit_code == code, done.output
        return done.output

    def objects(self, names: str, *arguments: str, code: int = 0) -> list[Any]:
        """What it says as JSON."""
        return [json.loads(line) for line in self.said(names, *arguments, "--json", code=code).splitlines()]


def test_shards_are_archived_looked_at_and_restored_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command tells of each log, or of the shard's that was asked for; a restore names a store for each."""
    shards, service = Archived(tmp_path, monkeypatch), "archived_shop:shop"
    for evsync, log in zip(shards.objects("ab", "backup", "run", service), ("shop.a", "shop.b"), strict=True):
        assert (evsync["log"], evsync["ok"], evsync["backed_up"]) == (log, True, evsync["head"])
    assert [r["log"] for r in shards.objects("ab", "backup", "run", "--shard", "b", service)] == ["shop.b"]
    (listed,) = shards.objects("ab", "backup", "list", service)
    assert [row["log"] for row in listed] == ["shop.a", "shop.b"]
    (verified,) = shards.objects("ab", "backup", "verify", service)
    assert (verified["ok"], [c["log"] for c in verified["copies"]]) == (True, ["shop.a", "shop.b"])
    (one,) = shards.objects("ab", "backup", "verify", "--shard", "a", service)
    assert [c["log"] for c in one["copies"]] == ["shop.a"]
    assert "there is no shard 'z'" in shards.said("ab", "backup", "run", "--shard", "z", service, code=2)
    drilled = shards.objects("ab", "backup", "drill", service)
    assert [(d["log"], d["ok"], d["events_behind"]) for d in drilled] == [("shop.a", True, 0), ("shop.b", True, 0)]
    assert sum(d["aggregates"] for d in drilled) == 42
    (marked,) = shards.objects("ab", "backup", "mark", "--name", "monday", service)
    assert [log["log"] for log in marked["logs"]] == ["shop.a", "shop.b"]
    shown = shards.said("ab", "backup", "list", service).splitlines()
    assert shown[0].split()[:2] == ["log", "place"]
    assert [line.split()[0] for line in shown if line.startswith("shop.")] == ["shop.a", "shop.b"] * 2
    for n, options in enumerate([(), ("--mark", "monday"), ("--at", "2100-01-01T00:00:00Z")]):
        to = {shard: f"sqlite:///{tmp_path}/again{n}-{shard}.db" for shard in "ab"}
        named = [word for shard, url in to.items() for word in ("--to", f"{shard}={url}")]
        restored = shards.objects("ab", "restore", *named, *options, service)
        assert [(r["log"], r["position"], r["left_out"]) for r in restored] == [
            (d["log"], d["head"], 0) for d in drilled
        ]
        checked = shards.shop.evsync("store", "check", TARGET, EVSYNC_SHOP_STORE=json.dumps(to)).stdout
        assert checked.count("all is well") == 2


def test_one_shard_is_restored_beside_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what the other holds of it; what is said tells how much; the lost store is not opened any more."""
    shards, service = Archived(tmp_path, monkeypatch), "archived_shop:shop"
    shards.said("ab", "backup", "run", service)
    asyncio.run(shards.more("a", "b"))
    shards.said("ab", "shards", "drain", service, "a")
    to = f"sqlite:///{tmp_path}/new-a.db"
    said = shards.said("ab", "restore", "--to", f"a={to}", service)
    assert re.search(r"^\d+ later events are brought back from the other shards, which hold them$", said, re.MULTILINE)
    assert "log shop.a was restored since" in " ".join(shards.said("ab", "status", service, code=1).split())
    found = {**shards.stores("a", "b"), "a": to}
    checked = shards.shop.evsync("store", "check", TARGET, EVSYNC_SHOP_STORE=json.dumps(found)).stdout
    assert checked.count("all is well") == 2


def test_shards_are_not_restored_apart_nor_from_what_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is missing is named, and what to do; nothing is made."""
    shards, service = Archived(tmp_path, monkeypatch), "archived_shop:shop"
    shards.said("ab", "backup", "mark", "--name", "two", service)
    a, b = ("--to", f"a=sqlite:///{tmp_path}/new-a.db"), ("--to", f"b=sqlite:///{tmp_path}/new-b.db")

    def refused(names: str, *options: str, code: int = 2) -> str:
        return " ".join(shards.said(names, "restore", *options, service, code=code).split())

    assert "does not say which: all are restored together" in refused("ab", "--to", "sqlite:///new.db")
    some = refused("abc", *a, *b)
    assert "the shards of service 'shop' are a, b, c, and --to names a, b: all are restored together" in some
    assert "(--to a=URL --to b=URL --to c=URL), or one alone, beside the others that live on" in some
    assert "two stores for shard 'a'" in refused("ab", *a, *a, *b)
    assert "--position and --incarnation are of one log" in refused("ab", *a, *b, "--position", "3")
    assert "cannot be restored into a JetStream stream" in refused("ab", *a, "--to", "b=nats://127.0.0.1:1")
    c = ("--to", f"c=sqlite:///{tmp_path}/new-c.db")
    assert "mark 'two' is of shards a, b of service 'shop', and its stores are those of a, b, c" in refused(
        "abc", *a, *b, *c, "--mark", "two"
    )
    assert "which is not among a, c: nothing was restored" in refused("ac", *a, *c, code=1)
    assert "is that of one of several shards" in refused("a", *a, code=1)
    (tmp_path / "b.db").unlink()
    assert [r["log"] for r in shards.objects("ab", "backup", "run", "--shard", "a", service)] == ["shop.a"], "b is lost"
    shutil.rmtree(tmp_path / "disk" / "shop.b")
    assert "there is no archive of log shop.b, and the log of shard 'a' says that slots went there" in refused(
        "ab", *a, *b, code=1
    )
    assert not list(tmp_path.glob("new*"))
    for options in ((), ("--store",)):
        assert "what shards have is not trimmed" in shards.said(
            "ab", "archive", "trim", "--to", "1", "--yes", *options, service, code=2
        )


def test_what_makes_no_sense_with_several_shards_is_refused(tmp_path: Path) -> None:
    """A place in each of several logs, a shard that is not there, and a store that does not know where slots are."""
    shards = Shards(tmp_path)
    asyncio.run(shards.fill("a", "b"))

    def said(names: str, *arguments: str, code: int = 2) -> str:
        stores = {"EVSYNC_SHOP_STORE": json.dumps(shards.stores(*names))}
        done = CliRunner().invoke(app, arguments, env=stores)
        assert done.exit_code == code, done.output
        return done.output

    assert "that is a place in each of 2 logs" in said("ab", "tail", "--after", "3", TARGET)
    assert "is in none of the shards b: a shard is missing" in said("b", "store", "check", TARGET, code=1)
    assert "there is no shard 'z'" in said("ab", "store", "check", "--shard", "z", TARGET)
