"""The laws of a store as a model: a few lines that decide on one commit at a time, and random commits to decide on."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from hypothesis import strategies as st

from evsync.errors import Conflict
from evsync.records import Append, Checkpoint, Commit, StoredEvent, new_command
from evsync.testing.contracts.samples import append, event, rows_of

STREAMS = ("ada", "bob.*", "cy 🦊")
FOLLOWERS = ("billing", "mailing")


class AppendSketch(NamedTuple):
    """An append whose expected version is off by so much from what the stream has by then."""

    stream: str
    off_by: int
    events: int


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
_appends = st.builds(AppendSketch, st.sampled_from(STREAMS), _off_by, st.sampled_from((0, 1, 1, 1, 2, 5)))
_checkpoints = st.builds(
    CheckpointSketch, st.sampled_from(FOLLOWERS), st.integers(0, 1), st.none() | _off_by, st.integers(0, 9)
)
_commits = st.builds(CommitSketch, st.lists(_appends, max_size=3), st.none() | st.none() | _checkpoints)

calls = st.lists(st.lists(_commits, max_size=5), max_size=6)
"""What a test appends: some calls of `append`, each of some commits."""


class Model:
    """What a store holds after each commit, by the laws."""

    def __init__(self, incarnation: str) -> None:
        self.incarnation = incarnation
        self.log: list[StoredEvent] = []
        self.checkpoints: dict[tuple[str, str, int], Checkpoint] = {}

    def stream(self, name: str) -> list[StoredEvent]:
        """The events of a stream."""
        return [row for row in self.log if row.stream == name]

    def commit_of(self, sketch: CommitSketch) -> Commit:
        """The commit that the sketch means for the store as it is now."""
        seen: dict[str, int] = defaultdict(int)
        appends: list[Append] = []
        for stream, off_by, events in sketch.appends:
            version = max(len(self.stream(stream)) + seen[stream] + off_by, 0)
            new = [event(f"users.User.E{i}", b"%d" % version, '{"a":"b"}' if i else None) for i in range(events)]
            appends.append(append(stream, version, new))
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
        lengths = {stream: len(self.stream(stream)) for stream in STREAMS}
        for a in commit.appends:
            if a.expected_version != lengths[a.stream]:
                return Conflict(a.stream, a.expected_version, lengths[a.stream])
            lengths[a.stream] += len(a.events)
        self.log += rows_of(commit, after=len(self.log), incarnation=self.incarnation)
        if commit.checkpoint is not None and commit.follower is not None:
            self.checkpoints[commit.follower, commit.checkpoint.log, commit.checkpoint.group] = commit.checkpoint
        return len(self.log)

    def _stored(self, follower: str, group: int) -> int:
        checkpoint = self.checkpoints.get((follower, "orders.main", group))
        return checkpoint.position if checkpoint else 0


def comparable(outcome: int | Conflict) -> object:
    """An outcome as something that has an `==`."""
    return (outcome.stream, outcome.expected, outcome.actual) if isinstance(outcome, Conflict) else outcome
