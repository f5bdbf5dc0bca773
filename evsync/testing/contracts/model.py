"""The laws of a store as a model: a few lines that decide on one commit at a time, and random commits to decide on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from evsync.control import is_control
from evsync.errors import Conflict
from evsync.ports import Capabilities, Store
from evsync.records import Append, Checkpoint, Commit, StoredEvent, new_command
from evsync.testing.contracts.samples import append, event, rows_of

STREAMS = ("ada", "bob.*", "cy 🦊")
FOLLOWERS = ("billing", "mailing")


class AppendSketch(NamedTuple):
    """An append whose expected version is off by so much from what the stream has by then, or that gives versions."""

    stream: str
    off_by: int
    events: int
    versions: list[int] | None = None


class CheckpointSketch(NamedTuple):
    """A checkpoint whose `after` is off by so much from the stored one, or absent (None)."""

    follower: str
    group: int
    off_by: int | None
    step: int


class CommitSketch(NamedTuple):
    """A commit, before it is known what it meets."""

    appends: list[AppendSketch]
    checkpoint: CheckpointSketch | None


_off_by = st.sampled_from((0, 0, 0, 0, 0, 0, 0, -1, 1, 5))
_appends = st.builds(AppendSketch, st.sampled_from(STREAMS), _off_by, st.sampled_from((0, 1, 1, 1, 2, 5)), st.none())
_checkpoints = st.builds(
    CheckpointSketch, st.sampled_from(FOLLOWERS), st.integers(0, 1), st.none() | _off_by, st.integers(0, 9)
)
_commits = st.builds(CommitSketch, st.lists(_appends, max_size=3), st.none() | st.none() | _checkpoints)

calls = st.lists(st.lists(_commits, max_size=5), max_size=6)
"""What a test appends: some calls of `append`, each of some commits."""

_given = st.lists(st.integers(0, 7), max_size=3).map(
    lambda versions: AppendSketch("", 0, len(versions), versions)
) | st.builds(AppendSketch, st.just(""), _off_by, st.integers(0, 2), st.none())
_commits_with_given = st.builds(
    CommitSketch,
    st.permutations(STREAMS).flatmap(
        lambda names: st.lists(_given, max_size=3).map(
            lambda sketches: [s._replace(stream=name) for s, name in zip(sketches, names, strict=False)]
        )
    ),
    st.none() | _checkpoints,
)

calls_with_given = st.lists(st.lists(_commits_with_given, max_size=4), max_size=6)
"""The same, with commits that name each stream once, some giving versions."""


class Model:
    """What a store holds after each commit, by the laws."""

    def __init__(self, incarnation: str, capabilities: Capabilities) -> None:
        self.incarnation, self.capabilities = incarnation, capabilities
        self.log: list[StoredEvent] = []
        self.checkpoints: dict[tuple[str, str, int], Checkpoint] = {}

    def stream(self, name: str) -> list[StoredEvent]:
        """The events of a stream."""
        return sorted((row for row in self.log if row.stream == name), key=lambda row: row.version)

    def version(self, name: str) -> int:
        """The greatest version in a stream; 0 if it has no events."""
        return max((row.version for row in self.stream(name)), default=0)

    def commit_of(self, sketch: CommitSketch) -> Commit:
        """The commit that the sketch means for the store as it is now."""
        seen: dict[str, int] = defaultdict(int)
        appends: list[Append] = []
        for stream, off_by, events, versions in sketch.appends:
            version = max(self.version(stream) + seen[stream] + off_by, 0)
            new = [event(f"users.User.E{i}", b"%d" % version, '{"a":"b"}' if i else None) for i in range(events)]
            appends.append(append(stream, version, new, versions))
            seen[stream] += events
        if sketch.checkpoint is None:
            return Commit(new_command(), appends)
        follower, group, off_by_after, step = sketch.checkpoint
        stored = self._stored(follower, group)
        checkpoint = Checkpoint("orders.main", group, "fedcba987654", stored + step, step, 2**64 - 1 - step)
        after = None if off_by_after is None else stored + off_by_after
        return Commit(new_command(), appends, follower, checkpoint, after)

    def apply(self, commit: Commit) -> int | Conflict:
        """Do what a store must do with the commit, and return what it must answer."""
        if commit.checkpoint is not None and commit.follower is not None:
            stored = self._stored(commit.follower, commit.checkpoint.group)
            if commit.after not in (None, stored):
                return Conflict(f"checkpoint of {commit.follower}", commit.after or 0, stored)
        lengths = {stream: self.version(stream) for stream in STREAMS}
        for a in commit.appends:
            if a.versions is not None:
                taken = [*(row.version for row in self.stream(a.stream)), *a.versions]
                fits = len(set(taken)) == len(taken)
            else:
                fits = a.expected_version == lengths[a.stream]
            if not fits:
                return Conflict(a.stream, a.expected_version, lengths[a.stream])
            lengths[a.stream] += len(a.events)
        self.log += rows_of(commit, after=len(self.log), incarnation=self.incarnation)
        if commit.checkpoint is not None and self.capabilities.checkpoints_are_events:
            size = commit.size
            self.log[len(self.log) - size :] = [
                row._replace(remaining=row.remaining + 1) for row in self.log[len(self.log) - size :]
            ]
            self.log.append(_control_event(len(self.log) + 1, 0))
        if commit.checkpoint is not None and commit.follower is not None:
            self.checkpoints[commit.follower, commit.checkpoint.log, commit.checkpoint.group] = commit.checkpoint
        return len(self.log)

    def _stored(self, follower: str, group: int) -> int:
        checkpoint = self.checkpoints.get((follower, "orders.main", group))
        return checkpoint.position if checkpoint else 0


def tried(examples: int) -> settings:
    """How often a law is tried, with other calls each time; for suites, which every adapter's test inherits."""
    checks = [HealthCheck.differing_executors, HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=None, database=None, suppress_health_check=checks)


async def appended(store: Store, calls: Iterable[Iterable[CommitSketch]]) -> Model:
    """What an empty store must hold after these calls. Asserts that it answers each of them as it must."""
    model = Model(store.identity.incarnation, store.capabilities)
    for sketches in calls:
        commits, expected = [], []
        for sketch in sketches:
            commits.append(model.commit_of(sketch))
            expected.append(model.apply(commits[-1]))
        outcomes = await store.append(commits)
        assert [comparable(o) for o in outcomes] == [comparable(o) for o in expected]
    return model


def as_modelled(log: Iterable[StoredEvent]) -> list[StoredEvent]:
    """A log as the model has it: evsync's own events have a place in it, and nothing else that is known."""
    return [_control_event(row.position, row.remaining) if is_control(row.type) else row for row in log]


def _control_event(position: int, remaining: int) -> StoredEvent:
    return StoredEvent(position, "", 0, 0, "", 0, b"", remaining, "", b"", None)


def comparable(outcome: int | Conflict) -> object:
    """An outcome as something that has an `==`."""
    return (outcome.stream, outcome.expected, outcome.actual) if isinstance(outcome, Conflict) else outcome
