"""What comes from outside and becomes part of a subject, of SQL or of a path: it is refused, or stays what it is."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evsync import Contract, Event, NamedAggregate, Projection, Reaction, Service, SqlModel, Tables, event
from evsync.archive.directory import DirectoryTarget
from evsync.errors import ConfigurationError, EncodingError, EvsyncError
from evsync.jetstream.messages import MessageFormat, escape, unescape
from evsync.jetstream.permissions import Grant, configuration, inbox, reading, relaying
from evsync.jetstream.store.stream import StoreUrl
from evsync.opening import open_store
from evsync.records import Snapshot
from evsync.sharding import HashRing
from evsync.testing.contracts.samples import one

pytestmark = pytest.mark.anyio

HOSTILE = (
    "a.b", "*", ">", "a.>", "a b", "a\tb", "a\r\nPUB x 0", "users\n", "$JS.API.>", "_INBOX.x", "..", "../../etc/passwd",
    "/etc/passwd", "a/../../b", "C:\\x", "a\0b", "\0", "'; DROP TABLE events; --", '"; DROP TABLE events; --', 'a"b',
    "a`b", "a$$b", "$body$", "%s", "%(x)s", "{x}", ":x", "?", "é", "ﬀ", "ａ", "𝄞", "\u202egnp.exe", "\ud800",
    "x" * 10_000, "", "-a", "A", "1a", "a" * 64,
)  # fmt: skip
texts = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=70), st.text("ab.*>$%/\\'\"-_ \0\n", max_size=20))
NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


async def _open(service: str, shard: str) -> None:
    await (await open_store("memory://", service=service, shard=shard)).close()


@given(texts)
def test_a_name_is_plain_or_refused(name: str) -> None:
    """Of services, shards, projections and reactions: they become subjects, tables, schemas and folders as they are."""
    for use in (
        lambda: Service(name), lambda: Projection(name, model=SqlModel(sa.MetaData())),
        lambda: Reaction(name, since="now"), lambda: HashRing([name]), lambda: asyncio.run(_open(name, "main")),
        lambda: asyncio.run(_open("users", name)),
    ):  # fmt: skip
        if NAME.fullmatch(name):
            use()
        else:
            with pytest.raises(ConfigurationError):
                use()


@given(texts)
def test_an_id_is_one_token_of_a_subject(text: str) -> None:
    """Of letters, digits, `_`, `-` and `%`: no dot, no wildcard, no space; and it comes back as it was."""
    try:
        token = escape(text)
    except EncodingError:
        assert any("\ud800" <= c <= "\udfff" for c in text)  # what has no UTF-8
        return
    assert re.fullmatch(r"[A-Za-z0-9_%-]+", token, re.ASCII)
    assert unescape(token) == text
    for subject in (
        MessageFormat("users.main").stream_filter(text, 7),
        MessageFormat("users.main").stream_filter(text, 7, 1),
    ):
        assert subject.split(".")[:4] == ["evsync", "users", "main", "7"]
        assert len(subject.split(".")) == 8
    assert ">" not in MessageFormat("users.main").stream_filter(text, 7)


@given(texts)
def test_the_name_of_a_stream_is_a_token_or_refused(name: str) -> None:
    """As the URL of a store states it."""
    with contextlib.suppress(ConfigurationError):
        found = StoreUrl.parse(f"nats://host:4222/?stream={name}")
        assert found.stream is None or re.fullmatch(r"[A-Za-z0-9_-]+", found.stream, re.ASCII)


@given(st.from_regex(NAME, fullmatch=True), st.from_regex(NAME, fullmatch=True))
def test_permissions_name_nobody_else(service: str, shard: str) -> None:
    """Whatever a service and its shard may be called: wildcards stand only where they were put."""
    subjects = [*relaying(service, shard, f"evsync_{service}_{shard}_1"), *reading("s"), inbox(service)]
    for subject in subjects:
        assert re.fullmatch(r"[A-Za-z0-9_$.-]+(\.\*|\.>)?", subject), subject
    text = configuration([Grant(service, subjects, [inbox(service)])])
    assert text.count('user: "') == 1
    assert re.findall(r"\$NATS_PASSWORD_(\S+)", text) == [service.upper().replace("-", "_")]


@quick
@given(texts)
def test_a_backup_stays_in_its_directory(tmp_path: Path, name: str) -> None:
    """What would lead out of it is refused; what is written is under it."""
    target = DirectoryTarget(tmp_path / "target")
    before = set(tmp_path.iterdir()) | {tmp_path / "target"}
    try:
        asyncio.run(target.put(name, b"x", replace=True))
    except EvsyncError:
        assert set(tmp_path.iterdir()) <= before
        return
    assert set(tmp_path.iterdir()) == before
    assert asyncio.run(target.get(name)) == b"x"
    asyncio.run(target.delete(name))


def _tables(path: Path) -> list[tuple[str, str]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_ids_are_values_in_sql(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Of aggregates and of snapshots: each is found by itself alone, and no table is another than before."""
    ids = [i for i in HOSTILE if i and "\0" not in i and i.isprintable() | ("\n" in i) and len(i) < 500]
    ids = [i for i in ids if "\ud800" not in i]
    url = f"sqlite:///{tmp_path / 'events.db'}"
    if kind == "postgres":
        url = request.getfixturevalue("postgres_url") + "&schema=hostile_ids"
    store: Any = await open_store(url, service="users")
    try:
        before = _tables(tmp_path / "events.db") if kind == "sqlite" else None
        for id in ids:
            assert isinstance((await store.append([one(id, events=2)]))[0], int)
            await store.put_snapshot(Snapshot(id, 2, "users.User", "shape", 0, b"", id.encode()))
        for id in ids:
            assert [e.stream for e in await store.read_stream(id)] == [id, id]
            kept = await store.snapshot(id)
            assert kept is not None
            assert kept.state == id.encode()
        assert await store.head() == 2 * len(ids)
        assert before is None or _tables(tmp_path / "events.db") == before
    finally:
        await store.close()


SCHEMAS = ['a"b', "a'b", "$body$", "a.b", "ü b", "{x}", "../x", "'; DROP SCHEMA public; --", "a;b"]


@pytest.mark.parametrize("schema", SCHEMAS)
async def test_a_schema_of_any_name_is_only_a_name(schema: str, postgres_url: str) -> None:
    """It stands in statements that make tables and a function."""
    store = await open_store(f"{postgres_url}&schema={quote(schema, safe='')}", service="users")
    try:
        assert await store.append([one("ada")]) == [1]
        assert [e.stream for e in await store.read_stream("ada")] == ["ada"]
    finally:
        await store.close()


@pytest.mark.parametrize("schema", ["a$$b", "%25s", "", "pg_x", "a%00b", "x" * 64])
async def test_a_schema_that_could_be_more_than_a_name_is_refused(schema: str, postgres_url: str) -> None:
    """It stands in the body of a function, between pairs of dollars, and in statements with parameters."""
    with pytest.raises(ConfigurationError, match="cannot be the name of a PostgreSQL schema"):
        await open_store(f"{postgres_url}&schema={schema}", service="users")


TABLE, KEY, COLUMN = "t\"'; DROP TABLE evsync_checkpoints; --", "k'\" %s", 'c"; --:x'
hostile_tables = sa.MetaData()
hostile = sa.Table(
    TABLE, hostile_tables, sa.Column(KEY, sa.String, primary_key=True), sa.Column(COLUMN, sa.Integer, index=False)
)


class Thing(NamedAggregate):
    """Has an id."""

    @event("Made")
    def __init__(self, id: str) -> None:
        pass


class Made(Contract, type="things.Thing.Made"):
    """A new thing."""


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_tables_and_columns_of_any_name_are_only_names(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A read model is filled, counted in, deleted from and rebuilt; and its bookkeeping is still there."""
    view = Projection("view", model=SqlModel(hostile_tables))

    @view.on(Made)
    def made(e: Event[Made], db: Tables) -> None:
        db.upsert(hostile, **{KEY: e.stream_id, COLUMN: 1})
        db.increment(hostile, **{KEY: e.stream_id, COLUMN: 1})
        db.delete(hostile, **{KEY: "gone"})

    things = Service("things", aggregates=[Thing], projections=[view], store=f"sqlite:///{tmp_path / 'things.db'}")
    views = f"sqlite:///{tmp_path / 'views.db'}"
    if kind == "postgres":
        views = request.getfixturevalue("postgres_url") + "&schema=hostile_views"
    ids = ["'; DROP TABLE x; --", '"', "%s", "gone"]
    async with things.open(views=views):
        position = await things.save(*[Thing(id) for id in ids])
        for _ in range(2):
            rows = await things.query(sa.select(hostile.c[KEY], hostile.c[COLUMN]), after=position)
            assert sorted(rows.all()) == sorted((id, 2) for id in ids[:3])
            await things.rebuild()
