"""The cache of aggregates changes how long a load takes, and nothing else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evsync import Service
from evsync.aggregates.cache import WORTH_EVENTS, AggregateCache
from evsync.aggregates.repository import Repository
from evsync.aggregates.snapshots import SnapshotPolicy, Snapshots
from evsync.codec.events import EventCodec
from evsync.domain import Aggregate, event
from evsync.errors import ConfigurationError, Conflict, NotFound, OutcomeUnknown
from evsync.homes import OneStore
from evsync.records import LogIdentity, Position, new_incarnation
from evsync.stores.group_commit import GroupCommit
from evsync.stores.memory import MemoryStore
from evsync.stores.sqlite.store import SqliteStore
from evsync.testing.contracts import LostReply
from tests.aggregates import Account, Basket, Hoard, Savings

pytestmark = pytest.mark.anyio


class Twin(Aggregate):
    """One list under two names."""

    @event("Begun")
    def __init__(self) -> None:
        self.left: list[int] = []
        self.right = self.left

    @event("Added")
    def add(self, n: int) -> None:
        """To both, as it is one."""
        self.left.append(n)


CODEC = EventCodec("bank", [Account, Savings, Basket, Hoard, Twin])


class Bank:
    """A repository with a cache whose replies can be lost, and one without, each with a store object of its own."""

    def __init__(self, store: Any, other: Any, cache: AggregateCache, snapshots_every: int | None = None) -> None:
        self.lossy, self.cache, self.reads = LostReply(store), cache, [0]
        policy = SnapshotPolicy(every_events=snapshots_every) if snapshots_every is not None else None
        self.snapshots = Snapshots(policy, CODEC, store) if policy is not None else None
        home = OneStore(self.lossy, GroupCommit(self.lossy))
        self.cached = Repository(CODEC, home, lambda _: None, self.snapshots, cache)
        self.other = Repository(CODEC, OneStore(other, GroupCommit(other)), lambda _: None)
        self.lossy.read_changes = counting(self.lossy, self.reads)  # type: ignore[method-assign]

    async def events_read(self, load: Awaitable[Any]) -> int:
        """How many events a load reads from the store."""
        self.reads.append(0)
        await load
        return self.reads[-1]


def counting(store: Any, reads: list[int]) -> Any:
    """The store's `read_changes`, adding what it reads to the last of these numbers."""
    read_changes = store.read_changes

    async def read_and_count(stream: str, **limits: Any) -> Any:
        async for changes in read_changes(stream, **limits):
            reads[-1] += len(changes)
            yield changes

    return read_and_count


def in_memory(size: int = 8, worth_events: int = 1) -> Bank:
    """Both on one store in memory."""
    store = MemoryStore(LogIdentity("bank", "main", new_incarnation()))
    return Bank(store, store, AggregateCache(size, worth_events=worth_events))


@asynccontextmanager
async def in_a_file(worth_events: int, snapshots_every: int | None) -> Any:
    """Each with an SQLite store of its own on the same file, as two processes have it."""
    with TemporaryDirectory() as directory:
        stores = [await SqliteStore.open(Path(directory) / "bank.db", service="bank") for _ in range(2)]
        bank = Bank(*stores, AggregateCache(8, worth_events=worth_events), snapshots_every)
        try:
            yield bank
        finally:
            if bank.snapshots is not None:
                await bank.snapshots.close()
            for store in stores:
                await store.close()


def deposits(count: int) -> Callable[[Account], None]:
    """A decision of several events, some of which change state in their own way."""

    def decide(account: Account) -> None:
        for n in range(count):
            account.audit(f"by {n}") if n % 3 == 2 else account.deposit(n)

    return decide


steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["here", "elsewhere", "both", "outrun", "mutate"]), st.integers(1, 12)),
        st.tuples(st.sampled_from(["request", "reply"]), st.integers(1, 12)),
    ),
    min_size=1,
    max_size=8,
)


@settings(deadline=None, max_examples=40)
@given(steps, st.sampled_from([1, 2, 10, WORTH_EVENTS]), st.sampled_from([None, 7]), st.data())
def test_loading_with_a_cache_is_a_full_replay(
    done: list[tuple[str, int]], worth_events: int, snapshots_every: int | None, data: st.DataObject
) -> None:
    """Whoever wrote, whatever went wrong, whatever was done to what was loaded before: now, at a version, at a time."""

    async def check() -> None:
        async with in_a_file(worth_events, snapshots_every) as bank:
            first = Account("ada", 0)
            await bank.other.save([first], {})
            for what, count in done:
                before = await bank.other.get(Account, first.id)
                written = await happen(bank, first.id, what, count)
                expected = await bank.other.get(Account, first.id)
                assert expected.version == before.version + written
                loaded = await bank.cached.get(Account, first.id)
                assert loaded == expected
                assert loaded.pending_events == []
                version = data.draw(st.integers(1, expected.version))
                then = await bank.other.get(Account, first.id, version=version)
                assert await bank.cached.get(Account, first.id, version=version) == then
                same = await bank.other.get(Account, first.id, at=then.modified_on)
                assert await bank.cached.get(Account, first.id, at=then.modified_on) == same
            with pytest.raises(NotFound, match="there is no version"):
                await bank.cached.get(Account, first.id, version=expected.version + 1)

    asyncio.run(check())


async def happen(bank: Bank, id: Any, what: str, count: int) -> int:
    """One step; returns how many events it must have added to the stream."""
    match what:
        case "here":
            await bank.cached.execute(Account, id, deposits(count), (), {}, {})
        case "elsewhere":
            await bank.other.execute(Account, id, deposits(count), (), {}, {})
        case "both":  # at once: one of them conflicts, and decides again
            rivals = [r.execute(Account, id, deposits(count), (), {}, {}) for r in (bank.cached, bank.other)]
            await asyncio.gather(*rivals)
            return 2 * count
        case "outrun":
            late = await bank.cached.get(Account, id)
            await bank.other.execute(Account, id, deposits(count), (), {}, {})
            late.deposit(1_000)
            with pytest.raises(Conflict):
                await bank.cached.save([late], {})
        case "mutate":  # nothing of this is an event
            loaded = await bank.cached.get(Account, id)
            loaded.balance += 1_000
            loaded.seen.clear()
            loaded.audits.append(("a thief", 0))
            loaded.deposit(count)
            return 0
        case "request" | "reply":
            await lose_one(bank, id, what, deposits(count))
    return count


async def lose_one(
    bank: Bank, id: Any, what: Literal["request", "reply"], decide: Callable[[Account], None]
) -> Position:
    """A command whose first append has an unknown outcome."""
    outcomes: Iterator[Literal["request", "reply"]] = iter([what])

    def unlucky(account: Account) -> None:
        bank.lossy.lose = next(outcomes, "nothing")
        decide(account)

    try:
        return await bank.cached.execute(Account, id, unlucky, (), {}, {})
    finally:
        bank.lossy.lose = "nothing"


async def test_only_the_events_behind_the_entry_are_read() -> None:
    """That is what it is for; and those that another process has written are among them."""
    bank, account = in_memory(), Account("ada", 0)
    deposits(50)(account)
    await bank.cached.save([account], {})
    assert await bank.events_read(bank.cached.get(Account, account.id)) == 51
    assert await bank.events_read(bank.cached.get(Account, account.id)) == 0
    await bank.other.execute(Account, account.id, deposits(3), (), {}, {})
    assert await bank.events_read(bank.cached.execute(Account, account.id, deposits(2), (), {}, {})) == 3
    assert await bank.events_read(bank.cached.get(Account, account.id)) == 2


async def test_a_command_is_found_though_the_cache_is_past_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The append was stored, and its event was in the cache before execute() could look for it."""
    bank, account = in_memory(), Account("ada", 0)
    await bank.cached.save([account], {})
    append = bank.lossy.append

    async def append_and_load(commits: Any) -> Any:
        try:
            return await append(commits)
        except OutcomeUnknown:
            assert (await bank.cached.get(Account, account.id)).version == 2
            raise

    monkeypatch.setattr(bank.lossy, "append", append_and_load)
    assert (await lose_one(bank, account.id, "reply", deposits(1))).number == 2
    assert (await bank.other.get(Account, account.id)).version == 2


async def test_an_aggregate_is_kept_where_that_pays() -> None:
    """Short streams are not, and a long one is kept anew when it has come a good way further."""
    bank, account = in_memory(worth_events=WORTH_EVENTS), Account("ada", 0)
    deposits(WORTH_EVENTS - 2)(account)
    await bank.cached.save([account], {})
    await bank.cached.get(Account, account.id)
    assert len(bank.cache) == 0
    read = []
    for _ in range(WORTH_EVENTS + 2):
        await bank.other.execute(Account, account.id, deposits(1), (), {}, {})
        read.append(await bank.events_read(bank.cached.get(Account, account.id)))
    assert read == [WORTH_EVENTS, *range(1, WORTH_EVENTS + 1), 1]


async def test_the_aggregate_that_was_not_loaded_for_longest_gives_way() -> None:
    """The cache holds so many aggregates, and no more."""
    bank = in_memory(size=2)
    first, second, third = accounts = [Account(name, 0) for name in ("ada", "grace", "joan")]
    await bank.cached.save(accounts, {})

    async def read(account: Account) -> int:
        return await bank.events_read(bank.cached.get(Account, account.id))

    assert [await read(a) for a in (first, second, first, third)] == [1, 1, 0, 1]
    assert len(bank.cache) == 2
    assert [await read(a) for a in (first, third, second)] == [0, 0, 1]


@pytest.mark.parametrize(("odd", "change", "reason"), [(Hoard, "grow", "defaultdict"), (Twin, "add", "twice")])
async def test_an_aggregate_whose_state_cannot_be_kept_loads_the_long_way(
    odd: Any, change: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Every time, without another attempt, and the reason is logged once; other classes are kept as ever."""
    bank, aggregate, account = in_memory(), odd(), Account("ada", 0)
    await bank.cached.save([aggregate, account], {})
    with caplog.at_level(logging.WARNING, "evsync"):
        for n in range(3):
            getattr(aggregate, change)(*([n] if odd is Twin else []))
            await bank.cached.save([aggregate], {})
            assert await bank.events_read(bank.cached.get(odd, aggregate.id)) == aggregate.version
    assert [reason in r.message for r in caplog.records] == [True]
    assert await bank.cached.get(odd, aggregate.id) == aggregate
    assert await bank.events_read(bank.cached.get(Account, account.id)) == 1
    assert await bank.events_read(bank.cached.get(Account, account.id)) == 0


async def test_the_past_is_not_kept() -> None:
    """A look at an old version is not what the next load wants to begin with."""
    bank, account = in_memory(), Account("ada", 0)
    deposits(9)(account)
    await bank.cached.save([account], {})
    await bank.cached.get(Account, account.id, version=5)
    await bank.cached.get(Account, account.id, at=account.modified_on)
    assert len(bank.cache) == 0


async def test_what_does_not_exist_is_not_found_with_a_cache_either() -> None:
    """The errors are the same."""
    bank, account = in_memory(), Account("ada", 0)
    await bank.cached.save([account], {})
    await bank.cached.get(Account, account.id)
    with pytest.raises(NotFound, match="is at version 1; there is no version 2"):
        await bank.cached.get(Account, account.id, version=2)
    with pytest.raises(NotFound, match="is a Account, not a Basket"):
        await bank.cached.get(Basket, account.id)


@pytest.mark.parametrize(("size", "read"), [(0, 82), (1, 41)])
async def test_a_service_has_no_cache_unless_it_is_asked_for(size: int, read: int) -> None:
    """`cached_aggregates` turns it on."""
    service = Service("bank", aggregates=[Account], cached_aggregates=size)
    async with service.open(store="memory://"):
        account, reads, store = Account("ada", 0), [0], service.runtime.store
        deposits(40)(account)
        await service.save(account)
        store.read_changes = counting(store, reads)  # type: ignore[method-assign]
        assert await service.get(Account, account.id) == await service.get(Account, account.id) == account
        assert reads == [read]


def test_a_cache_of_less_than_nothing_is_refused() -> None:
    """The error says what to write instead."""
    with pytest.raises(ConfigurationError, match="cached_aggregates=-1: use 0"):
        Service("bank", cached_aggregates=-1)
    with pytest.raises(ConfigurationError, match="must hold 1"):
        AggregateCache(0)
