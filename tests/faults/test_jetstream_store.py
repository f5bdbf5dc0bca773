"""The JetStream store while its server crashes, its replies get lost, its processes die, and strangers meddle."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from evsync.errors import (
    ConfigurationError,
    Conflict,
    ForeignMessage,
    OutcomeUnknown,
    StoreFull,
    StoreUnavailable,
    WrongStore,
)
from evsync.jetstream import streams
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.rebuild import rebuild_stream
from evsync.jetstream.server import EmbeddedServer
from evsync.jetstream.store import append as append_module
from evsync.jetstream.store.reads import Top
from evsync.jetstream.store.store import JetStreamStore
from evsync.jetstream.store.stream import default_name, store_config
from evsync.opening import open_store
from evsync.records import Commit, LogIdentity
from evsync.testing.contracts.appender import SHARED
from evsync.testing.contracts.samples import append, check_log, commit, event, given, one, reaction, whole_log
from tests.jetstream_stores import Load
from tests.relaying import connected, eventually, halted, new_log, relaying

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def opened(server: EmbeddedServer, **options: Any) -> AsyncIterator[JetStreamStore]:
    """The store of users.main, closed afterwards."""
    store = await JetStreamStore.open(server.url, service="users", **options)
    try:
        yield store
    finally:
        await store.close()


async def edit(conn: Connection, store: JetStreamStore, **changes: Any) -> None:
    """Change settings of the store's stream."""
    config = store_config(store.stream, store.identity, 1) | changes
    await conn.api(f"STREAM.UPDATE.{store.stream}", config)


# ---- crashes


async def test_nothing_acknowledged_is_lost_when_the_server_is_killed(nats_server: EmbeddedServer) -> None:
    """kill -9 in the middle of the load, three times: saves wait for the server and go on, none is stored in part."""
    async with opened(nats_server) as store:
        load = Load(store)
        async with load.running():
            for _ in range(3):
                await load.reaches(len(load.acknowledged) + 40)
                nats_server.kill()
                await asyncio.sleep(0.1)
                nats_server.restart()
        log = await load.verdict()
        assert len(log) > 120
    async with opened(nats_server, create=False) as again:
        assert await whole_log(again) == log


async def test_a_killed_process_leaves_whole_commits(nats_server: EmbeddedServer) -> None:
    """SIGKILL between publish and reply, at whatever moment: what was acknowledged is there, nothing in part."""
    acknowledged: dict[bytes, int] = {}
    url = f"{nats_server.url}/?stream=users_store"
    module = "evsync.testing.contracts.appender"
    for turn in range(4):
        arguments = ["-m", module, "evsync.opening:open_store", url, "users", "main", "ann", "100000"]
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=PIPE)
        assert process.stdout is not None
        async with asyncio.timeout(30):
            for _ in range(5 + turn):
                command, position = (await process.stdout.readline()).split()
                acknowledged[bytes.fromhex(command.decode())] = int(position)
            process.kill()
            for line in (await process.stdout.read()).splitlines():
                command, position = line.split()
                acknowledged[bytes.fromhex(command.decode())] = int(position)
            await process.wait()
    store = await open_store(url, service="users", create=False)
    found = check_log(await whole_log(store))
    assert {c: found[c][-1].position for c in acknowledged} == acknowledged
    assert len(found) <= len(acknowledged) + 4, "at most one commit of each process was not acknowledged"
    assert [len(rows) for rows in found.values()] == [3] * len(found)
    assert len(await store.read_stream(SHARED)) == 2 * len(found)
    await store.close()


async def test_a_server_that_is_away_stores_nothing(nats_server: EmbeddedServer) -> None:
    """Appends and reads wait for as long as the store is patient, then say so; afterwards the store goes on."""
    async with opened(nats_server, patience_s=0.3) as store:
        await store.append([one("ada")])
        nats_server.kill()
        await eventually(lambda: not store._conn.connected, "the loss noticed")
        for call in (store.append([one("bob")]), store.read_stream("ada"), store.head(), store.read(0, 9)):
            with pytest.raises(StoreUnavailable):
                await call
        nats_server.restart()
        await store._conn.ready(10)
        assert await store.append([one("ada", 1)]) == [2]
        assert await store.read_stream("bob") == []
    nats_server.kill()
    with pytest.raises(StoreUnavailable, match="no connection within"):
        await JetStreamStore.open(nats_server.url, service="users", patience_s=0.2)


# ---- lost messages


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores that give an acknowledgement little time."""
    monkeypatch.setattr(append_module, "_ANSWER_S", 0.2)


COMMITS = {
    "one event": lambda: [one("ada", 2)],
    "several commits of one event": lambda: [one("ada", 2), one("bob"), one("cy")],
    "several events": lambda: [one("ada", 2, 3), commit(append("bob"), append("cy", 0, 2))],
    "one after the other": lambda: [one("ada", 2), one("ada", 3), one("ada", 2)],
    "given versions": lambda: [given("ada", 7, 4), given("bob", 1)],
    "a reaction": lambda: [reaction("billing", 7, append("ada", 2), after=0), one("bob")],
    "a checkpoint alone": lambda: [reaction("billing", 7, after=0)],
}


@pytest.mark.parametrize("lost", ["reply", "request", "first message"])
@pytest.mark.parametrize("kind", COMMITS)
@pytest.mark.usefixtures("impatient")
async def test_what_gets_lost_on_the_way_is_found_out(nats_server: EmbeddedServer, kind: str, lost: str) -> None:
    """The store looks whether its commits arrived, sends them again if not, and each is stored once."""
    async with opened(nats_server) as store, opened(nats_server) as undisturbed:
        await store.append([one("ada", 0, 2)])
        losses = lose(store, lost)
        commits = COMMITS[kind]()
        outcomes = await store.append(commits)
        assert losses == []
        conflicts = [n for n, o in enumerate(outcomes) if isinstance(o, Conflict)]
        assert conflicts == ([2] if kind == "one after the other" else [])
        found = check_places(await whole_log(undisturbed))
        for n, (wanted, outcome) in enumerate(zip(commits, outcomes, strict=True)):
            assert n in conflicts or found.pop(wanted.command) == outcome
        assert len(found) == 1, "nothing but the first commit is beside them"


@pytest.mark.usefixtures("impatient")
async def test_what_a_rival_overtook_is_a_conflict(nats_server: EmbeddedServer) -> None:
    """The request is lost, another process takes the version: our commit is told so, and is not in the log."""
    async with opened(nats_server) as store, opened(nats_server) as rival:
        await store.append([one("ada")])
        losses = lose(store, "request")
        wanted = one("ada", 1, 2)
        appending = asyncio.create_task(store.append([wanted, one("bob")]))
        await eventually(lambda: losses == [], "the request lost")
        assert await rival.append([one("ada", 1)]) == [2]
        conflict, bob = await appending
        assert isinstance(conflict, Conflict)
        assert (conflict.expected, conflict.actual, bob) == (1, 2, 3)
        assert wanted.command not in check_log(await whole_log(rival))


@pytest.mark.usefixtures("impatient")
async def test_an_outcome_that_cannot_be_told_is_unknown(nats_server: EmbeddedServer) -> None:
    """The server dies after the request: nobody knows, and the error says so; a look tells once it is back."""
    async with opened(nats_server, patience_s=0.3) as store:
        await store.append([one("ada")])
        lose(store, "reply", nats_server.kill)
        wanted = one("ada", 1)
        with pytest.raises(OutcomeUnknown, match="command's id"):
            await store.append([wanted])
        nats_server.restart()
    async with opened(nats_server) as store:
        assert wanted.command in check_log(await whole_log(store))
        (conflict,) = await store.append([wanted])
        assert isinstance(conflict, Conflict)


def lose(store: JetStreamStore, what: str, then: Callable[[], None] = lambda: None) -> list[str]:
    """Lose the store's next answer, or request, or only the first message of it; then call `then`.

    The list that is returned is empty once that has happened.
    """
    left = [what]
    sender = store._sender
    publish, read = sender._conn.publish, sender._read

    def lossy_read(headers: bytes, body: bytes) -> Any:
        if not left:
            return read(headers, body)
        left.clear()
        then()
        return None

    class Lossy:
        """Of a batch, only the last message has a reply subject."""

        max_payload = sender._conn.max_payload

        def publish(self, *message: Any) -> None:
            if not left:
                publish(*message)
            elif message[1] or what == "first message":
                left.clear()
                then()

    if what == "reply":
        sender._read = lossy_read  # type: ignore[method-assign]
    else:
        sender._conn = Lossy()  # type: ignore[assignment]
    return left


def check_places(log: Any) -> dict[bytes, int]:
    """As `check_log` for a log in which versions may be given: the end of each commit, all of them whole."""
    ends: dict[bytes, int] = {}
    places = set()
    for position, row in enumerate(log, 1):
        assert row.position == position
        assert (row.stream, row.version) not in places
        places.add((row.stream, row.version))
        command = row.id[:14] + b"\0\0"
        ends[command] = max(ends.get(command, 0), position + row.remaining)
        assert ends[command] == position + row.remaining
    return ends


# ---- rivals


async def test_what_one_process_remembers_another_may_have_changed(nats_server: EmbeddedServer) -> None:
    """Two stores on one stream, each with its memory of where streams end: versions stay contiguous, conflicts name the
    version that there is, checkpoints are one."""
    async with opened(nats_server) as here, opened(nats_server) as there:
        assert here.identity == there.identity
        for n in range(0, 10, 2):
            assert isinstance((await here.append([one("ada", n)]))[0], int)
            assert isinstance((await there.append([one("ada", n + 1)]))[0], int)
        for kind in ("users.User.Renamed", "users.User.Moved"):  # of another type, the event has another subject
            (conflict,) = await here.append([one("ada", 9, [event(kind)])])
            assert isinstance(conflict, Conflict)
            assert (conflict.expected, conflict.actual) == (9, 10)
            here._ends.forget(["ada"])
            here._ends.learn("ada", Top(9, 9))  # as if it had not met the conflict
        assert await here.append([commit(append("bob"), append("ada", 10))]) == [12]
        assert await there.append([one("ada", 11), one("bob", 1, 2)]) == [13, 15]
        await here.append([reaction("billing", 5, after=0)])
        (conflict,) = await there.append([reaction("billing", 6, after=0)])
        assert isinstance(conflict, Conflict)
        await there.append([reaction("billing", 8, after=5, group=0, log="x.main"), reaction("billing", 9, after=5)])
        assert sorted((c.log, c.position) for c in await here.checkpoints("billing")) == [("orders.main", 9)]
        check_log(await whole_log(here))


async def test_the_stream_itself_refuses_an_event_twice(nats_server: EmbeddedServer) -> None:
    """Even from a writer that expects nothing: the subject holds the version, and takes one message."""
    async with opened(nats_server) as store, connected(nats_server.url) as conn:
        await store.append([one("ada")])
        (row,) = await store.read_stream("ada")
        subject = store._form.encode_unplaced(row)[0]
        answer = await conn.request(subject, b"", timeout_s=5)
        assert b'"err_code":10077' in answer.body
        assert await store.head() == 1


async def test_a_foreign_message_is_an_error(nats_server: EmbeddedServer) -> None:
    """What evsync did not write is not passed over, and nothing moves past it."""
    async with opened(nats_server) as store, connected(nats_server.url) as conn:
        await store.append([one("ada", 0, 2)])
        await conn.request("evsync.users.main.7.User.Renamed.eve.1", b"{}", timeout_s=5)
        with pytest.raises(ForeignMessage, match=r"message 3 .* was not written by the store of users\.main"):
            await store.read(0, 10)
        assert len(await store.read_stream("ada")) == 2


# ---- the stream


async def test_a_full_stream_says_so(nats_server: EmbeddedServer) -> None:
    """Nothing of the commit is stored, the rest can be read, and with more room it goes on."""
    async with opened(nats_server) as store, connected(nats_server.url) as conn:
        await edit(conn, store, max_msgs=4)
        await store.append([one("ada", 0, 3)])
        with pytest.raises(StoreFull, match="maximum messages exceeded"):
            await store.append([one("bob", 0, 2)])
        assert await store.read_stream("bob") == []
        assert len(await store.read(0, 10)) == 3
        await edit(conn, store, max_msgs=-1)
        assert await store.append([one("bob", 0, 2)]) == [5]


@pytest.mark.parametrize(
    "change",
    [
        {"discard_new_per_subject": False, "max_msgs_per_subject": -1},
        {"allow_atomic": False},
        {"max_age": 3_600_000_000_000},
        {"subjects": ["evsync.users.main.>", "more"]},
        {"metadata": {}},
        {"metadata": {"evsync.log": "users.main", "evsync.slots": "256", "evsync.store": "2"}},
        {"metadata": {"evsync.log": "orders.main", "evsync.slots": "256", "evsync.store": "1"}},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_a_stream_with_other_settings_is_not_opened(nats_server: EmbeddedServer, change: dict[str, Any]) -> None:
    """Where the laws would not hold, or the stream is not ours: WrongStore, and nothing is touched."""
    name = default_name("users", "main")
    async with connected(nats_server.url) as conn:
        config = store_config(name, LogIdentity("users", "main", "abc"), 1) | change
        await conn.api(f"STREAM.CREATE.{name}", config)
        with pytest.raises(WrongStore, match=name):
            await JetStreamStore.open(nats_server.url, service="users")


async def test_a_store_is_where_its_url_says(nats_server: EmbeddedServer) -> None:
    """A stream by name; of another service, or beside another store of the same log, it is refused."""
    with pytest.raises(StoreUnavailable, match="no store was made there yet"):
        await JetStreamStore.open(nats_server.url, service="users", create=False)
    store = await JetStreamStore.open(f"{nats_server.url}/?stream=mine", service="users")
    assert store.stream == "mine"
    await store.close()
    with pytest.raises(WrongStore, match=r"users\.main, not of orders\.main"):
        await JetStreamStore.open(f"{nats_server.url}/?stream=mine", service="orders")
    with pytest.raises(WrongStore, match="belong to stream mine"):
        await JetStreamStore.open(nats_server.url, service="users")
    for query in ("stream=", "stream=a.b", "replicas=2", "shard=x"):
        with pytest.raises(ConfigurationError, match=r"NATS event store|stream's name"):
            await JetStreamStore.open(f"{nats_server.url}/?{query}", service="users")


async def test_no_relay_and_no_rebuild_touch_a_store(nats_server: EmbeddedServer) -> None:
    """A service of the same name with its store elsewhere: its relay halts, and a rebuild deletes nothing."""
    log = new_log()
    await log.append([one("eve")])
    async with opened(nats_server) as store, connected(nats_server.url) as conn:
        await store.append([one("ada", 0, 3)])
        async with relaying(log, conn) as relay:
            assert "is the event store of log users.main" in str(await halted(relay))
        with pytest.raises(ConfigurationError, match="the only copy"):
            await rebuild_stream(log, conn, allow_loss=True)
        assert [s.name for s in await streams.find(conn, "users")] == [store.stream]
        assert len(await store.read(0, 10)) == 3


# ---- reading


async def test_a_stream_is_read_in_few_round_trips(nats_server: EmbeddedServer) -> None:
    """A hundred events in one, a thousand too; a longer stream by pages, a part of one by its versions."""
    async with opened(nats_server) as store:
        for start in range(0, 2_500, 500):
            await store.append([one("ada", start, 500)])
        await store.append([one("bob", 0, 100), one("cy", 0, 900)])
        reads = store._reads
        for stream, after, to, events, most in [
            ("bob", 0, None, 100, 1),
            ("cy", 0, None, 900, 1),
            ("bob", 40, 50, 10, 1),
            ("bob", 40, None, 60, 2),
            ("ada", 0, None, 2_500, 5),
            ("ada", 2_400, None, 100, 2),
            ("ada", 0, 10**12, 2_500, 5),
            ("nobody", 0, None, 0, 1),
        ]:
            before = reads.round_trips
            rows = await store.read_stream(stream, after_version=after, to_version=to)
            assert [e.version for e in rows] == list(range(after + 1, after + 1 + events))
            assert reads.round_trips - before <= most, (stream, after, to)


async def test_large_commits_are_read_whole_whatever_the_server_sends_at_a_time(nats_server: EmbeddedServer) -> None:
    """The server ends an answer at a number of bytes; the store goes on asking."""
    big = Commit(
        one("x").command, [append("ada", 0, [e._replace(data=b"x" * 200_000) for e in append("x", 0, 90).events])]
    )
    async with opened(nats_server) as store:
        assert await store.append([big, one("bob")]) == [90, 91]
        assert len(await store.read(0, 1)) == 90
        assert len(await store.read_stream("ada")) == 90
        assert len(await store.read_stream("ada", after_version=10)) == 80
