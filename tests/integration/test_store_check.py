"""Stores that were damaged behind their backs: `check_store` names what, where, and what to do."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from evsync import NamedAggregate, Service, event
from evsync.codec.values import pack
from evsync.inspection import Inspectable
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.settings import NatsSettings
from evsync.jetstream.server import EmbeddedServer
from evsync.jetstream.store.store import JetStreamStore
from evsync.opening import open_store
from evsync.operations.store_check import RESTORE, StoreReport, check_store, reader
from evsync.ports import Store
from evsync.records import Checkpoint, Commit, Snapshot, new_command
from evsync.testing.contracts.samples import append
from evsync.testing.contracts.samples import event as new_event

pytestmark = pytest.mark.anyio


class User(NamedAggregate):
    """Has two types of events."""

    @event("Registered")
    def __init__(self, id: str, name: str) -> None:
        self.name = name

    @event("Renamed")
    def rename(self, name: str) -> None:
        """Another name."""
        self.name = name


users = Service("users", aggregates=[User])


async def fill(url: str) -> None:
    """Ten positions: five users, each registered and renamed in one commit; a snapshot and a checkpoint."""
    async with users.open(store=url, nats="", run="none"):
        for n in range(5):
            user = User(f"user{n}", "Ada")
            user.rename("Bob")
            await users.save(user)
        assert users.store is not None
        await users.store.put_snapshot(Snapshot("user0", 2, "users.User", "shape", 0, b"", b"\x80"))
        await users.store.append([Commit(new_command(), [], "billing", Checkpoint("orders.main", 3, "i", 42))])


async def report_of(url: str) -> StoreReport:
    """What the check finds."""
    store = await open_store(url, service="users", create=False)
    try:
        assert isinstance(store, Inspectable)
        return await check_store(store, reader(users.codec))
    finally:
        await store.close()


# What to do to the tables; the positions and laws of the problems; a word of the first one's text.
DAMAGES: dict[str, tuple[str, list[tuple[int, str]], str]] = {
    "a commit is gone": (
        "DELETE FROM events WHERE position IN (5, 6)", [(5, "positions")], "positions 5 to 6 are missing",
    ),
    "half a commit is gone": (
        "DELETE FROM events WHERE position = 4", [(4, "positions")], "the next event stands at 5",
    ),
    "the first half of a commit is gone": (
        "DELETE FROM events WHERE position = 3", [(3, "positions"), (4, "versions")], "this position is missing",
    ),
    "the end is gone": (
        "DELETE FROM events WHERE position > 8", [(9, "positions")], "head is 10, and the last event",
    ),
    "the head is behind": (
        "UPDATE log SET head = 8", [(9, "positions")], "the next append would collide",
    ),
    "a version is another": (
        "UPDATE events SET version = 7 WHERE position = 2", [(2, "versions")], "version 7, where 2 belongs",
    ),
    "an event is another stream's": (
        "UPDATE events SET stream = 'user9' WHERE position = 2", [(2, "versions"), (2, "slots")], "'user9'",
    ),
    "the end of a commit is gone": (
        "DELETE FROM events WHERE position = 10", [(9, "commits")], "of which 1 more events should follow",
    ),
    "a slot is wrong": ("UPDATE events SET slot = slot + 1 WHERE position = 3", [(3, "slots")], "slot"),
    "a commit is cut": ("UPDATE events SET remaining = 3 WHERE position = 10", [(10, "commits")], "it says 3"),
    "an event is of another log": (
        "UPDATE events SET incarnation = 'ba98' WHERE position = 1", [(1, "incarnation")], "'ba98'",
    ),
    "a type is unknown": (
        "UPDATE events SET type = 'users.User.Married' WHERE position = 2", [(2, "readability")],
        "type 'users.User.Married' is unknown to service 'users'",
    ),
    "tags are no JSON": (
        "UPDATE events SET meta = '{' WHERE position = 2", [(2, "readability")], "are not an event's tags",
    ),
}  # fmt: skip


def judge(report: StoreReport, expected: Sequence[tuple[int, str]], words: str) -> None:
    """The problems, where they are, and that each says what to do."""
    assert [(p.position, p.law) for p in report.problems] == list(expected), report.problems
    assert words in report.problems[0].text
    assert not report.ok
    assert all(p.remedy for p in report.problems)


OF_A_COUNTER = ("the end is gone", "the head is behind")
"""An SQLite file's head is its last event: what is gone behind that, only a copy or a stream of the log can tell."""


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name not in OF_A_COUNTER])
async def test_damage_to_an_sqlite_store_is_named(tmp_path: Path, damage: str) -> None:
    """With position, law and remedy."""
    statement, expected, words = DAMAGES[damage]
    url = f"sqlite:///{tmp_path}/users.db"
    await fill(url)
    assert (await report_of(url)).ok
    with closing(sqlite3.connect(tmp_path / "users.db", isolation_level=None)) as c:
        c.execute(statement)
    judge(await report_of(url), expected, words)


async def test_what_only_sqlite_takes_is_found(tmp_path: Path) -> None:
    """A value of another kind, data that are not msgpack, text that is not UTF-8; the events between are judged."""
    url = f"sqlite:///{tmp_path}/users.db"
    await fill(url)
    with closing(sqlite3.connect(tmp_path / "users.db", isolation_level=None)) as c:
        c.execute("UPDATE events SET time_us = 'yesterday' WHERE position = 3")
        c.execute("UPDATE events SET data = x'c1' WHERE position = 6")
        c.execute("UPDATE events SET type = CAST(x'ff' AS TEXT) WHERE position = 8")
    report = await report_of(url)
    assert [(p.position, p.law) for p in report.problems] == [
        (3, "readability"), (4, "versions"), (6, "readability"), (8, "readability"),
    ]  # fmt: skip
    assert "time_us is 'yesterday'" in report.problems[0].text
    assert "UTF-8" in report.problems[3].text


async def test_damaged_pages_and_indexes_of_sqlite_are_found(tmp_path: Path) -> None:
    """What SQLite itself can tell, by its integrity check and by failing to read; the check ends by itself."""
    path = tmp_path / "users.db"
    url = f"sqlite:///{path}"
    store = await open_store(url, service="users")
    await store.append(
        [Commit(new_command(), [append(f"u{n}", 0, [new_event(data=pack({"name": "x" * 900}))])]) for n in range(40)]
    )
    await store.close()
    pages = bytearray(path.read_bytes())
    size = int.from_bytes(pages[16:18], "big")
    last = len(pages) // size - 1
    pages[last * size : last * size + 64] = b"\xff" * 64
    path.write_bytes(pages)
    report = await report_of(url)
    assert not report.ok
    assert report.problems[0].law == "files"
    assert report.problems[0].remedy == RESTORE
    assert "readability" in {p.law for p in report.problems if p.position > 1}, report.problems


@pytest.mark.parametrize("damage", DAMAGES)
async def test_damage_to_a_postgres_store_is_named(postgres_url: str, request: Any, damage: str) -> None:
    """With position, law and remedy."""
    statement, expected, words = DAMAGES[damage]
    schema = f"check_{list(DAMAGES).index(damage)}"
    url = f"{postgres_url}&schema={schema}"
    await fill(url)
    assert (await report_of(url)).ok
    with psycopg.connect(postgres_url, autocommit=True) as c:
        c.execute(f"SET search_path TO {schema}")
        c.execute(statement)
    if damage == "the end of a commit is gone":
        expected, words = [(10, "positions")], "the log's head is 10"
    judge(await report_of(url), expected, words)


async def test_messages_that_do_not_belong_into_a_jetstream_store_are_named(nats_server: EmbeddedServer) -> None:
    """Each at its sequence; what follows is judged as ever."""
    url = f"{nats_server.url}/?stream=users"
    await fill(url)
    assert (await report_of(url)).ok
    conn = await Connection.open(NatsSettings(nats_server.url), "stranger")
    await conn.ready(10)
    await conn.request("evsync.users.main.7.User.Renamed.user0.9", b"not an event", timeout_s=5)
    await conn.close()
    async with users.open(store=url, run="none"):
        await users.save(User("late", "Cy"))
    report = await report_of(url)
    assert [(p.position, p.law) for p in report.problems] == [(12, "readability")]
    assert (report.head, report.checked) == (13, 13)


@pytest.mark.parametrize(
    "damage", [lambda block: flip(block, b"user3", 2), lambda block: flip(block, b"user4", 0)], ids=["middle", "end"]
)
async def test_damaged_files_of_a_jetstream_store_are_found(
    nats_server: EmbeddedServer, damage: Callable[[Path], None]
) -> None:
    """Messages that the server cannot read any more are missing at their positions."""
    url = f"{nats_server.url}/?stream=users"
    await fill(url)
    nats_server.stop()
    [block] = nats_server.store_dir.glob("jetstream/*/streams/users/msgs/1.blk")
    damage(block)
    nats_server.restart()
    report = await report_of(url)
    assert not report.ok
    assert "positions" in {p.law for p in report.problems}, report.problems


def flip(block: Path, text: bytes, behind: int) -> None:
    """Change a byte in the data behind the first place where the text stands."""
    content = bytearray(block.read_bytes())
    content[content.index(text) + behind] ^= 0x01
    block.write_bytes(content)


@pytest.mark.parametrize("kind", ["SQLite", "PostgreSQL", "JetStream"])
async def test_a_store_tells_what_it_holds(
    kind: str, tmp_path: Path, postgres_url: str, nats_server: EmbeddedServer
) -> None:
    """The same facts of every kind of store; one event more where checkpoints are events."""
    urls = {
        "SQLite": f"sqlite:///{tmp_path}/users.db",
        "PostgreSQL": f"{postgres_url}&schema=facts",
        "JetStream": f"{nats_server.url}/?stream=users",
    }
    await fill(urls[kind])
    store: Store = await open_store(urls[kind], service="users", create=False)
    assert isinstance(store, Inspectable)
    facts = await store.facts()
    await store.close()
    own = 1 if kind == "JetStream" else 0
    assert (facts.kind, facts.schema, facts.head, facts.events, facts.streams) == (kind, 1, 10 + own, 10 + own, 5)
    assert facts.snapshots == 1
    assert facts.checkpoints == [("billing", Checkpoint("orders.main", 3, "i", 42))]
    assert facts.size_bytes > 1_000
    assert isinstance(store, JetStreamStore) == (kind == "JetStream")
