"""The laws of appends that give the versions of their events; part of the suite of EventStore."""

from __future__ import annotations

import pytest
from hypothesis import example, given

from evsync.errors import ConfigurationError
from evsync.testing.contracts import samples
from evsync.testing.contracts.case import StoreCase
from evsync.testing.contracts.model import (
    STREAMS,
    AppendSketch,
    CommitSketch,
    appended,
    as_modelled,
    calls_with_given,
    comparable,
    tried,
)
from evsync.testing.contracts.samples import append, commit, one


class GivenVersionsContract(StoreCase):
    """What a store promises that declares given_versions."""

    @tried(40)
    @given(calls=calls_with_given)
    # The first append that cannot be kept is the reason, also if a later one contradicts itself.
    @example(
        [
            [
                CommitSketch([AppendSketch("bob.*", 0, 1)], None),
                CommitSketch([AppendSketch("bob.*", 0, 1, [1]), AppendSketch("ada", 0, 2, [0, 0])], None),
            ]
        ]
    )
    async def test_given_versions_need_only_be_free(self, calls: list[list[CommitSketch]]) -> None:
        """They may begin at 0, leave gaps and fill them; a version that is taken keeps out its own commit only. Appends
        that state an expected version go on behind the greatest."""
        async with self.opened() as store:
            self.require(store, "given_versions")
            model = await appended(store, calls)
            assert as_modelled(await samples.whole_log(store)) == model.log
            for stream in STREAMS:
                assert await store.read_stream(stream, after_version=-1) == model.stream(stream)
                assert await store.read_stream(stream, after_version=2, to_version=5) == [
                    row for row in model.stream(stream) if 2 < row.version <= 5
                ]

    async def test_a_commit_may_give_versions_of_one_stream_twice(self) -> None:
        """Its events keep their order in the log, and no version of them may come twice."""
        async with self.opened() as store:
            self.require(store, "given_versions")
            wanted = commit(append("ada", 0, 1, [1]), append("bob", 0, 1, [1]), append("ada", 1, 1, [2]))
            twice = commit(append("cy", 0, 1, [1]), append("ada", 2, 1, [3]), append("ada", 2, 1, [3]))
            outcomes = await store.append([wanted, twice, samples.given("ada", 5, 3)])
            assert [comparable(o) for o in outcomes] == [3, ("ada", 2, 2), 5]
            log = await samples.whole_log(store)
            assert [(e.stream, e.version) for e in log] == [("ada", 1), ("bob", 1), ("ada", 2), ("ada", 5), ("ada", 3)]
            # The first append that cannot be kept is the reason.
            late = commit(append("dora", 0, 1, [1]), append("ada", 5, 1, [6]), append("ada", 1, 1, [2]))
            both = commit(append("ada", 6, 1, [6]), append("bob", 0, 1, [1]), append("ada", 5, 1, [6]))
            outcomes = await store.append([late, both])
            assert [comparable(o) for o in outcomes] == [("ada", 1, 5), ("bob", 0, 1)]
            assert await store.head() == 5

    async def test_given_versions_that_make_no_sense_are_refused(self) -> None:
        """One for each event, none below 0, and not beside an expected version of the same stream."""
        async with self.opened() as store:
            self.require(store, "given_versions")
            for wrong in (
                commit(append("ada", 0, 2, [1])),
                commit(append("ada", -2, 1, [-1])),
                commit(append("ada", 0, 1), append("ada", 1, 1, [2])),
            ):
                with pytest.raises(ConfigurationError, match="ada"):
                    await store.append([one("bob"), wrong])
            assert await store.head() == 0
