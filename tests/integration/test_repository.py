"""Load, save, decide again: what a command may meet on its way into a store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from evsync.aggregates.repository import Repository
from evsync.codec.events import EventCodec
from evsync.errors import ConfigurationError, Conflict, EventTooLarge, NotFound, OutcomeUnknown
from evsync.homes import OneStore
from evsync.records import Append, Commit, LogIdentity, new_incarnation
from evsync.stores.group_commit import GroupCommit
from evsync.stores.memory import MemoryStore
from tests.aggregates import Account, Basket, Savings

pytestmark = pytest.mark.anyio
CODEC = EventCodec("bank", [Account, Savings, Basket])


class Unsure(MemoryStore):
    """A store whose reply is lost: `lose` says for each coming append whether it is stored all the same."""

    def __init__(self) -> None:
        super().__init__(LogIdentity("bank", "main", new_incarnation()))
        self.lose: list[bool] = []
        self.before_append: list[asyncio.Event] = []

    async def append(self, commits: Sequence[Commit]) -> list[int | Conflict]:
        """As asked, or with a lost reply."""
        if self.before_append:
            await self.before_append.pop(0).wait()
        if not self.lose:
            return await super().append(commits)
        if self.lose.pop(0):
            await super().append(commits)
        raise OutcomeUnknown("the reply was lost")


def no_limit(append: Append) -> None:
    """Everything fits."""


@pytest.fixture
def store() -> Unsure:
    """A store that forgets to answer when it is told to."""
    return Unsure()


@pytest.fixture
def bank(store: Unsure) -> Repository:
    """Aggregates in that store."""
    return Repository(CODEC, OneStore(store, GroupCommit(store)), no_limit)


async def test_what_was_saved_is_loaded_at_any_version_and_time(bank: Repository) -> None:
    """get() is a replay of the stream's prefix."""
    account = Account("ada", 1)
    await bank.save([account], {})
    account.deposit(2)
    account.deposit(3)
    await bank.save([account], {})
    assert await bank.get(Account, account.id) == account
    assert (await bank.get(Account, str(account.id), version=2)).balance == 3
    assert (await bank.get(Account, account.id, at=account.created_on)).balance == 1
    assert (await bank.get(Account, account.id, at=datetime.now(UTC))).balance == 6


async def test_what_a_time_shows_was_a_state_though_a_clock_was_set_back(bank: Repository) -> None:
    """The events before the first one that is later than the time: one behind it that claims to be earlier is not."""
    account = Account("ada", 1)
    account.deposit(2)
    account.deposit(3)
    for event, after_s in zip(account.pending_events[1:], (10, 5), strict=True):
        vars(event)["timestamp"] = account.created_on + timedelta(seconds=after_s)
    await bank.save([account], {})
    for after_s, balance in ((4, 1), (7, 1), (10, 6)):
        at = account.created_on + timedelta(seconds=after_s)
        assert (await bank.get(Account, account.id, at=at)).balance == balance


async def test_what_is_not_there_is_not_found(bank: Repository) -> None:
    """No stream, no such version, not yet begun, another kind of aggregate: each says which."""
    account, basket = Account("ada", 1), Basket("b-1", owner="ada")
    await bank.save([account, basket], {})
    with pytest.raises(NotFound, match=r"there is no Account '.*' in service 'bank'"):
        await bank.get(Account, Account("bob", 1).id)
    with pytest.raises(NotFound, match="is at version 1; there is no version 2"):
        await bank.get(Account, account.id, version=2)
    with pytest.raises(NotFound, match="versions begin at 1"):
        await bank.get(Account, account.id, version=0)
    with pytest.raises(NotFound, match="did not exist at"):
        await bank.get(Account, account.id, at=account.created_on - timedelta(microseconds=1))
    with pytest.raises(NotFound, match="is a Basket, not a Account"):
        await bank.get(Account, "b-1")
    with pytest.raises(ConfigurationError, match="no time zone"):
        await bank.get(Account, account.id, at=datetime(2026, 1, 1))


async def test_a_subclass_is_found_by_its_parent(bank: Repository) -> None:
    """A stream knows its own class."""
    savings = Savings("ada", 1)
    await bank.save([savings], {})
    assert type(await bank.get(Account, savings.id)) is Savings


async def test_a_failed_save_keeps_the_pending_events(bank: Repository) -> None:
    """Saving again cannot silently do nothing: it conflicts again."""
    account = Account("ada", 1)
    await bank.save([account], {})
    mine, other = await bank.get(Account, account.id), await bank.get(Account, account.id)
    other.deposit(1)
    await bank.save([other], {})
    mine.deposit(10)
    for _ in range(2):
        with pytest.raises(Conflict, match="is at version 2, not at version 1"):
            await bank.save([mine], {})
        assert [e.amount for e in mine.pending_events] == [10]


async def test_several_aggregates_are_saved_in_one_commit_or_not_at_all(bank: Repository, store: Unsure) -> None:
    """A conflict of one keeps all of them out."""
    account, basket = Account("ada", 1), Basket("b-1", owner="ada")
    position = await bank.save([account, basket], {})
    assert position.number == 2
    stale = await bank.get(Account, account.id)
    account.deposit(1)
    await bank.save([account], {})
    stale.deposit(5)
    basket.add("sku")
    with pytest.raises(Conflict):
        await bank.save([stale, basket], {})
    assert await store.head() == 3
    assert len(await store.read_stream("b-1")) == 1


async def test_an_empty_save_returns_the_head(bank: Repository) -> None:
    """There is nothing to wait for but what is there."""
    account = Account("ada", 1)
    first = await bank.save([account], {})
    assert await bank.save([account], {}) == first


async def test_saving_twice_at_once_stores_the_events_once(bank: Repository, store: Unsure) -> None:
    """One save of a stream is in flight at a time; the second finds nothing left to do."""
    account = Account("ada", 1)
    first, second = await asyncio.gather(bank.save([account], {}), bank.save([account], {}))
    assert first == second
    assert await store.head() == 1


async def test_what_is_decided_during_a_save_stays_pending(bank: Repository, store: Unsure) -> None:
    """Only what was stored is taken off."""
    account = Account("ada", 1)
    gate = asyncio.Event()
    store.before_append = [gate]
    saving = asyncio.create_task(bank.save([account], {}))
    while store.before_append:
        await asyncio.sleep(0)
    account.deposit(5)
    gate.set()
    await saving
    assert [e.amount for e in account.pending_events] == [5]
    await bank.save([account], {})
    assert (await bank.get(Account, account.id)).balance == 6


async def test_two_objects_of_one_stream_in_one_save_are_refused(bank: Repository) -> None:
    """Which of them would be first?"""
    account = Account("ada", 1)
    await bank.save([account], {})
    copies = [await bank.get(Account, account.id) for _ in range(2)]
    for copy in copies:
        copy.deposit(1)
    with pytest.raises(ConfigurationError, match="two objects of stream"):
        await bank.save(copies, {})


async def test_what_is_no_aggregate_of_the_service_is_refused(bank: Repository) -> None:
    """A class that was not registered, and what is no aggregate at all."""
    narrow = Repository(EventCodec("shop", [Basket]), OneStore(*_store_of("shop")), no_limit)
    with pytest.raises(ConfigurationError, match=r"Account is not an aggregate of service 'shop' \(it has: Basket\)"):
        await narrow.save([Account("ada", 1)], {})
    with pytest.raises(ConfigurationError, match="Account is not an aggregate of service 'shop'"):
        await narrow.get(Account, "x")
    with pytest.raises(ConfigurationError, match="is not an aggregate"):
        await bank.save(["ada"], {})  # type: ignore[list-item]


def _store_of(service: str) -> tuple[MemoryStore, GroupCommit]:
    store = MemoryStore(LogIdentity(service, "main", new_incarnation()))
    return store, GroupCommit(store)


async def test_execute_decides_again_after_conflicts_of_other_processes(store: Unsure) -> None:
    """Two processes, many commands each, one stream: every command takes effect once."""
    one, two = (Repository(CODEC, OneStore(store, GroupCommit(store)), no_limit) for _ in range(2))
    account = Account("ada", 0)
    await one.save([account], {})
    await asyncio.gather(
        *(bank.execute(Account, account.id, Account.deposit, (1,), {}, {}) for bank in (one, two) for _ in range(40))
    )
    assert (await one.get(Account, account.id)).balance == 80


async def test_a_command_that_refuses_changes_nothing(bank: Repository, store: Unsure) -> None:
    """What decide raises reaches the caller."""
    account = Account("ada", 0)
    await bank.save([account], {})

    def refuse(account: Account) -> None:
        account.deposit(5)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await bank.execute(Account, account.id, refuse, (), {}, {})
    assert await store.head() == 1


@pytest.mark.parametrize("stored", [True, False])
async def test_execute_looks_for_its_command_after_an_unknown_outcome(
    bank: Repository, store: Unsure, stored: bool
) -> None:
    """Stored or not, it takes effect exactly once."""
    account = Account("ada", 0)
    await bank.save([account], {})
    store.lose = [stored, not stored, stored]
    position = await bank.execute(Account, account.id, Account.deposit, (7,), {}, {})
    assert (await bank.get(Account, account.id)).balance == 7
    assert position.number == await store.head() == 2


@pytest.mark.parametrize("stored", [True, False])
async def test_a_save_repeated_after_an_unknown_outcome_stores_once(
    bank: Repository, store: Unsure, stored: bool
) -> None:
    """The very events are looked for before they are sent again."""
    account, basket = Account("ada", 0), Basket("b-1", owner="ada")
    account.deposit(7)
    store.lose = [stored]
    with pytest.raises(OutcomeUnknown):
        await bank.save([account, basket], {})
    assert len(account.pending_events) == 2
    account.deposit(1)  # decided meanwhile
    await bank.save([account, basket], {})
    assert await store.head() == 4
    assert (await bank.get(Account, account.id)).balance == 8


class Late(Unsure):
    """A store that the first append reaches behind the second: who sent it has given up waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.on_its_way: list[Commit] | None = None

    async def append(self, commits: Sequence[Commit]) -> list[int | Conflict]:
        """The first one is not answered, and arrives with the next."""
        if self.on_its_way is None:
            self.on_its_way = list(commits)
            raise OutcomeUnknown("the reply was lost")
        await super().append(self.on_its_way)
        self.on_its_way = []
        return await super().append(commits)


async def test_a_save_whose_first_try_arrives_late_stores_once() -> None:
    """What was not there when it was looked for may be what the second try conflicts with."""
    store = Late()
    bank = Repository(CODEC, OneStore(store, GroupCommit(store)), no_limit)
    account = Account("ada", 1)
    with pytest.raises(OutcomeUnknown):
        await bank.save([account], {})
    position = await bank.save([account], {})
    assert position.number == await store.head() == 1
    assert not account.pending_events


async def test_a_save_that_was_cancelled_can_be_repeated(bank: Repository, store: Unsure) -> None:
    """The commit under way completes; saving again finds it instead of a conflict."""
    account, gate = Account("ada", 0), asyncio.Event()
    store.before_append = [gate]
    saving = asyncio.create_task(bank.save([account], {}))
    while store.before_append:
        await asyncio.sleep(0)
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    again = asyncio.create_task(bank.save([account], {}))
    gate.set()
    position = await again
    assert position.number == await store.head() == 1
    assert not account.pending_events


async def test_an_event_too_large_is_refused_before_anything_is_stored(store: Unsure) -> None:
    """The check sees every append of the commit."""

    def tiny(append: Append) -> None:
        for event in append.events:
            if len(event.data) > 50:
                raise EventTooLarge(event.type, append.stream, len(event.data), 50)

    bank = Repository(CODEC, OneStore(store, GroupCommit(store)), tiny)
    account, basket = Account("ada", 0), Basket("b-1", owner="ada" * 50)
    with pytest.raises(EventTooLarge, match=r"bank\.Basket\.Opened of stream 'b-1' takes"):
        await bank.save([account, basket], {})
    assert await store.head() == 0
    assert account.pending_events
