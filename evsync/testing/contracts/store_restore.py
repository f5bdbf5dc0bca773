"""The laws of StoreRestore, as tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from evsync.control import is_control
from evsync.errors import ConfigurationError, Conflict, SlotMoved, StoreError
from evsync.ports import Store, StoreRestore
from evsync.records import (
    Ancestor,
    Checkpoint,
    History,
    LogIdentity,
    SlotRows,
    SlotState,
    StoredEvent,
    command_of,
    new_incarnation,
)
from evsync.restores import restored_event
from evsync.sharding.slots import slot_of
from evsync.testing.contracts import samples
from evsync.testing.contracts.samples import append, commit, event, one, reaction

OLD = "3f9a2b1c7d5e"
CHECKPOINTS = {
    "billing": [Checkpoint("orders.main", 0, "0123456789ab", 42, 17, 2**64 - 5)],
    "idle": [],
}


class StoreRestoreContract:
    """What every StoreRestore promises."""

    pytestmark = pytest.mark.anyio
    shard = "main"

    async def new_restore(self) -> StoreRestore:
        """Begin to fill a new store, of service `users`. Each call a place of its own, until `again` is used."""
        raise NotImplementedError

    async def again(self) -> StoreRestore:
        """Begin once more at the place of the last `new_restore`."""
        raise NotImplementedError

    async def open(self, restore: StoreRestore) -> Store:
        """Open what was filled, as its service would. Raises StoreError where there is no store."""
        raise NotImplementedError

    @asynccontextmanager
    async def _restored(self, events: list[StoredEvent], identity: LogIdentity) -> AsyncIterator[Store]:
        restore = await self.new_restore()
        try:
            for start in range(0, len(events), 7):
                await restore.load(events[start : start + 7])
            await restore.complete(identity, CHECKPOINTS)
            store = await self.open(restore)
        finally:
            await restore.close()
        try:
            yield store
        finally:
            await store.close()

    async def test_a_restored_log_is_what_was_loaded(self) -> None:
        """Positions, ids, versions, tags, times and incarnations, read as a log and as streams."""
        events, identity = a_log(self.shard)
        async with self._restored(events, identity) as store:
            log = await samples.whole_log(store)
            assert log[: len(events)] == events
            assert all(is_control(e.type) for e in log[len(events) :])
            for stream in {e.stream for e in events}:
                assert await store.read_stream(stream) == [e for e in events if e.stream == stream]
            assert store.identity == identity
            assert await store.head() == len(log)

    async def test_a_restored_log_goes_on_as_any_other(self) -> None:
        """Versions and positions follow what was loaded; new events are of the new incarnation."""
        events, identity = a_log(self.shard)
        async with self._restored(events, identity) as store:
            head, ada = await store.head(), len(await store.read_stream("ada"))
            refused, position = await store.append([one("ada", ada - 1), one("ada", ada)])
            assert isinstance(refused, Conflict)
            assert position == head + 1
            [new] = await store.read(head, 1)
            assert (new.position, new.incarnation) == (head + 1, identity.incarnation)
            assert command_of(new.id) not in {command_of(e.id) for e in events}

    async def test_checkpoints_are_restored(self) -> None:
        """A reaction goes on from there, and only from there."""
        events, identity = a_log(self.shard)
        async with self._restored(events, identity) as store:
            [found] = await store.checkpoints("billing")
            assert found == CHECKPOINTS["billing"][0]
            assert await store.checkpoints("idle") == []
            wrong, right = reaction("billing", 43, after=41), reaction("billing", 43, after=42)
            outcomes = await store.append([wrong, right])
            assert isinstance(outcomes[0], Conflict)
            assert isinstance(outcomes[1], int)

    async def test_slots_and_imports_are_restored(self) -> None:
        """What the store says of slots is what it was told; imports count for versions, in the order of their places;
        and what is closed here is refused."""
        events, identity = a_log(self.shard)
        mine, away = slot_of("bob"), slot_of("cy")
        before = [e for e in events if e.stream == "bob"]
        imports = [e._replace(position=n, stream="{bob}.2", version=n, incarnation="0123456789ab", slot=mine)
                   for n, e in enumerate(before, 1)]  # fmt: skip
        rows = SlotRows(
            {mine: SlotState(3), away: SlotState(2, "z", 5, History(1, 7)), 1: SlotState(1)}, {away: History(1, 7)}
        )
        places = [(4, n) for n, _ in enumerate(imports, 1)]
        restore = await self.new_restore()
        try:
            await restore.load(events[:7])
            for arrived in reversed(list(zip(places, imports, strict=True))):
                await restore.import_events([arrived])
            await restore.import_events([])
            await restore.load(events[7:])
            await restore.complete(identity, {}, rows)
            store = await self.open(restore)
        finally:
            await restore.close()
        assert dict(await store.slot_states()) == dict(rows.states)
        assert await store.arrived([away]) == rows.arrived
        assert await samples.whole_log(store) == events
        assert await store.read_stream("{bob}.2") == imports
        came = [(place, e) for place, e in await store.slot_events([mine], (0, 0), 100) if e in imports]
        assert came == list(zip(places, imports, strict=True))
        refused, stored = await store.append([one("cy", 1), one("{bob}.2", len(imports))])
        assert isinstance(refused, SlotMoved)
        assert isinstance(stored, int)
        more = [imports[-1]._replace(stream="ada", version=20, id=bytes(16), slot=slot_of("ada"))]
        assert await store.import_events(more, {slot_of("ada"): History()}), "numbers go on"
        await store.close()

    async def test_two_restores_at_one_place_are_never_mixed(self) -> None:
        """One of them is refused or fails, at whichever step, and takes nothing from the other, which becomes whole."""
        events, identity = a_log(self.shard)
        first = await self.new_restore()
        await first.load(events[:7])
        try:
            whole, broken = await self.again(), first
        except ConfigurationError:
            whole, broken, rest = first, None, events[7:]
        else:
            rest = events
        if broken is not None:
            with pytest.raises(StoreError):
                await broken.load(events[7:])
            await broken.close()
        await whole.load(rest)
        await whole.complete(identity, {})
        await whole.close()
        store = await self.open(whole)
        assert await store.read(0, 1000) == events
        await store.close()

    async def test_an_unfinished_restore_is_no_store(self) -> None:
        """Before it is complete nobody can open it; broken off it leaves nothing, and can be begun again."""
        events, identity = a_log(self.shard)
        restore = await self.new_restore()
        await restore.load(events)
        with pytest.raises(StoreError):
            await self.open(restore)
        await restore.close()
        with pytest.raises(StoreError):
            await self.open(restore)
        restore = await self.again()
        await restore.load(events[:3])
        await restore.complete(identity, {})
        store = await self.open(restore)
        assert await store.read(0, 100) == events[:3]
        await store.close()
        await restore.close()

    async def test_a_store_that_is_there_is_not_touched(self) -> None:
        """A restore makes a new store, never another one of what there is."""
        events, identity = a_log(self.shard)
        async with self._restored(events, identity) as store:
            with pytest.raises(ConfigurationError, match="already"):
                await self.again()
            assert (await samples.whole_log(store))[: len(events)] == events

    async def test_a_gap_is_refused(self) -> None:
        """What is loaded goes on where the last load ended."""
        events, _ = a_log(self.shard)
        restore = await self.new_restore()
        await restore.load(events[:4])
        for wrong in (events[5:], events[:4]):
            with pytest.raises(ConfigurationError, match="position 5"):
                await restore.load(wrong)
        await restore.close()


def a_log(shard: str) -> tuple[list[StoredEvent], LogIdentity]:
    """A log of several commits and streams that ends with its restore, and its identity from then on."""
    commits = [
        one("ada", 0, 3),
        commit(append("bob", 0, 2), append("ada", 3, 1)),
        one("cy", 0, [event(data=b"\0\xff" * 99, meta='{"actor":"\\u00e9"}')]),
        one("ada", 4, 9),
    ]
    events: list[StoredEvent] = []
    for each in commits:
        events += samples.rows_of(each, after=len(events), incarnation=OLD)
    identity = LogIdentity("users", shard, new_incarnation(), 256, (Ancestor(OLD, len(events)),))
    return [*events, restored_event(identity, len(events), 1, 1_700_000_000_000_000)], identity
