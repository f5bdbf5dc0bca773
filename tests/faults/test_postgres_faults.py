"""PostgreSQL stores whose server is killed, whose connections are cut, and that many processes use at once."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from evsync import Aggregate, Service, event
from evsync.errors import ConfigurationError, Conflict, EncodingError, OutcomeUnknown, StoreUnavailable, WrongStore
from evsync.opening import open_store
from evsync.records import StoredEvent, command_of
from evsync.stores.group_commit import GroupCommit
from evsync.stores.postgres.store import PostgresStore
from evsync.testing.contracts.case import DEADLINE_S
from evsync.testing.contracts.samples import append, check_log, commit, one, whole_log
from evsync.testing.contracts.samples import event as new_event
from evsync.testing.postgres import PostgresServer

pytestmark = pytest.mark.anyio
OPENER = "evsync.opening:open_store"


class Counter(Aggregate):
    """Counts."""

    @event("Begun")
    def __init__(self) -> None:
        self.n = 0

    @event("Counted")
    def count(self) -> None:
        """One more."""
        self.n += 1


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server of this test's own, to be killed."""
    with (
        tempfile.TemporaryDirectory(prefix="evsync-pg-", ignore_cleanup_errors=True) as directory,
        PostgresServer(Path(directory)) as server,
    ):
        yield server


@asynccontextmanager
async def opened(url: str, **options: float) -> AsyncIterator[PostgresStore]:
    store = await PostgresStore.open(url, service="users", **options)  # type: ignore[arg-type]
    try:
        yield store
    finally:
        await store.close()


async def cut_connections(url: str, schema: str, pattern: str = "%") -> int:
    """What an administrator, a proxy or a failover does; how many it was done to."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as c:
        found = await c.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE application_name = %s AND query LIKE %s AND pid <> pg_backend_pid()",
            (f"evsync {schema}", pattern),
        )
        row = await found.fetchone()
        return int(row[0]) if row else 0


async def count_on(service: Service, id: object, acknowledged: list[int], stop: asyncio.Event) -> None:
    """Commands without end; each that returns was acknowledged."""
    while not stop.is_set():
        with contextlib.suppress(OutcomeUnknown, StoreUnavailable):
            await service.execute(Counter, id, Counter.count)  # type: ignore[arg-type]
            acknowledged[0] += 1


@pytest.mark.parametrize("fault", ["server killed", "connections cut"])
async def test_every_acknowledged_command_took_effect_once(server: PostgresServer, fault: str) -> None:
    """Under load the server is killed with -9 and started again, or every connection is cut, three times: what was
    acknowledged is there once, and what was tried again after an unknown outcome is not there twice."""
    service = Service("counters", aggregates=[Counter])
    async with asyncio.timeout(120), service.open(store=server.url):
        counters = [Counter() for _ in range(8)]
        await service.save(*counters)
        acknowledged = [[0] for _ in counters]
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for counter, count in zip(counters, acknowledged, strict=True):
                tasks.create_task(count_on(service, counter.id, count, stop))
            for _ in range(3):
                before = sum(n for [n] in acknowledged)
                while sum(n for [n] in acknowledged) < before + 100:
                    await asyncio.sleep(0.01)
                if fault == "server killed":
                    await asyncio.to_thread(server.kill)
                    await asyncio.to_thread(server.restart)
                else:
                    assert await cut_connections(server.url, "counters") > 0
            stop.set()
        for counter, [count] in zip(counters, acknowledged, strict=True):
            stored = (await service.get(Counter, counter.id)).n
            # execute() gives up when patience ends; it may then have taken effect without being acknowledged.
            assert stored >= count
            assert stored - count <= 3
        assert service.store is not None
        check_log(await whole_log(service.store))


async def test_a_process_killed_between_commit_and_reply_finds_its_command(server: PostgresServer) -> None:
    """The store answers OutcomeUnknown, or the commit is there: never an ordinary error for a commit that is stored."""
    async with opened(server.url) as store:
        outcomes: dict[bytes, int | None] = {}
        for n in range(30):
            wanted = one(f"s{n}", 0, [new_event(data=b"x" * 200_000)])
            appending = asyncio.create_task(store.append([wanted]))
            await asyncio.sleep(random.uniform(0, 0.004))
            await cut_connections(server.url, "users", "%append_commits%")
            try:
                [outcome] = await appending
                assert isinstance(outcome, int)
                outcomes[wanted.command] = outcome
            except OutcomeUnknown:
                outcomes[wanted.command] = None
        found = check_log(await whole_log(store))
        for command, position in outcomes.items():
            if position is not None:
                assert found[command][-1].position == position


async def test_a_killed_listener_stalls_nobody(server: PostgresServer) -> None:
    """Notifications are a hint: the poll stands behind them."""
    async with opened(server.url, poll_s=0.05) as here, opened(server.url) as there, asyncio.timeout(DEADLINE_S):
        for n in range(4):
            waiting = asyncio.create_task(here.wait(n, 3600))
            while not await cut_connections(server.url, "users", "LISTEN%"):
                await asyncio.sleep(0.01)
            await there.append([one("ada", n)])
            assert await waiting == n + 1


async def test_a_notification_wakes_without_the_poll(postgres_url: str) -> None:
    """An append elsewhere is known at once."""
    url = f"{postgres_url}&schema=wakes"
    async with opened(url, poll_s=3600) as here, opened(url) as there, asyncio.timeout(DEADLINE_S):
        for n in range(5):
            waiting = asyncio.create_task(here.wait(n, 3600))
            while not here._tail.awaited or "LISTEN" not in await _queries(postgres_url, "wakes"):
                await asyncio.sleep(0.01)
            await there.append([one("ada", n)])
            assert await waiting == n + 1


async def _queries(url: str, schema: str) -> str:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as c:
        found = await c.execute("SELECT query FROM pg_stat_activity WHERE application_name = %s", (f"evsync {schema}",))
        return "\n".join(row[0] for row in await found.fetchall())


async def test_a_tailing_reader_misses_nothing_of_six_writing_processes(postgres_url: str) -> None:
    """Positions become visible in their own order, whatever the sizes of the commits: no reader can find an event at or
    below what it has seen."""
    url = f"{postgres_url}&schema=six"
    async with opened(url) as store, asyncio.timeout(DEADLINE_S):
        command = [sys.executable, "-m", "evsync.testing.contracts.appender", OPENER, url, "users", "main"]
        processes = [
            await asyncio.create_subprocess_exec(*command, f"w{n}", "60", "1,4,2", stdout=PIPE) for n in range(6)
        ]
        seen: list[StoredEvent] = []
        while len(seen) < 6 * 20 * (2 + 5 + 3):
            after = seen[-1].position if seen else 0
            events = await store.read(after, 50)
            assert [e.position for e in events] == list(range(after + 1, after + 1 + len(events)))
            seen += events
            if not events:
                await store.wait(after, 1.0)
        acknowledged = {}
        for process in processes:
            output, _ = await process.communicate()
            assert process.returncode == 0
            acknowledged |= {
                bytes.fromhex(c): int(p) for c, p in (line.split() for line in output.decode().splitlines())
            }
        assert await store.read(seen[-1].position, 10) == []
        assert {command_of(e.id): e.position for e in seen if not e.remaining} == acknowledged


async def test_a_killed_process_leaves_no_commit_in_part(postgres_url: str) -> None:
    """SIGKILL in the middle of commits, three times: acknowledged commits are there, all others whole or not at all."""
    url = f"{postgres_url}&schema=killed"
    acknowledged: dict[bytes, int] = {}
    async with opened(url) as store, asyncio.timeout(DEADLINE_S):
        command = [sys.executable, "-m", "evsync.testing.contracts.appender", OPENER, url, "users", "main"]
        for kill_after in (1, 25, 60):
            process = await asyncio.create_subprocess_exec(*command, "ann", "100000", stdout=PIPE)
            assert process.stdout is not None
            lines = [await process.stdout.readline() for _ in range(kill_after)]
            process.send_signal(signal.SIGKILL)
            lines += (await process.stdout.read()).splitlines()
            await process.wait()
            acknowledged |= {bytes.fromhex(c): int(p) for c, p in (line.decode().split() for line in lines)}
        found = check_log(await whole_log(store))
        for key, position in acknowledged.items():
            assert found[key][-1].position == position
            assert len(found[key]) == 3


async def test_a_commit_whose_process_was_killed_before_the_reply_is_stored_once(postgres_url: str) -> None:
    """The server has the append and the process is gone: all of it is stored, and whoever tries again meets it."""
    url = f"{postgres_url}&schema=orphan"
    command = [sys.executable, "-m", "evsync.testing.contracts.appender", OPENER, url, "users", "main"]
    async with (
        opened(url) as store,
        asyncio.timeout(DEADLINE_S),
        await psycopg.AsyncConnection.connect(postgres_url) as holder,
    ):
        await holder.execute("SELECT head FROM orphan.log FOR UPDATE")
        process = await asyncio.create_subprocess_exec(*command, "ann", "1", stdout=PIPE)
        while not await _waiting_appends(postgres_url, "orphan"):
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        assert await store.head() == 0
        await holder.commit()  # the server finishes what nobody waits for any more
        while not await store.head():
            await asyncio.sleep(0.01)
        [rows] = check_log(await whole_log(store)).values()
        assert len(rows) == 3
        [outcome] = await store.append([one("ann", 0)])
        assert isinstance(outcome, Conflict)
        assert outcome.actual == 1


async def _waiting_appends(url: str, schema: str) -> int:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as c:
        found = await c.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock' "
            "AND query LIKE '%%append_commits%%'",
            (f"evsync {schema}",),
        )
        row = await found.fetchone()
        return int(row[0]) if row else 0


async def test_ten_processes_that_start_at_once_make_one_store(postgres_url: str) -> None:
    """One schema, one incarnation."""
    url = f"{postgres_url}&schema=ten"
    stores = await asyncio.gather(*(PostgresStore.open(url, service="users") for _ in range(10)))
    assert len({store.identity.incarnation for store in stores}) == 1
    await asyncio.gather(*(store.append([one(f"s{n}")]) for n, store in enumerate(stores)))
    check_log(await whole_log(stores[0]))
    await asyncio.gather(*(store.close() for store in stores))


async def test_a_role_that_may_use_its_own_schema_only_is_enough(postgres_url: str) -> None:
    """It may make no schema and see nobody else's."""
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as c:
        await c.execute("CREATE ROLE narrow LOGIN")
        await c.execute("CREATE SCHEMA narrow AUTHORIZATION narrow")
        await c.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    url = postgres_url.replace("postgres@", "narrow@")
    store = await PostgresStore.open(f"{url}&schema=narrow", service="users")
    assert await store.append([one("ada")]) == [1]
    await store.close()
    with pytest.raises(StoreUnavailable, match="permission denied"):
        await PostgresStore.open(f"{url}&schema=other", service="users")


async def test_whose_store_it_is_is_checked_before_anything_is_touched(postgres_url: str) -> None:
    """Another service, another shard, a newer evsync, no store at all."""
    url = f"{postgres_url}&schema=mine"
    with pytest.raises(StoreUnavailable, match="no store in schema 'mine'"):
        await PostgresStore.open(url, service="users", create=False)
    await (await PostgresStore.open(url, service="users")).close()
    with pytest.raises(WrongStore, match="service 'users', shard 'main', not of 'orders'"):
        await PostgresStore.open(url, service="orders")
    with pytest.raises(WrongStore, match="shard 'main', not of 'users', shard 'b'"):
        await PostgresStore.open(url, service="users", shard="b")
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as c:
        await c.execute("UPDATE mine.log SET schema = 99")
    with pytest.raises(WrongStore, match="opened by a newer one"):
        await PostgresStore.open(url, service="users")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://user:secret@127.0.0.1:1/db?nonsense=1", "not understood"),
        ("postgresql://user:secret@127.0.0.1:port/db", "not understood"),
        ("postgresql://user:secret@127.0.0.1/db?schema=pg_mine", "cannot be the name"),
        ("postgresql://user:secret@127.0.0.1/db?schema=", "cannot be the name"),
    ],
)
async def test_a_wrong_url_is_refused_without_its_password(url: str, says: str) -> None:
    """Before anything is connected to."""
    with pytest.raises(ConfigurationError, match=says) as caught:
        await open_store(url, service="users")
    assert "secret" not in str(caught.value)


async def test_a_database_that_is_away_is_waited_for_and_then_named_without_its_password() -> None:
    """Nothing was stored, and the error says where it looked."""
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1/db") as caught:
        await PostgresStore.open("postgresql://user:secret@127.0.0.1:1/db", service="users", patience_s=0.2)
    assert "secret" not in str(caught.value)


async def test_what_the_columns_cannot_hold_fails_alone(postgres_url: str) -> None:
    """A NUL in a text: its own commit is refused, its neighbours are stored."""
    async with opened(f"{postgres_url}&schema=columns") as store:
        queue = GroupCommit(store)
        bad = commit(append("nul\0inside"))
        outcomes = await asyncio.gather(
            queue.commit(one("a")), queue.commit(bad), queue.commit(one("b")), return_exceptions=True
        )
        assert isinstance(outcomes[1], EncodingError)
        assert sorted(o for o in outcomes if isinstance(o, int)) == [1, 2]
        [outcome] = await store.append([one("a")])
        assert isinstance(outcome, Conflict)
