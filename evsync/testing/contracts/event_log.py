"""The laws of EventLog, as tests."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from evsync.control import SLOTS_STREAM
from evsync.errors import Conflict, StoreError
from evsync.ports import ReadsShares, Share, Store
from evsync.records import StoredEvent, check_name
from evsync.stores.group_commit import GroupCommit
from evsync.testing.contracts import samples
from evsync.testing.contracts.case import DEADLINE_S, StoreCase
from evsync.testing.contracts.samples import append, commit, one


class EventLogContract(StoreCase):
    """What every EventLog promises, filled through the store that holds it."""

    async def test_an_empty_log_has_head_0(self) -> None:
        """Positions begin at 1: before the first event there is nothing to read, and nothing to wait for yet."""
        async with self.opened() as store:
            assert await store.head() == 0
            assert await store.read(0, 100) == []
            assert await store.wait(0, 0) == 0

    async def test_a_log_says_which_it_is(self) -> None:
        """Service and shard are names, another store has another incarnation, and every event carries its own."""
        async with self.opened() as store, self.opened() as other:
            check_name("service", store.identity.service)
            check_name("shard", store.identity.shard)
            assert store.identity.incarnation != other.identity.incarnation
            assert store.identity.slots > 0
            await store.append([one("ada")])
            assert [e.incarnation for e in await store.read(0, 1)] == [store.identity.incarnation]

    async def test_reading_beyond_the_end_gives_nothing(self) -> None:
        """Neither at the end nor far behind it is there an event, and that is no error."""
        async with self.opened() as store:
            await store.append([one("ada", 0, 3)])
            assert await store.read(3, 10) == []
            assert await store.read(10**12, 10) == []

    async def test_reads_end_at_the_end_of_a_commit(self) -> None:
        """About `limit` events, whole commits only, and at least one commit, however large."""
        async with self.opened() as store:
            n = min(1_200, store.capabilities.max_commit_events - 3)
            await store.append([one("ada", 0, 2), commit(append("bob", 0, 3), append("cy", 0, n)), one("ada", 2)])
            for limit, ends in [(0, 2), (1, 2), (2, 2), (3, n + 5), (n + 5, n + 5), (n + 6, n + 6), (10**6, n + 6)]:
                rows = await store.read(0, limit)
                assert [e.position for e in rows] == list(range(1, ends + 1)), f"limit {limit}"
            assert [e.position for e in await store.read(2, 1)] == list(range(3, n + 6))
            assert [e.position for e in await store.read(700, 5)] == list(range(701, n + 6))
            samples.check_log(await samples.whole_log(store, limit=1))

    async def test_what_is_read_for_a_share_of_the_groups_has_all_of_it(self) -> None:
        """In order and to the end of a commit, with every other event counted, and none of evsync's own left out."""
        chance = random.Random(5)
        async with self.opened() as store:
            if not isinstance(store, ReadsShares):
                return
            assert not (await store.read_share(0, 10, Share(frozenset([0]), 2))).events
            versions = dict.fromkeys([SLOTS_STREAM, *(f"s{n}" for n in range(40))], 0)
            for size in (60, 40, 1, 20):
                streams = [SLOTS_STREAM] if size == 1 else chance.choices(sorted(versions)[1:], k=size)
                while streams:
                    several = dict.fromkeys(
                        streams.pop() for _ in range(min(len(streams), chance.choice([1, 1, 2, 5])))
                    )
                    appends = [append(s, versions[s], chance.randint(1, 3)) for s in sorted(several)]
                    for a in appends:
                        versions[a.stream] += len(a.events)
                    await store.append([commit(*appends)])
            log = await samples.whole_log(store)
            begins = [0, *(e.position for e in log if not e.remaining)]
            for _ in range(150):
                of = chance.choice([2, 3, 16])
                share = Share(frozenset(chance.sample(range(of), chance.randint(1, of - 1))), of)
                after, limit = chance.choice(begins), chance.choice([0, 1, 7, 40, len(log)])
                found = await store.read_share(after, limit, share)
                samples.check_stretch(log, after, share, found)
                if not found.events and after < len(log):
                    assert any(e.stream == SLOTS_STREAM for e in await store.read(after, 1)), f"nothing behind {after}"

    async def test_wait_returns_at_once_when_there_is_more(self) -> None:
        """A head that is beyond `after` already is not waited for."""
        async with self.opened() as store:
            await store.append([one("ada", 0, 3)])
            async with asyncio.timeout(DEADLINE_S):
                assert await store.wait(0, 10 * DEADLINE_S) == 3
                assert await store.wait(2, 10 * DEADLINE_S) == 3

    async def test_wait_returns_the_head_when_the_time_has_run_out(self) -> None:
        """Nothing came: the head is where it was."""
        async with self.opened() as store:
            await store.append([one("ada", 0, 3)])
            async with asyncio.timeout(DEADLINE_S):
                assert await store.wait(3, 0.02) == 3
                assert await store.wait(99, 0.02) == 3
                assert await store.wait(3, 0) == 3

    async def test_wait_is_woken_by_an_append(self) -> None:
        """Everybody who waits for less than the new head is woken; who waits for more goes on waiting."""
        async with self.opened() as store:
            near = [asyncio.ensure_future(store.wait(0, 10 * DEADLINE_S)) for _ in range(100)]
            far = asyncio.ensure_future(store.wait(2, 10 * DEADLINE_S))
            gone = asyncio.ensure_future(store.wait(0, 10 * DEADLINE_S))
            await asyncio.sleep(0)
            gone.cancel()
            await store.append([one("ada", 0, 2)])
            async with asyncio.timeout(DEADLINE_S):
                assert await asyncio.gather(*near) == [2] * 100
                with contextlib.suppress(asyncio.CancelledError):
                    await gone
                assert not far.done()
                await store.append([one("bob")])
                assert await far == 3

    async def test_closing_lets_go_of_those_who_wait(self) -> None:
        """A store that closes does not leave its readers waiting for ever."""
        store = await self.new_store()
        waiting = asyncio.ensure_future(store.wait(0, 10 * DEADLINE_S))
        await asyncio.sleep(0)
        await store.close()
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(StoreError, match="closed"):
                await waiting

    async def test_a_reader_that_follows_misses_nothing(self) -> None:
        """While many writers commit, a reader that has seen n never finds a new event at or below n; it ends with all
        acknowledged commits, each whole and at the position that its writer was told."""
        async with self.opened() as store:
            queue = GroupCommit(store, max_events=20)
            acknowledged: dict[bytes, int] = {}
            seen: list[StoredEvent] = []
            writing = True

            async def follow() -> None:
                while writing or len(seen) < await store.head():
                    await store.wait(len(seen), 0.05)
                    seen.extend(await store.read(len(seen), 13))

            follower = asyncio.ensure_future(follow())
            async with asyncio.timeout(2 * DEADLINE_S):
                await asyncio.gather(*(self._write(store, queue, w, acknowledged) for w in range(12)))
                writing = False
                await follower
                await queue.close()
            assert seen == await samples.whole_log(store)
            found = samples.check_log(seen)
            assert {command: rows[-1].position for command, rows in found.items()} == acknowledged

    async def _write(self, store: Store, queue: GroupCommit, writer: int, acknowledged: dict[bytes, int]) -> None:
        """Twenty commits to streams of which some are other writers' too."""
        choice = random.Random(writer)
        for _ in range(20):
            streams = choice.sample(["ada", "bob", "cy", f"own{writer}"], 2)
            while True:
                versions = [len(await store.read_stream(s)) for s in streams]
                wanted = commit(*(append(s, v, choice.randint(1, 3)) for s, v in zip(streams, versions, strict=True)))
                try:
                    acknowledged[wanted.command] = await queue.commit(wanted)
                    break
                except Conflict:
                    continue
