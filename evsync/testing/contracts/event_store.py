"""The laws of EventStore, as tests."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio.subprocess import PIPE
from operator import attrgetter
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evsync.control import is_control
from evsync.errors import ConfigurationError, Conflict, EncodingError, OutcomeUnknown, StoreError
from evsync.ports import Store
from evsync.records import Checkpoint, Commit, StoredEvent, command_of, new_command
from evsync.stores.group_commit import GroupCommit
from evsync.testing.contracts import samples
from evsync.testing.contracts.appender import SHARED
from evsync.testing.contracts.case import DEADLINE_S
from evsync.testing.contracts.given_versions import GivenVersionsContract
from evsync.testing.contracts.lost_reply import LostReply
from evsync.testing.contracts.model import STREAMS, CommitSketch, appended, as_modelled, calls, comparable, tried
from evsync.testing.contracts.samples import append, commit, event, one, reaction, rows_of


class EventStoreContract(GivenVersionsContract):
    """What every EventStore promises. Needs a store that holds its own log, as all do so far."""

    async def test_events_are_read_as_they_were_appended(self) -> None:
        """Every field comes back, and those that the store decides follow from the place in the log."""
        async with self.opened() as store:
            odd = ("a.B.C", '{"actor":"é"}') if store.capabilities.any_text else ("users.B.C", '{"actor":"\\u00e9"}')
            first = one("ada", 0, [event(data=b""), event(odd[0], b"\0\xff" * 9, odd[1])])
            second = one("ada", 2, [event(data=b"x" * 1_000_000)])
            assert await store.append([first]) == [2]
            assert await store.append([second]) == [3]
            expected = rows_of(first, after=0, incarnation=store.identity.incarnation)
            expected += rows_of(second, after=2, incarnation=store.identity.incarnation)
            assert await store.read_stream("ada") == expected
            assert await store.read(0, 10) == expected
            assert all(type(row) is StoredEvent for row in await store.read_stream("ada"))

    @tried(60)
    @given(calls=calls, limit=st.integers(1, 6))
    async def test_a_store_does_what_the_laws_say(self, calls: list[list[CommitSketch]], limit: int) -> None:
        """Outcomes, log, streams and checkpoints are those of a model that decides on one commit at a time."""
        async with self.opened() as store:
            model = await appended(store, calls)
            log = await samples.whole_log(store, limit=limit)
            assert as_modelled(log) == model.log
            samples.check_log(log)
            assert await store.head() == len(log)
            for stream in STREAMS:
                assert await store.read_stream(stream) == model.stream(stream)
            by_group = attrgetter("group")
            for follower in {key[0] for key in model.checkpoints}:
                kept = sorted((c for key, c in model.checkpoints.items() if key[0] == follower), key=by_group)
                assert sorted(await store.checkpoints(follower), key=by_group) == kept

    async def test_appending_nothing_stores_nothing(self) -> None:
        """No commits have no outcomes; a commit without events is answered with the head."""
        async with self.opened() as store:
            assert await store.append([]) == []
            assert await store.append([commit()]) == [0]
            assert await store.append([one("ada", 0, 3), commit(), commit(append("ada", 3, []))]) == [3, 3, 3]
            assert await store.head() == 3

    async def test_a_commit_may_span_streams_and_name_one_twice(self) -> None:
        """The events of a commit are neighbours, streams in the order given; its appends see one another."""
        async with self.opened() as store:
            wanted = commit(append("ada", 0, 2), append("bob"), append("ada", 2))
            assert await store.append([wanted]) == [4]
            log = await store.read(0, 1)
            assert log == rows_of(wanted, after=0, incarnation=store.identity.incarnation)
            assert [(e.stream, e.version, e.remaining) for e in log] == [
                ("ada", 1, 3),
                ("ada", 2, 2),
                ("bob", 1, 1),
                ("ada", 3, 0),
            ]

    async def test_one_stream_may_come_twice_in_one_call(self) -> None:
        """Later commits of a call see the earlier ones, conflicts included."""
        async with self.opened() as store:
            outcomes = await store.append([one("ada"), one("ada", 1), one("ada", 1), one("ada", 2)])
            assert [comparable(o) for o in outcomes] == [1, 2, ("ada", 1, 2), 3]
            assert [e.version for e in await store.read_stream("ada")] == [1, 2, 3]

    async def test_a_conflict_keeps_out_its_own_commit_only(self) -> None:
        """Nothing of the commit is stored, whichever of its streams is the reason; its neighbours in the call are."""
        async with self.opened() as store:
            await store.append([one("ada")])
            several = commit(append("bob"), append("ada", 0))
            outcomes = await store.append([one("cy"), several, one("dora")])
            assert [comparable(o) for o in outcomes] == [2, ("ada", 0, 1), 3]
            assert await store.read_stream("bob") == []
            assert [e.stream for e in await samples.whole_log(store)] == ["ada", "cy", "dora"]

    @pytest.mark.parametrize("expected", [0, 1, 3, 10**12])
    async def test_an_expected_version_is_met_exactly(self, expected: int) -> None:
        """A version that the stream has left behind is a conflict, and one that it has not reached is too."""
        async with self.opened() as store:
            await store.append([one("ada", 0, 2)])
            (outcome,) = await store.append([one("ada", expected)])
            assert isinstance(outcome, Conflict)
            assert (outcome.stream, outcome.expected, outcome.actual) == ("ada", expected, 2)
            assert len(await store.read_stream("ada")) == 2

    async def test_of_many_writers_exactly_one_wins_each_version(self) -> None:
        """Writers that all expect the same version: one is stored, the others get Conflict and are not."""
        async with self.opened() as store:
            for version in range(5):
                commits = [one("ada", version) for _ in range(8)]
                outcomes = [o for (o,) in await asyncio.gather(*(store.append([c]) for c in commits))]
                winners = [c for c, o in zip(commits, outcomes, strict=True) if isinstance(o, int)]
                assert len(winners) == 1
                assert all(isinstance(o, (int, Conflict)) for o in outcomes)
                assert command_of((await store.read_stream("ada"))[-1].id) == winners[0].command
            samples.check_log(await samples.whole_log(store))

    async def test_many_streams_in_one_call_are_each_checked(self) -> None:
        """A call may hold more commits and streams than a statement, a message or a page of the store."""
        async with self.opened() as store:
            names = [f"user{i}" for i in range(300)]
            assert await store.append([one(n) for n in names]) == list(range(1, 301))
            outcomes = await store.append([one(n, i % 2) for i, n in enumerate(names)])
            assert [isinstance(o, Conflict) for o in outcomes] == [i % 2 == 0 for i in range(300)]
            log = await samples.whole_log(store, limit=7)
            assert len(samples.check_log(log)) == 450
            assert len(log) == 450

    async def test_a_commit_may_be_large(self) -> None:
        """Thousands of events in one commit are stored whole, and more than an id can number are refused whole."""
        async with self.opened() as store:
            most = store.capabilities.max_commit_events
            n = min(3_000, most)
            assert await store.append([one("bob", 0, 2), one("ada", 0, n)]) == [2, n + 2]
            rows = await store.read_stream("ada")
            assert [e.version for e in rows] == list(range(1, n + 1))
            assert [e.position for e in rows] == list(range(3, n + 3))
            with pytest.raises(EncodingError, match=f"{most:,}"):
                await store.append([one("bob", 2, [event()] * (most + 1))])
            assert len(await store.read_stream("bob")) == 2
            assert await store.append([one("bob", 2)]) == [n + 3]

    async def test_a_part_of_a_stream_can_be_read(self) -> None:
        """Events with `after_version < version <= to_version`, in order; none where there are none."""
        async with self.opened() as store:
            await store.append([one("ada", 0, 5), one("bob", 0, 2)])
            for after, to in [(0, None), (0, 5), (2, None), (2, 4), (0, 0), (5, None), (9, None), (4, 2), (0, 99)]:
                rows = await store.read_stream("ada", after_version=after, to_version=to)
                assert [e.version for e in rows] == [v for v in range(1, 6) if after < v <= (5 if to is None else to)]
                assert all(e.stream == "ada" for e in rows)
            assert await store.read_stream("nobody") == []

    async def test_hostile_names_are_kept_apart(self) -> None:
        """A stream id or event type is any text: no character means anything to the store, and none is changed."""
        async with self.opened() as store:
            any_text = store.capabilities.any_text
            types = {name: name if any_text else f"users.A.{name[:40]}" for name in samples.HOSTILE}
            commits = [one(name, 0, [event(type=types[name], meta='{"n":"\\u0000"}')]) for name in samples.HOSTILE]
            assert await store.append(commits) == list(range(1, len(commits) + 1))
            for name in samples.HOSTILE:
                assert [(e.stream, e.type) for e in await store.read_stream(name)] == [(name, types[name])]
            assert [e.stream for e in await samples.whole_log(store)] == list(samples.HOSTILE)

    # ---- checkpoints

    async def test_a_checkpoint_is_stored_with_its_commit(self) -> None:
        """One per follower, log and group, the last one stored; a commit may consist of a checkpoint alone."""
        async with self.opened() as store:
            assert await store.checkpoints("billing") == []
            head = await store.append(
                [
                    reaction("billing", 7, append("invoice1")),
                    reaction("billing", 8),
                    reaction("billing", 5, group=1),
                    reaction("billing", 6, log="users.main"),
                    reaction("mailing", 1),
                ]
            )
            more = int(store.capabilities.checkpoints_are_events)
            assert head == [1 + more * n for n in range(1, 6)]
            kept = sorted(await store.checkpoints("billing"), key=lambda c: c.position)
            assert [(c.log, c.group, c.position) for c in kept] == [
                ("orders.main", 1, 5),
                ("users.main", 0, 6),
                ("orders.main", 0, 8),
            ]
            assert kept[2] == Checkpoint("orders.main", 0, "0123456789ab", 8, 8, 2**64 - 8)
            assert [c.position for c in await store.checkpoints("mailing")] == [1]

    async def test_two_processes_cannot_react_twice(self) -> None:
        """A commit whose `after` is not the stored position is a conflict, and neither half of it is stored."""
        async with self.opened() as store:
            first = reaction("billing", 7, append("invoice1"), after=0)
            again = reaction("billing", 7, append("invoice2"), after=0)
            later = reaction("billing", 9, append("invoice3"), after=7)
            outcomes = await store.append([first, again, later])
            more = int(store.capabilities.checkpoints_are_events)
            assert [comparable(o) for o in outcomes] == [1 + more, ("checkpoint of billing", 0, 7), 2 + 2 * more]
            (outcome,) = await store.append([reaction("billing", 20, append("invoice4"), after=8)])
            assert comparable(outcome) == ("checkpoint of billing", 8, 9)
            log = await samples.whole_log(store)
            assert [e.stream for e in log if not is_control(e.type)] == ["invoice1", "invoice3"]
            assert [c.position for c in await store.checkpoints("billing")] == [9]

    async def test_a_conflict_of_a_stream_keeps_the_checkpoint_out(self) -> None:
        """The checkpoint belongs to the commit: all of it or none."""
        async with self.opened() as store:
            (outcome,) = await store.append([reaction("billing", 7, append("invoice1", 4))])
            assert comparable(outcome) == ("invoice1", 4, 0)
            assert await store.checkpoints("billing") == []

    async def test_half_a_checkpoint_is_refused(self) -> None:
        """A follower without a checkpoint, or the other way round, or `after` alone, would be forgotten silently."""
        async with self.opened() as store:
            whole = reaction("billing", 7, append("invoice1"))
            for half in (
                Commit(new_command(), whole.appends, "billing"),
                Commit(new_command(), whole.appends, None, whole.checkpoint),
                Commit(new_command(), whole.appends, after=3),
            ):
                with pytest.raises(ConfigurationError, match="belong together"):
                    await store.append([half])
            assert await store.head() == 0

    # ---- when things go wrong

    @pytest.mark.parametrize("lose", ["reply", "request"])
    async def test_an_unknown_outcome_is_found_by_its_command(self, lose: Literal["reply", "request"]) -> None:
        """Whether a commit was stored is told by looking for its command's id in the stream, after any number of
        others; sending it again after it was stored is a conflict."""
        async with self.opened() as inner:
            store = LostReply(inner)
            queue = GroupCommit(store)
            assert await queue.commit(one("ada")) == 1
            store.lose = lose
            commits = [one("ada", 1, 2), one("bob")]
            errors = await asyncio.gather(*(queue.commit(c) for c in commits), return_exceptions=True)
            assert [type(e) for e in errors] == [OutcomeUnknown, OutcomeUnknown]
            store.lose = "nothing"
            found = [command_of(e.id) for e in await store.read_stream("ada", after_version=1)]
            assert found == ([commits[0].command] * 2 if lose == "reply" else [])
            again = (await asyncio.gather(queue.commit(commits[0]), return_exceptions=True))[0]
            assert isinstance(again, Conflict) if lose == "reply" else again == 3
            assert [e.version for e in await store.read_stream("ada")] == [1, 2, 3]
            await queue.close()

    async def test_a_cancelled_append_is_stored_whole_or_not_at_all(self) -> None:
        """Whenever the caller is cancelled, the store goes on working and no commit is there in part."""
        async with self.opened() as store:
            for turn in range(12):
                task = asyncio.ensure_future(store.append([one(f"user{turn}", 0, 3), one(f"friend{turn}", 0, 2)]))
                for _ in range(turn):
                    await asyncio.sleep(0)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            (position,) = await store.append([one("last")])
            assert position == await store.head()
            log = await samples.whole_log(store)
            sizes = {len(rows) for rows in samples.check_log(log).values()}
            assert sizes <= {1, 2, 3}
            assert log[-1].stream == "last"

    async def test_a_closed_store_says_so(self) -> None:
        """Closing twice is fine; afterwards nothing is stored and nothing pretends to be."""
        store = await self.new_store()
        await store.append([one("ada")])
        await store.close()
        await store.close()
        with pytest.raises(StoreError, match="closed"):
            await store.append([one("bob")])
        with pytest.raises(StoreError, match="closed"):
            await store.read_stream("ada")

    async def test_what_was_appended_survives(self) -> None:
        """A store that is closed and opened again is the same log, and goes on where it was."""
        store = await self.new_store()
        try:
            self.require(store, "durable")
            await store.append([one("ada", 0, 2), reaction("billing", 7, append("invoice1"))])
            before = await samples.whole_log(store)
            await store.close()
            store = await self.reopen(store)
            assert await samples.whole_log(store) == before
            assert {e.incarnation for e in before} == {store.identity.incarnation}
            assert [c.position for c in await store.checkpoints("billing")] == [7]
            end = 4 + int(store.capabilities.checkpoints_are_events)
            outcomes = await store.append([one("ada", 2), one("ada", 0)])
            assert [comparable(o) for o in outcomes] == [end, ("ada", 0, 3)]
        finally:
            await store.close()

    async def test_several_processes_append_to_one_log(self) -> None:
        """Processes that compete over a stream: every acknowledged commit is in the log, whole, at the position it was
        told, and a reader that follows the log meanwhile misses nothing."""
        async with self.opened() as store:
            self.require(store, "several_processes")
            names, commits = ["ann", "ben", "cleo"], 40
            processes = [await self._appender(store, name, commits) for name in names]
            try:
                seen: list[StoredEvent] = []
                async with asyncio.timeout(2 * DEADLINE_S):
                    while len(seen) < 3 * len(names) * commits:
                        await store.wait(len(seen), 0.5)
                        seen += await store.read(len(seen), 20)
                        assert all(p.returncode in (None, 0) for p in processes), "an appender failed"
                    outputs = [(await p.communicate())[0].decode() for p in processes]
            finally:
                for process in processes:
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
                    await process.wait()
            assert [p.returncode for p in processes] == [0] * len(names)
            found = samples.check_log(seen)
            for name, output in zip(names, outputs, strict=True):
                acknowledged = [line.split() for line in output.splitlines()]
                assert len(acknowledged) == commits
                for command, position in acknowledged:
                    rows = found.pop(bytes.fromhex(command))
                    assert [e.stream for e in rows] == [name, SHARED, SHARED]
                    assert rows[-1].position == int(position)
            assert not found, "the log holds commits that nobody made"

    async def _appender(self, store: Store, name: str, commits: int) -> asyncio.subprocess.Process:
        identity = store.identity
        where = self.opener, self.url_of(store), identity.service, identity.shard
        arguments = ["-m", "evsync.testing.contracts.appender", *where, name, str(commits)]
        return await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=PIPE)
