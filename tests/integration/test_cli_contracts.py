"""`evsync contracts`, as it is used in a repository and in CI."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command_line import ANSI, Shop

SHOP = """
from evsync import Contract, NamedAggregate, Projection, Reaction, MemoryModel, Service, event

class Item(NamedAggregate):
    @event("Listed")
    def __init__(self, id: str, price: {price}) -> None:
        pass

class Listed(Contract, type="shop-2.Item.Listed"):
    price: int

view = Projection("view", model=MemoryModel(dict))
@view.on(Listed)
def listed(e, state): ...

shop = Service("shop-2", aggregates=[Item])
reader = Service("reader", projections=[view])
"""


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """A directory with a module: `old:shop` has integers as prices, `new:shop` texts, `wide:shop` both."""
    for name, price in {"old": "int", "new": "str", "same": "int", "wide": "int | None"}.items():
        (tmp_path / f"{name}.py").write_text(SHOP.format(price=price))
    return Shop(tmp_path)


def test_exported_files_are_checked_against_the_code(shop: Shop) -> None:
    """Nothing but what was asked for goes to standard output; directories are made."""
    done = shop.evsync("contracts", "export", "old:shop", "--python", "--out", "a/b")
    names = ["shop-2.schema.json", "shop-2.asyncapi.json", "shop_2_contracts.py"]
    assert done.stdout == ""
    assert done.stderr == f"1 event type of shop-2 written to {', '.join(f'a/b/{n}' for n in names)}\n"
    assert sorted(p.name for p in (shop.directory / "a/b").iterdir()) == sorted(names)
    for option, name in zip(([], ["--asyncapi"], ["--python"]), names, strict=True):
        printed = shop.evsync("contracts", "export", "old:shop", *option).stdout
        assert printed == (shop.directory / "a/b" / name).read_text()
    assert shop.evsync("contracts", "check", f"a/b/{names[0]}", "same:shop").stdout == "no difference\n"
    assert shop.json("contracts", "check", f"a/b/{names[0]}", "same:shop") == [{"compatible": True, "changes": []}]


def test_a_breaking_change_fails_and_names_who_reads_the_field(shop: Shop) -> None:
    """With 1 as exit code; in a table, or as JSON."""
    shop.evsync("contracts", "export", "old:shop", "--out", ".")
    done = shop.evsync("contracts", "check", "shop-2.schema.json", "new:shop", "--readers", "old:reader", code=1)
    assert "type changed  from integer to string  reader: projection view (Listed)\n" in done.stdout
    assert done.stdout.endswith("\n1 change, 1 of them breaking\n")
    done = shop.evsync(
        "contracts", "check", "shop-2.schema.json", "wide:shop", "--readers", "old:reader", "--json", code=1
    )
    assert json.loads(done.stdout) == {
        "compatible": False,
        "changes": [
            {
                "event": "shop-2.Item.Listed",
                "field": "price",
                "what": "type widened",
                "detail": "from integer to integer or null",
                "breaks": ["consumers"],
                "readers": [{"service": "reader", "kind": "projection", "name": "view", "contract": "Listed"}],
            }
        ],
    }


def test_a_terminal_shows_all_of_the_table(shop: Shop) -> None:
    """However narrow it is, no word is cut off."""
    arguments = ["contracts", "check", "old:shop", "new:shop", "--readers", "old:reader"]
    code, screen = shop.on_terminal(*arguments, columns=60)
    assert code == 1
    lines = ANSI.sub("", screen).splitlines()
    assert max(map(len, lines)) <= 60
    words = {word.rstrip(":;,") for line in lines for word in line.split()}
    assert {"shop-2.Item.Listed", "price", "consumers", "history", "integer", "string", "view", "(Listed)"} <= words


def test_wrong_arguments_say_what_to_give(shop: Shop) -> None:
    """With 2 as exit code, and nothing written."""
    shop.evsync("contracts", "export", "old:shop", "--out", ".")
    for arguments, says in (
        (["check", "nothing.json", "old:shop"], "nothing.json cannot be read: No such file"),
        (["check", "shop-2.schema.json", "old:reader"], "documents of two services, shop-2 and reader"),
        (["export", "old:shop", "--out", "old.py"], "old.py cannot be written: File exists"),
        (["export", "old:shop", "--asyncapi", "--python"], "with --out both are written"),
    ):
        assert says in shop.evsync("contracts", *arguments, code=2).stderr
