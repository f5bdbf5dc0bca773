"""`evsync shards`, as its users run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evsync.sharding import HashRing, slot_of
from tests.command_line import Shop
from tests.sharded_shop import Cart, shop

pytestmark = pytest.mark.anyio
TARGET = "tests.sharded_shop:shop"


class Shards:
    """A directory with a sharded service of 40 carts, two of which were saved together."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._shop = Shop(directory)

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

    def run(self, shards: str, *arguments: str, code: int = 0, **more: str) -> Any:
        """A command, with the stores of these shards."""
        stores = json.dumps(self.stores(*shards.split()))
        return self._shop.evsync(
            "shards", arguments[0], TARGET, *arguments[1:], code=code, EVSYNC_SHOP_STORE=stores, **more
        )

    def show(self, shards: str) -> dict[str, dict[str, Any]]:
        """What `show --json` says, by shard."""
        rows = [json.loads(line) for line in self.run(shards, "show", "--json").stdout.splitlines()]
        return {row["shard"]: row for row in rows}


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
        (("move", "9-3", "a"), "slots are 0 to 255"),
        (("move", "x", "a"), "'x' is not a slot"),
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
    assert "one store and no shards" in shards._shop.evsync("shards", "show", TARGET, code=2, **alone).stderr
