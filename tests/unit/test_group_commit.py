"""The queue in front of a store: what shares an append, what fails alone, and what a cancelled caller leaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import pytest

from evsync.errors import Conflict, EncodingError, EventTooLarge, OutcomeUnknown, StoreFull, StoreUnavailable
from evsync.records import Commit, LogIdentity, command_of
from evsync.stores.group_commit import GroupCommit
from evsync.stores.memory import MemoryStore
from evsync.testing.contracts.case import DEADLINE_S
from evsync.testing.contracts.samples import check_log, event, one, whole_log

pytestmark = pytest.mark.anyio


class GatedStore(MemoryStore):
    """A memory store whose appends wait for a gate, and that tells the sizes of the groups it was given."""

    def __init__(self) -> None:
        super().__init__(LogIdentity("users", "main", "0123456789ab"))
        self.gate = asyncio.Event()
        self.gate.set()
        self.groups: list[int] = []
        self.refuse: dict[str, Exception] = {}
        self.in_flight = 0

    async def append(self, commits: Sequence[Commit]) -> list[int | Conflict]:
        assert self.in_flight == 0, "two appends at once"
        self.groups.append(len(commits))
        self.in_flight += 1
        try:
            await self.gate.wait()
            for commit in commits:
                for a in commit.appends:
                    if a.stream in self.refuse:
                        raise self.refuse[a.stream]
            return await super().append(commits)
        finally:
            self.in_flight -= 1

    async def entered(self, group: int) -> None:
        """Return when the append number `group` (1, 2, …) is in flight."""
        async with asyncio.timeout(DEADLINE_S):
            while len(self.groups) < group or not self.in_flight:
                await asyncio.sleep(0)


async def all_of(*calls: asyncio.Future[int]) -> list[int | BaseException]:
    async with asyncio.timeout(DEADLINE_S):
        return await asyncio.gather(*calls, return_exceptions=True)


def start(queue: GroupCommit, *commits: Commit) -> list[asyncio.Future[int]]:
    return [asyncio.ensure_future(queue.commit(c)) for c in commits]


async def test_what_arrives_during_an_append_shares_the_next() -> None:
    """One append in flight at a time; a single save is sent alone and at once."""
    store = GatedStore()
    queue = GroupCommit(store)
    store.gate.clear()
    first = start(queue, one("a"))
    await store.entered(1)
    others = start(queue, *(one(f"s{i}") for i in range(50)))
    await asyncio.sleep(0)
    assert store.groups == [1]
    store.gate.set()
    assert await all_of(*first, *others) == list(range(1, 52))
    assert store.groups == [1, 50]
    assert await queue.commit(one("z")) == 52
    assert store.groups == [1, 50, 1]


async def test_callers_of_one_turn_of_the_loop_share_the_first_append() -> None:
    """A group does not begin with a lonely first commit while all others are just about to arrive."""
    store = GatedStore()
    queue = GroupCommit(store)
    assert await all_of(*start(queue, *(one(f"s{i}") for i in range(64)))) == list(range(1, 65))
    assert store.groups == [64]


async def test_what_does_not_fit_into_a_group_waits_for_its_end() -> None:
    """The store never has two appends at once, however much is queued."""
    store = GatedStore()
    store.gate.clear()
    calls = start(GroupCommit(store, max_events=1), one("a"), one("b"), one("c"))
    await store.entered(1)
    await asyncio.sleep(0)
    assert store.groups == [1]
    store.gate.set()
    assert await all_of(*calls) == [1, 2, 3]


async def test_a_group_is_bounded_by_events_and_bytes() -> None:
    """A commit that is larger than the bound goes alone; the order is that of the calls."""
    store = GatedStore()
    queue = GroupCommit(store, max_events=10)
    sizes = [4, 4, 4, 25, 1, 10, 9, 1, 1]
    assert await all_of(*start(queue, *(one(f"s{i}", 0, n) for i, n in enumerate(sizes)))) == [
        4, 8, 12, 37, 38, 48, 57, 58, 59,
    ]  # fmt: skip
    assert store.groups == [2, 1, 1, 1, 1, 2, 1]
    store.groups.clear()
    queue = GroupCommit(store, max_bytes=1000)
    await all_of(*start(queue, *(one(f"b{i}", 0, [event(data=b"x" * 400)]) for i in range(5))))
    assert store.groups == [2, 2, 1]


async def test_a_conflict_fails_its_own_caller_only() -> None:
    """Commits of a group see one another; the conflict comes to the caller whose commit it is."""
    store = GatedStore()
    queue = GroupCommit(store)
    outcomes = await all_of(*start(queue, one("a"), one("a"), one("b"), one("a", 1)))
    assert [type(o) for o in outcomes] == [int, Conflict, int, int]
    assert [e.stream for e in await whole_log(store)] == ["a", "b", "a"]


@pytest.mark.parametrize("error", [StoreFull("full"), StoreUnavailable("away"), OutcomeUnknown("lost")])
async def test_a_store_that_fails_fails_the_whole_group(error: Exception) -> None:
    """Each caller gets an error of its own; nothing is sent again behind their backs; the queue goes on."""
    store = GatedStore()
    queue = GroupCommit(store)
    store.refuse["b"] = error
    outcomes = await all_of(*start(queue, one("a"), one("b"), one("c")))
    assert [type(o) for o in outcomes] == [type(error)] * 3
    assert [str(o) for o in outcomes] == [str(error)] * 3
    assert len({id(o) for o in outcomes}) == 3
    assert store.groups == [3]
    assert await queue.commit(one("d")) == 1


@pytest.mark.parametrize("error", [EncodingError("odd"), EventTooLarge("a.B.C", "b", 2, 1), RuntimeError("?")])
async def test_a_commit_that_cannot_be_stored_does_not_fail_its_neighbours(error: Exception) -> None:
    """The commits of such a group are tried one by one, in their order."""
    store = GatedStore()
    queue = GroupCommit(store)
    store.refuse["b"] = error
    outcomes = await all_of(*start(queue, one("a"), one("b"), one("c"), one("a", 1)))
    assert [o for o in outcomes if isinstance(o, int)] == [1, 2, 3]
    assert type(outcomes[1]) is type(error)
    assert str(outcomes[1]) == str(error)
    assert store.groups == [4, 1, 1, 1, 1]


async def test_a_cancelled_caller_in_the_queue_is_not_sent() -> None:
    """Its commit had not left: it is taken back whole, and the others go on."""
    store = GatedStore()
    queue = GroupCommit(store)
    store.gate.clear()
    calls = start(queue, one("a"))
    await store.entered(1)
    calls += start(queue, one("b"), one("c"))
    await asyncio.sleep(0)
    calls[1].cancel()
    store.gate.set()
    outcomes = await all_of(*calls)
    assert [type(o) for o in outcomes] == [int, asyncio.CancelledError, int]
    assert [e.stream for e in await whole_log(store)] == ["a", "c"]


async def test_a_cancelled_caller_in_flight_is_carried_out() -> None:
    """The append is not taken back: its commit is stored whole, and its neighbours hear of theirs."""
    store = GatedStore()
    queue = GroupCommit(store)
    store.gate.clear()
    calls = start(queue, one("a", 0, 3), one("b"))
    await store.entered(1)
    calls[0].cancel()
    await asyncio.sleep(0)
    assert calls[0].cancelled()
    store.gate.set()
    assert (await all_of(*calls))[1] == 4
    assert [e.stream for e in await whole_log(store)] == ["a", "a", "a", "b"]


async def test_callers_that_are_cancelled_at_any_moment_leave_whole_commits() -> None:
    """Whatever the moment: no commit in part, none twice, and every acknowledged one is there."""
    store = GatedStore()
    queue = GroupCommit(store, max_events=7)
    acknowledged = set()
    for turn in range(40):
        commits = [one(f"s{turn}.{i}", 0, 1 + i % 3) for i in range(5)]
        calls = start(queue, *commits)
        for _ in range(turn % 8):
            await asyncio.sleep(0)
        calls[turn % 5].cancel()
        for commit, outcome in zip(commits, await all_of(*calls), strict=True):
            if isinstance(outcome, int):
                acknowledged.add(commit.command)
    found = check_log(await whole_log(store))
    assert acknowledged <= set(found)
    assert len(acknowledged) >= 4 * 40
    assert all(len({command_of(e.id) for e in rows}) == 1 for rows in found.values())
    await queue.close()


async def test_closing_drains_the_queue() -> None:
    """What was accepted is carried out, what comes later is refused; the store stays open."""
    store = GatedStore()
    queue = GroupCommit(store, max_events=2)
    store.gate.clear()
    calls = start(queue, *(one(f"s{i}") for i in range(5)))
    await store.entered(1)
    closing = asyncio.ensure_future(queue.close())
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable, match="closing"):
        await queue.commit(one("late"))
    assert not closing.done()
    store.gate.set()
    async with asyncio.timeout(DEADLINE_S):
        await closing
    assert await all_of(*calls) == [1, 2, 3, 4, 5]
    await queue.close()
    assert await store.head() == 5


async def test_an_event_loop_that_ends_leaves_nobody_in_doubt() -> None:
    """When the queue's own task is cancelled, as asyncio.run does at its end, what was in flight is unknown and what
    waited is not stored."""
    store = GatedStore()
    queue = GroupCommit(store)
    store.gate.clear()
    before = asyncio.all_tasks()
    calls = start(queue, one("a"))
    await store.entered(1)
    (writer,) = asyncio.all_tasks() - before - set(calls)
    calls += start(queue, one("b"))
    await asyncio.sleep(0)
    writer.cancel()
    outcomes = await all_of(*calls)
    assert [type(o) for o in outcomes] == [OutcomeUnknown, StoreUnavailable]
    with contextlib.suppress(asyncio.CancelledError):
        await writer
    store.gate.set()
    assert await queue.commit(one("c")) == 1
