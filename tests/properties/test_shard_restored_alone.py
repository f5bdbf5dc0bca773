"""Laws of one shard that is restored beside others that live on, for any moves, broken off or not, and backups."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from evsync.archive.copies import Archive
from evsync.archive.rescue import FencedStore
from evsync.archive.restore import Part, Until, restore_beside
from evsync.control import OWN_STREAMS
from evsync.errors import ArchiveIncomplete, WrongStore
from evsync.operations.store_check import LogCheck
from evsync.ports import Store
from evsync.projections.running.barrier import includes, up_to_barrier
from evsync.records import Checkpoint, LogIdentity, SlotState, StoredEvent
from evsync.sharding.handover import Move, bring_about, carry_out, placement_of
from evsync.sharding.truth import check_all_there, truth
from evsync.stores.memory import MemoryStore
from tests.archiving import read_all
from tests.properties.test_shards_restored import SHARDS, SLOTS, STEPS, Bank, history
from tests.restored_memory import MemoryRestore

anyio = pytest.mark.anyio


async def restored_alone(bank: Bank, lost: str, **instead: FencedStore) -> Store:
    """The shard, from its archive and what the others have of it."""
    others: dict[str, FencedStore] = {
        shard: store for shard, store in bank.stores.items() if shard != lost and isinstance(store, MemoryStore)
    }
    others |= instead
    into = MemoryRestore()
    await restore_beside(Part(await Archive.find([bank.target], f"bank.{lost}"), into), others, until=Until())
    assert into.store is not None
    return into.store


def key(e: StoredEvent) -> tuple[bytes, str, int]:
    """What an event keeps, in whatever log it is."""
    return e.id, e.stream, e.version


async def own_of(store: Store, slot: int) -> list[tuple[bytes, str, int]]:
    """A slot's events that are in the store's log."""
    return [key(e) for e in await read_all(store) if e.slot == slot and not e.stream.startswith(OWN_STREAMS)]


async def go_on(bank: Bank, lost: str) -> None:
    """Save and move; every stream is whole."""
    for slot, shard in ((0, "b"), (1, "c"), (2, "a"), (0, "a"), (1, lost)):
        await bank.save(slot, 2)
        await bank.take("move", slot, shard)
    for slot, now in (await truth(bank.stores)).items():
        assert now.is_open
        versions = [e.version for e in await bank.stores[now.shard].read_stream(f"stream-{slot}")]
        assert versions == list(range(1, len(versions) + 1))


@settings(max_examples=250, deadline=None)
@given(STEPS, STEPS, st.sampled_from(SHARDS))
def test_a_shard_restored_alone_has_all_that_is_anywhere_of_it(
    before: Sequence[tuple[str, int, int | str]], after: Sequence[tuple[str, int, int | str]], lost: str
) -> None:
    """Each event that is in its archive, or that another shard holds, is in one log, once, and in the history of its
    slot, in order; each slot is open in one shard; slots move on. Who still has the lost store moves nothing of it."""

    async def check() -> None:
        bank = Bank()
        for step in before:
            await bank.take(*step)
        await bank.backup(lost)
        if not any(name.startswith(f"bank.{lost}/") for name in bank.target.kept):
            return
        archived = {slot: await own_of(bank.stores[lost], slot) for slot in range(SLOTS)}
        for step in after:
            if step[0] != "backup":
                await bank.take(*step)
        zombie = bank.stores[lost]
        others = {shard: store for shard, store in bank.stores.items() if shard != lost}
        held = {
            shard: [[key(e) for e in await history(s, slot)] for slot in range(SLOTS)] for shard, s in others.items()
        }
        was = {slot: [key(e) for e in await history(zombie, slot)] for slot in range(SLOTS)}
        try:
            restored = await restored_alone(bank, lost)
        except ArchiveIncomplete as e:
            if "others have come back since" not in str(e):
                raise
            event("refused")
            return
        event("restored")
        stores = bank.stores = {shard: restored if shard == lost else s for shard, s in bank.stores.items()}
        for to in others:
            for slot in range(SLOTS):
                with contextlib.suppress(WrongStore):
                    await carry_out({**stores, lost: zombie}, Move(lost, to, (slot,)))
        await check_all_there(stores)
        await bring_about(stores, placement_of(await truth(stores)))
        for slot, now in (await truth(stores)).items():
            assert now.is_open
            found = [key(e) for e in await history(stores[now.shard], slot)]
            of_others = max((histories[slot] for histories in held.values()), key=len)
            whole = max(was[slot], of_others, key=len)
            assert found == whole[: len(found)]
            assert set(of_others) <= set(found)
            assert set(archived[slot]) <= set(found)
            logs = Counter([k for store in stores.values() for k in await own_of(store, slot)])
            assert logs == Counter(found), "each is in one log, once"
            for store in stores.values():
                has = [key(e) for e in await history(store, slot)]
                assert has == found[: len(has)]
        for store in stores.values():
            log = LogCheck(store.identity, lambda _: None)
            assert [p for e in await read_all(store) for p in log.see(e) if p.law != "slots"] == []
        await go_on(bank, lost)
        await bank.backup(*SHARDS)
        again, left_out = await bank.restored()
        assert left_out == [0, 0, 0], "restored together later, nothing is left out"
        for shard, store in stores.items():
            states = await store.slot_states()
            assert await again[shard].slot_states() == states
            for slot in range(SLOTS):
                has = [key(e) for e in await history(store, slot)]
                found = [key(e) for e in await history(again[shard], slot)]
                # What was copied for a move that the lost shard alone knew of is left where it is; no log tells of it.
                is_open = slot in states and states[slot].to is None
                assert found == (has if is_open else has[: len(found)])
        bank.stores = again
        await go_on(bank, lost)

    asyncio.run(check())


class AskedLate:
    """A shard's store that is asked for its slots only after something else has happened."""

    def __init__(self, store: Store, first: Callable[[], Awaitable[None]]) -> None:
        self._store, self._first = store, first

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def slot_states(self) -> Mapping[int, SlotState]:
        """See SlotStore."""
        await self._first()
        return await self._store.slot_states()


@anyio
async def test_slots_that_move_while_the_others_are_asked_are_no_reason_to_refuse() -> None:
    """One that was open in the first that was asked, went to the next, and was closed there for the lost shard before
    that was asked: its history is that of the next."""
    bank = Bank()
    await bank.save(0, 1)
    await bank.take("move", 1, "b")
    await bank.backup("b")

    async def moves() -> None:
        await bank.take("move", 0, "c")
        await bank.save(0, 1)
        await bank.take("break", 0, "b")

    bank.stores["b"] = await restored_alone(bank, "b", c=cast(FencedStore, AskedLate(bank.stores["c"], moves)))
    await bring_about(bank.stores, placement_of(await truth(bank.stores)))
    assert (await truth(bank.stores))[0].shard == "b"
    assert len(await bank.stores["b"].read_stream("stream-0")) == 2
    await go_on(bank, "b")


def held_up(events: Sequence[StoredEvent], at: Checkpoint, log: LogIdentity) -> bool:
    """Whether one who has come so far, and knows the log as this, waits before these events of another log."""
    applied = partial(includes, at, incarnation=log.incarnation, ancestry=log.ancestry)
    return up_to_barrier(events, lambda _log, _slot, closed: applied(closed)).barrier is not None


@anyio
async def test_who_follows_the_lost_store_still_waits_for_what_came_from_the_restored_one() -> None:
    """Though it is at a position as high; also where what was lost had been restored before."""
    bank = Bank()
    await bank.save(1, 1)
    for _ in range(2):
        await bank.take("move", 0, "a")
        await bank.backup("a")
        await bank.save(1, 20)
        was = bank.stores["a"]
        bank.stores["a"] = await restored_alone(bank, "a")
        await bank.save(0, 1)
        await bank.take("move", 0, "c")
        events = (await read_all(bank.stores["c"]))[-1:]
        for follows, waits in ((was, True), (bank.stores["a"], False)):
            log = follows.identity
            at = Checkpoint(log.name, 0, log.incarnation, await follows.head())
            assert held_up(events, at, log) is waits
