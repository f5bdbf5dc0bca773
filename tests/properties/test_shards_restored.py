"""Laws of restored shards, for any moves, broken off or not, and backups at any time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from evsync.archive.backup import Backups
from evsync.archive.copies import Archive
from evsync.archive.restore import Part, Until, restore_shards
from evsync.control import OWN_STREAMS
from evsync.errors import ArchiveIncomplete
from evsync.ports import Store
from evsync.records import Append, Commit, LogIdentity, NewEvent, SlotRows, StoredEvent, new_command
from evsync.sharding.handover import BEGINNING, Step, bring_about, placement_of
from evsync.sharding.truth import truth
from evsync.stores.memory import MemoryStore
from evsync.stores.slot_events import folded, slot_event
from tests.archiving import MemoryTarget, read_all
from tests.restored_memory import MemoryRestore

SLOTS, SHARDS = 3, ("a", "b", "c")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("save"), st.integers(0, SLOTS - 1), st.integers(1, 3)),
        st.tuples(st.just("move"), st.integers(0, SLOTS - 1), st.sampled_from(SHARDS)),
        st.tuples(st.just("break"), st.integers(0, SLOTS - 1), st.sampled_from(SHARDS)),
        st.tuples(st.just("backup"), st.just(0), st.sampled_from(SHARDS)),
    ),
    max_size=25,
)


class BrokenOff(Exception):
    """A mover has stopped."""


class Bank:
    """Three shards in memory, with one stream in each slot."""

    def __init__(self) -> None:
        self.stores: dict[str, Store] = {
            shard: MemoryStore(LogIdentity("bank", shard, f"of-{shard}", SLOTS), owns_slots=shard == "a")
            for shard in SHARDS
        }
        self.target = MemoryTarget()

    async def take(self, what: str, slot: int, argument: int | str) -> None:
        """One step."""
        if what == "save":
            assert isinstance(argument, int)
            await self.save(slot, argument)
        elif what == "backup":
            assert isinstance(argument, str)
            await self.backup(argument)
        else:
            now = await truth(self.stores)
            placement = [argument if s == slot else held.bound_for for s, held in sorted(now.items())]
            with contextlib.suppress(BrokenOff):
                await bring_about(self.stores, placement, stop if what == "break" else _go_on)  # type: ignore[arg-type]

    async def save(self, slot: int, events: int) -> None:
        """More events of a slot's stream, if it is open somewhere."""
        held = (await truth(self.stores))[slot]
        if held.is_open:
            version = len(await self.stores[held.shard].read_stream(f"stream-{slot}"))
            new = [NewEvent("bank.Account.Paid", version, b"\x80", None)] * events
            [done] = await self.stores[held.shard].append(
                [Commit(new_command(), [Append(f"stream-{slot}", slot, version, new)])]
            )
            assert isinstance(done, int)

    async def backup(self, *shards: str) -> None:
        """Archive the logs of these shards."""
        for shard in shards:
            assert (await Backups(self.stores[shard], [self.target], copies=1, segment_events=4).run()).ok

    async def restored(self) -> tuple[dict[str, Store], list[int]]:
        """The shards, restored from what is archived; and how many events of each are left out."""
        parts = {}
        for shard in reversed(SHARDS):  # which was the first is said by the logs
            try:
                archive = await Archive.find([self.target], f"bank.{shard}")
            except ArchiveIncomplete:
                archive = Archive(LogIdentity("bank", shard, "", SLOTS), ())
            parts[shard] = Part(archive, MemoryRestore())
        reports = await restore_shards(parts, until=Until())
        stores: dict[str, Store] = {}
        for shard, part in parts.items():
            assert isinstance(part.into, MemoryRestore)
            assert part.into.store is not None
            stores[shard] = part.into.store
        return stores, [report.left_out for report in reports.values()]


def _go_on(_: Step) -> None:
    """For a mover that comes to its end."""


def stop(step: Step) -> None:
    """For a mover that dies when it has closed a slot."""
    if step.what == "closed":
        raise BrokenOff


async def history(store: Store, slot: int) -> list[StoredEvent]:
    """All events of a slot that a store has, as they came."""
    return [e for _, e in await store.slot_events([slot], BEGINNING, 1_000)]


async def says(store: Store) -> SlotRows:
    """What a store says of slots."""
    states = await store.slot_states()
    closed = [slot for slot, state in states.items() if state.to is not None]
    return SlotRows(states, await store.arrived(closed))


@settings(max_examples=120, deadline=None)
@given(STEPS)
def test_what_a_store_says_of_slots_is_a_fold_over_its_log(steps: Sequence[tuple[str, int, int | str]]) -> None:
    """Whatever has moved, its own events tell: restored with all of its log, it says the same, and holds the same."""

    async def check() -> None:
        bank = Bank()
        for step in steps:
            await bank.take(*step)
        await bring_about(bank.stores, placement_of(await truth(bank.stores)))
        before = {shard: await says(store) for shard, store in bank.stores.items()}
        for shard, store in bank.stores.items():
            said = [s for e in await read_all(store) if (s := slot_event(e)) is not None]
            found = folded(SLOTS, said, owns_slots=shard == "a")
            assert (found.states if found is not None else before[shard].states) == before[shard].states
        await bank.backup(*SHARDS)
        if not bank.target.kept:
            return
        stores, left_out = await bank.restored()
        assert left_out == [0, 0, 0]
        for shard, store in stores.items():
            assert await says(store) == before[shard]
            for slot in range(SLOTS):
                assert await history(store, slot) == await history(bank.stores[shard], slot)

    asyncio.run(check())


@settings(max_examples=120, deadline=None)
@given(STEPS)
def test_shards_restored_from_backups_of_any_times_fit(steps: Sequence[tuple[str, int, int | str]]) -> None:
    """Each slot is open in one shard, which has all of its history; that is a beginning of what the slot had; and
    it goes on, and moves, as any other. Nothing is left out that fits."""

    async def check() -> None:
        bank = Bank()
        for slot, shard in enumerate(SHARDS):
            await bank.save(slot, 1)
            await bank.take("move", slot, shard)
        await bank.backup(*SHARDS)
        for step in steps:
            await bank.take(*step)
        live = {slot: await longest(bank.stores, slot) for slot in range(SLOTS)}
        try:
            stores, left_out = await bank.restored()
        except ArchiveIncomplete as e:
            if "there is no archive of log" not in str(e):
                raise
            return  # though slots went there
        archived = {shard: await read_all(store) for shard, store in stores.items()}
        await bring_about(stores, placement_of(await truth(stores)))
        for slot, held in (await truth(stores)).items():
            assert held.is_open
            found = await history(stores[held.shard], slot)
            assert found == live[slot][: len(found)]
            own = [
                e for log in archived.values() for e in log if e.slot == slot and not e.stream.startswith(OWN_STREAMS)
            ]
            assert sorted(found) == sorted(own), "all that is in a log is in the history, and once"
        if not any(left_out):
            for shard, store in stores.items():
                ancestor = store.identity.ancestry[-1].last if store.identity.ancestry else 0
                assert archived[shard][:ancestor] == (await read_all(bank.stores[shard]))[:ancestor]
        bank.stores = stores
        for slot, shard in ((0, "b"), (1, "c"), (2, "a"), (0, "a")):
            await bank.save(slot, 2)
            await bank.take("move", slot, shard)
        for slot, held in (await truth(stores)).items():
            versions = [e.version for e in await stores[held.shard].read_stream(f"stream-{slot}")]
            assert versions == list(range(1, len(versions) + 1))

    asyncio.run(check())


async def longest(stores: Mapping[str, Store], slot: int) -> list[StoredEvent]:
    """The whole history of a slot: what the shard has that it is in, or the one that it is leaving."""
    return await history(stores[(await truth(stores))[slot].shard], slot)
