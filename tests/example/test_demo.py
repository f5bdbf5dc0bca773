"""The demo, as a person runs it: on a small part of its data, with users in one store and in several."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from examples.users_orders.demo import SAMPLE
from examples.users_orders.purchases import Purchase, read
from tests.command_line import ROOT

LINES = 600


def run(directory: Path, *options: str) -> dict[str, Any]:
    """What the demo prints as its last line."""
    data = directory / "purchases.txt"
    data.write_text("".join(SAMPLE.read_text().splitlines(keepends=True)[:LINES]))
    done = subprocess.run(
        [sys.executable, "-m", "examples.users_orders", "demo", "--data", f"{data}", "--dir", f"{directory / 'demo'}",
         "--json", *options],
        cwd=ROOT, text=True, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def shown(directory: Path) -> list[tuple[Any, ...]]:
    """The read model, by name: ids are others each time."""
    with closing(sqlite3.connect(directory / "demo" / "orders_view.db")) as db:
        return db.execute(
            "SELECT name, orders, cds, spent_cents, last_order_on FROM customers ORDER BY name"
        ).fetchall()


def expected(directory: Path) -> list[tuple[Any, ...]]:
    """What it has to be: a fold over the file."""
    customers: dict[str, list[Purchase]] = {}
    for purchase in read((directory / "purchases.txt").read_text().splitlines()):
        assert isinstance(purchase, Purchase)
        customers.setdefault(f"Customer {purchase.customer}", []).append(purchase)
    return sorted(
        (name, len(bought), sum(p.cds for p in bought), sum(p.price_cents for p in bought), bought[-1].on.isoformat())
        for name, bought in customers.items()
    )


@pytest.mark.parametrize(("options", "stores"), [((), 1), (("--shards", "3"), 3), (("--shards", "2", "--grow"), 2)])
def test_the_read_model_is_a_fold_over_the_purchases_wherever_users_are(
    tmp_path: Path, options: tuple[str, ...], stores: int
) -> None:
    """In one store, in several, in one that others join while customers register: the same table, the same result."""
    result = run(tmp_path, *options)
    view = shown(tmp_path)
    assert view == expected(tmp_path)
    assert (result["users"], result["orders"], result["events"]) == (len(view), LINES, len(view) + LINES)
    files = sorted((tmp_path / "demo").glob("users*.db"))
    assert len(files) == stores
    registered = 0
    for file in files:  # a shard that joined has some of what was registered after that, in its own log
        with closing(sqlite3.connect(file)) as db:
            (own,) = db.execute("SELECT count(*) FROM events WHERE type = 'users.User.Registered'").fetchone()
        assert own > 0
        registered += own
    assert registered == len(view)
