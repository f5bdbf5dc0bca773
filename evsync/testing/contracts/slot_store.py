"""The laws of SlotStore, as tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import count, pairwise
from typing import Any, cast

import msgpack
import pytest

from evsync.control import SLOTS_STREAM
from evsync.errors import ConfigurationError, Conflict, SlotMoved
from evsync.homes import ShardedStores
from evsync.ports import SlotSize, SlotStore, Store
from evsync.records import History, Opening, SlotState, StoredEvent
from evsync.sharding.handover import BEGINNING, Move, bring_about, carry_out
from evsync.sharding.slots import slot_of
from evsync.sharding.truth import truth
from evsync.stores.group_commit import GroupCommit
from evsync.testing.contracts import samples
from evsync.testing.contracts.case import DEADLINE_S, StoreCase
from evsync.testing.contracts.dying import Budget, Dying, Killed
from evsync.testing.contracts.samples import append, commit, given, one

STREAMS = ("ada", "bob", "cy")
SLOTS = {slot_of(stream): stream for stream in STREAMS}


class SlotStoreContract(StoreCase):
    """What every SlotStore promises. For stores that keep the laws of EventStore and EventLog too."""

    async def new_shard(self, shard: str, *, owns_slots: bool) -> Store:
        """A new, empty store of a shard, as `open_store` makes it: all slots are open in it, or none."""
        raise NotImplementedError("override new_shard: it makes the empty store of a shard")

    @asynccontextmanager
    async def shards(self) -> AsyncIterator[dict[str, Store]]:
        """Two new stores: in `a` all slots are open, in `b` none."""
        a = await self.new_shard("a", owns_slots=True)
        try:
            b = await self.new_shard("b", owns_slots=False)
            try:
                yield {"a": a, "b": b}
            finally:
                await b.close()
        finally:
            await a.close()

    async def test_all_slots_begin_in_the_first_shard(self) -> None:
        """A store that joins later has none, and refuses every append."""
        async with self.shards() as stores:
            a, b = stores.values()
            assert await a.slot_states() == dict.fromkeys(range(stores["a"].identity.slots), SlotState(1))
            assert await b.slot_states() == {}
            assert (await a.slot_state(7), await b.slot_state(7)) == (SlotState(1), None)
            assert await b.arrived([7]) == {7: History()}
            [refused] = await stores["b"].append([one("ada")])
            check_refused(refused, "ada", None)
            assert await stores["b"].head() == 0
            assert await stores["b"].read_stream("ada") == []

    async def test_a_slot_moves_with_its_history(self) -> None:
        """The new shard reads the stream as it was appended and goes on with it, but the past stays in the old log."""
        async with self.shards() as stores:
            for version in range(3):
                await stores["a"].append([one("ada", version), one("bob", version)])
            before = await samples.whole_log(stores["a"])
            await move(stores, "a", "b", "ada")
            late, stored = await stores["b"].append([one("ada", 2), one("ada", 3)])
            assert isinstance(late, Conflict)
            assert (late.actual, stored) == (3, 2)
            events = await stores["b"].read_stream("ada")
            assert events[:3] == [e for e in before if e.stream == "ada"]
            assert [(e.version, e.incarnation) for e in events[3:]] == [(4, stores["b"].identity.incarnation)]
            assert await stores["b"].read_stream("ada", after_version=2, to_version=3) == events[2:3]
            changes = [c async for part in stores["b"].read_changes("ada", after_version=1) for c in part]
            assert [c[1] for c in changes] == [2, 3, 4]
            assert await stores["a"].append([one("bob", 3)]) == [8]
            assert (await samples.whole_log(stores["a"]))[:6] == before
            own = [e for e in await samples.whole_log(stores["b"]) if e.stream != SLOTS_STREAM]
            assert own == events[3:]

    async def test_an_append_to_a_slot_that_has_left_is_refused(self) -> None:
        """And says where it went; other commits of the same call are stored. So it is from the moment of its close."""
        async with self.shards() as stores:
            self.require(stores["b"], "slots_leave")
            a = stores["a"]
            await stores["a"].append([one("ada")])
            await close(a, "ada")
            refused, stored = await stores["a"].append([one("ada", 1), one("bob")])
            check_refused(refused, "ada", "b")
            assert stored == await stores["a"].head()
            [not_yet] = await stores["b"].append([one("ada", 1)])
            check_refused(not_yet, "ada", None)
            await bring_about(stores, ["a"] * stores["a"].identity.slots)
            assert isinstance((await stores["a"].append([one("ada", 1)]))[0], int)
            check_refused((await stores["b"].append([one("ada", 2)]))[0], "ada", "a")
            check_refused((await stores["b"].append([one("ada", 0)]))[0], "ada", "a")

    async def test_a_commit_is_refused_whole_where_one_of_its_slots_has_left(self) -> None:
        """All or none, whichever stream comes first, and whatever their versions are."""
        async with self.shards() as stores:
            await stores["a"].append([one("ada"), one("bob")])
            await move(stores, "a", "b", "bob")
            head = await stores["a"].head()
            outcomes = await stores["a"].append(
                [commit(append("ada", 1), append("bob", 1)), commit(append("bob", 5), append("ada", 7)), one("ada", 1)]
            )
            for refused in outcomes[:2]:
                check_refused(refused, "bob", "b")
            assert outcomes[2] == head + 1 == await stores["a"].head()
            check_refused((await stores["b"].append([commit(append("bob", 1), append("ada", 2))]))[0], "ada", None)
            await move(stores, "a", "b", "ada")
            [stored] = await stores["b"].append([commit(append("bob", 1), append("ada", 2))])
            assert stored == await stores["b"].head()

    async def test_a_place_that_came_with_a_slot_is_taken(self) -> None:
        """Also for an append that gives its versions itself."""
        async with self.shards() as stores:
            self.require(stores["a"], "given_versions")
            await stores["a"].append([given("ada", 1, 2, 5)])
            await move(stores, "a", "b", "ada")
            taken, free, beyond = await stores["b"].append([given("ada", 5), given("ada", 3), given("ada", 6)])
            assert isinstance(taken, Conflict)
            assert not isinstance(taken, SlotMoved)
            assert isinstance(free, int)
            assert isinstance(beyond, int)
            assert [e.version for e in await stores["b"].read_stream("ada")] == [1, 2, 3, 5, 6]

    async def test_closing_is_a_compare_and_set(self) -> None:
        """All slots are open in the epoch before, or nothing is closed; a second mover changes nothing."""
        async with self.shards() as stores:
            self.require(stores["b"], "slots_leave")
            a, b = stores.values()
            await stores["a"].append([one("ada"), one("bob")])
            ada, bob = slot_of("ada"), slot_of("bob")
            histories = await read(a, [ada, bob])
            for closing in ({ada: 3}, {ada: 1}, {ada: 2, bob: 4}):
                assert await a.close_slots(closing, "b", 2, histories) is None
            assert await b.close_slots({ada: 2}, "a", 0, {ada: History()}) is None
            assert await stores["a"].head() == 2
            # Events behind the position that was read are counted by the store itself.
            closed = await a.close_slots({ada: 2, bob: 2}, "b", 0, dict.fromkeys((ada, bob), History()))
            assert closed == {
                ada: SlotState(2, "b", 3, histories[ada]),
                bob: SlotState(2, "b", 4, histories[bob]),
            }
            assert await a.arrived([ada, bob]) == histories
            assert await a.close_slots({ada: 2, bob: 2}, "b", 2, histories) is None
            assert await stores["a"].head() == 4
            states = await a.slot_states()
            assert {slot: states[slot] for slot in closed} == closed
            assert states[slot_of("cy")] == SlotState(1)

    async def test_an_import_is_a_compare_and_set(self) -> None:
        """Behind what has arrived, once; never for a slot that is open."""
        async with self.shards() as stores:
            a, b = stores.values()
            await stores["a"].append([one("ada", 0, 4), one("bob")])
            ada, bob = slot_of("ada"), slot_of("bob")
            events = [e for _, e in await a.slot_events([ada], BEGINNING, 100)]
            two = History().with_ids(e.id for e in events[:2])
            assert not await a.import_events(events, {ada: History()})
            assert not await b.import_events(events[2:], {ada: two})
            assert await b.import_events(events[:2], {ada: History()})
            assert not await b.import_events(events[:2], {ada: History()})
            assert await b.arrived([ada, bob]) == {ada: two, bob: History()}
            assert await b.import_events(events[2:], {ada: two})
            assert [e for _, e in await b.slot_events([ada], BEGINNING, 100)] == events
            assert await stores["b"].head() == 0
            assert await stores["b"].read(0, 10) == []

    async def test_opening_demands_the_whole_history(self) -> None:
        """And happens once: it is a compare-and-set too."""
        async with self.shards() as stores:
            a, b = stores.values()
            await stores["a"].append([one("ada", 0, 3)])
            ada = slot_of("ada")
            events = [e for _, e in await a.slot_events([ada], BEGINNING, 100)]
            closed = await close(a, "ada")
            opening = {ada: Opening(2, "users.a", stores["a"].identity.incarnation, closed.position, closed.history)}
            assert not await b.open_slots(opening)
            assert await b.import_events(events[:2], {ada: History()})
            assert not await b.open_slots(opening)
            assert await b.import_events(events[2:], await b.arrived([ada]))
            assert await b.open_slots(opening)
            assert not await b.open_slots(opening)
            assert await b.slot_states() == {ada: SlotState(2)}
            assert await stores["b"].head() == 1

    async def test_a_slot_without_events_is_opened_once(self) -> None:
        """All of its history is there from the start, so only its epoch tells that it has been opened."""
        async with self.shards() as stores:
            a, b = stores.values()
            closed = await close(a, "ada")
            log = stores["a"].identity
            opening = {slot_of("ada"): Opening(2, log.name, log.incarnation, closed.position, History())}
            assert await b.open_slots(opening)
            assert not await b.open_slots(opening)
            assert await stores["b"].head() == 1

    async def test_a_log_says_which_slots_left_and_came(self) -> None:
        """In the transaction that closes or opens them: that is how followers keep a stream in order."""
        async with self.shards() as stores:
            await stores["a"].append([one("ada", 0, 3)])
            closed = await move(stores, "a", "b", "ada")
            left, came = [
                [e for e in await samples.whole_log(store) if e.stream == SLOTS_STREAM] for store in stores.values()
            ]
            assert [(e.position, e.version, e.slot, e.type) for e in left] == [
                (4, 1, slot_of("ada"), "users.evsync.SlotClosed")
            ]
            assert [(e.position, e.version, e.slot, e.type) for e in came] == [
                (1, 1, slot_of("ada"), "users.evsync.SlotOpened")
            ]
            length, digest = closed.history
            assert msgpack.unpackb(left[0].data) == {"epoch": 2, "to": "b", "length": length, "digest": digest}
            assert msgpack.unpackb(came[0].data) == {
                "epoch": 2,
                "from": "users.a",
                "incarnation": stores["a"].identity.incarnation,
                "position": 4,
            }

    async def test_a_log_says_what_the_one_that_a_slot_came_from_was_restored_from(self) -> None:
        """Who still follows that one as an earlier incarnation has to hear of its restore first."""
        async with self.shards() as stores:
            a, b = stores.values()
            closed = await close(a, "ada")
            log = stores["a"].identity.restored(0, "restored").restored(1, "again")
            opening = {slot_of("ada"): Opening(2, log.name, log.incarnation, closed.position, History())}
            assert await b.open_slots(opening, log)
            (came,) = await samples.whole_log(stores["b"])
            assert msgpack.unpackb(came.data)["ancestry"] == [a.incarnation for a in log.ancestry]

    async def test_a_store_that_keeps_its_slots_says_so_before_anything_is_touched(self) -> None:
        """They leave while the log holds nothing but events about slots, and not after that."""
        async with self.shards() as stores:
            if stores["b"].capabilities.slots_leave:
                return
            for target in ("b", "a", "b"):
                await bring_about(stores, [target] * stores["a"].identity.slots)
            await stores["b"].append([one("ada")])
            said = {name: await everything(store) for name, store in stores.items()}
            with pytest.raises(ConfigurationError, match=r"'b'.*Nothing was moved"):
                await bring_about(stores, ["a"] * stores["a"].identity.slots)
            assert await stores["b"].close_slots({slot_of("ada"): 9}, "a", 0, {}) is None
            with pytest.raises(ConfigurationError, match="slots cannot be moved away"):
                await stores["b"].close_slots({0: 5}, "a", 0, {0: History()})
            assert {name: await everything(store) for name, store in stores.items()} == said
            assert isinstance((await stores["b"].append([one("ada", 1)]))[0], int)

    async def test_a_slot_that_comes_back_keeps_its_order(self) -> None:
        """There and back and there again, with appends on each side: the order of a slot's events is the same."""
        async with self.shards() as stores:
            self.require(stores["b"], "slots_leave")
            slot, version, sides = slot_of("ada"), 0, ["a", "b", "a", "b"]
            for side, other in pairwise(sides):
                for _ in range(3):
                    await stores[side].append([one("ada", version)])
                    version += 1
                await move(stores, side, other, "ada")
            expected = await stores["b"].read_stream("ada")
            assert [e.version for e in expected] == list(range(1, version + 1))
            for store in stores.values():
                found: list[StoredEvent] = []
                place = BEGINNING
                while part := await store.slot_events([slot], place, 2):
                    place = part[-1][0]
                    found += [e for _, e in part]
                assert found == expected

    async def test_a_move_that_stops_between_any_two_steps_is_finished_by_anybody(self) -> None:
        """After each transaction of a mover in turn; another goes on, and a third finds nothing to do."""
        for steps in count(1):
            async with self.shards() as stores:
                for version in range(3):
                    await stores["a"].append([one(stream, version) for stream in STREAMS])
                target = ["b" if slot in SLOTS else "a" for slot in range(stores["a"].identity.slots)]
                budget = Budget(steps)
                dying = {name: cast(SlotStore, Dying(store, budget)) for name, store in stores.items()}
                with contextlib.suppress(Killed):
                    await bring_about(dying, target)
                assert await bring_about(stores, target) <= 1
                assert await bring_about(stores, target) == 0
                for stream in STREAMS:
                    assert [e.version for e in await stores["b"].read_stream(stream)] == [1, 2, 3]
                    assert isinstance((await stores["b"].append([one(stream, 3)]))[0], int)
                if budget.left > 0:
                    return

    async def test_slots_move_under_writers(self) -> None:
        """Twice there and back: each commit is stored once, and each stream is whole."""
        async with self.shards() as stores, contextlib.AsyncExitStack() as stack:
            self.require(stores["b"], "slots_leave")
            commits = {name: GroupCommit(store) for name, store in stores.items()}
            for queue in commits.values():
                stack.push_async_callback(queue.close)
            home = ShardedStores(stores, commits, await truth(stores))
            done = dict.fromkeys(STREAMS, 0)
            writing = True

            async def write(stream: str) -> None:
                while writing:
                    await home.commit(one(stream, done[stream]))
                    done[stream] += 1

            writers = [asyncio.ensure_future(write(stream)) for stream in STREAMS]
            async with asyncio.timeout(DEADLINE_S):
                for target in ("b", "a", "b", "a"):
                    await bring_about(stores, [target] * home.slots)
                    before = dict(done)
                    while any(done[stream] <= before[stream] for stream in STREAMS):
                        await asyncio.sleep(0.001)
                writing = False
                await asyncio.gather(*writers)
            logged = [e for store in stores.values() for e in await samples.whole_log(store)]
            for stream, versions in done.items():
                events = await stores["a"].read_stream(stream)
                assert [e.version for e in events] == list(range(1, versions + 1))
                assert sorted(e for e in logged if e.stream == stream) == sorted(events)

    async def test_the_size_of_a_shard_is_told(self) -> None:
        """The events of its log, and the streams that are at home there."""
        async with self.shards() as stores:
            await stores["a"].append([one("ada", 0, 3), one("bob")])
            a, b = stores.values()
            bytes_of_all = sum(len(e.data) for e in await samples.whole_log(stores["a"]))
            assert (await a.slot_size(), await b.slot_size()) == (SlotSize(4, bytes_of_all, 2), SlotSize(0, 0, 0))
            await move(stores, "a", "b", "ada")
            assert (await a.slot_size(), await b.slot_size()) == (SlotSize(4, bytes_of_all, 1), SlotSize(0, 0, 1))

    async def test_moves_survive_where_events_do(self) -> None:
        """What the store said of slots, what was imported, and what had arrived."""
        async with self.shards() as stores:
            self.require(stores["a"], "durable")
            await stores["a"].append([one("ada", 0, 3), one("bob", 0, 2)])
            await move(stores, "a", "b", "ada")
            events = [e for _, e in await stores["a"].slot_events([slot_of("bob")], BEGINNING, 1)]
            assert await stores["b"].import_events(events, {slot_of("bob"): History()})
            said = {name: await everything(store) for name, store in stores.items()}
            for name, store in stores.items():
                await store.close()
                stores[name] = await self.reopen(store)
            assert {name: await everything(store) for name, store in stores.items()} == said
            assert isinstance((await stores["b"].append([one("ada", 3)]))[0], int)
            for store in stores.values():
                await store.close()


async def move(stores: Mapping[str, Store], source: str, to: str, stream: str) -> SlotState:
    """Move a stream's slot; what the old store says of it then."""
    slot = slot_of(stream)
    await carry_out(stores, Move(source, to, (slot,)))
    state = await stores[source].slot_state(slot)
    assert state is not None
    return state


async def read(store: SlotStore, slots: list[int]) -> dict[int, History]:
    """The histories of slots, as a mover reads them."""
    found = [e for _, e in await store.slot_events(slots, BEGINNING, 10_000)]
    return {slot: History().with_ids(e.id for e in found if e.slot == slot) for slot in slots}


async def close(store: SlotStore, stream: str) -> SlotState:
    """Close the stream's slot for shard `b`."""
    slot = slot_of(stream)
    closed = await store.close_slots({slot: 2}, "b", await store.head(), await read(store, [slot]))
    assert closed is not None
    return closed[slot]


async def everything(store: Store) -> tuple[Any, ...]:
    """What a store says of slots and streams."""
    arrived = await store.arrived(list(SLOTS))
    streams = [await store.read_stream(stream) for stream in STREAMS]
    return await store.slot_states(), arrived, streams, await store.slot_events(list(SLOTS), BEGINNING, 100)


def check_refused(outcome: int | Conflict, stream: str, to: str | None) -> None:
    """Assert that a commit was refused because of a stream's slot, which went there."""
    assert isinstance(outcome, SlotMoved)
    assert (outcome.stream, outcome.slot, outcome.to) == (stream, slot_of(stream), to)
