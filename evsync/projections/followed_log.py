"""One log of a projection: its checkpoints as they are stored, and how the last attempts to go on went."""

from __future__ import annotations

from collections.abc import Iterable

from evsync.ports import LogReader
from evsync.projections.feed import Feed
from evsync.records import Checkpoint


class FollowedLog:
    """What a runner knows of one of its logs while it holds the projection's groups."""

    def __init__(self, reader: LogReader, batch: int, groups: int) -> None:
        self.name = reader.log
        self.feed = Feed(reader, batch, self.report)
        self.checkpoints: dict[int, Checkpoint] = {}
        """By group."""
        self.reason: str | None = None
        """What stands in the way, if anything does."""
        self.failures = 0
        """In a row, of any kind: how long to pause."""
        self.attempts = 0
        """How often an event was to blame since the log last went past `culprit`. Counted across rebuilds of a model in
        memory, which goes through everything before the culprit again."""
        self.culprit = 0
        self._groups = groups
        self.load(())

    @property
    def position(self) -> int:
        """The least of the checkpoints: where reading goes on."""
        return min(c.position for c in self.checkpoints.values())

    @property
    def incarnation(self) -> str:
        """Of what was applied; "" before anything was."""
        return next((c.incarnation for c in self.checkpoints.values() if c.incarnation), "")

    def load(self, checkpoints: Iterable[Checkpoint]) -> None:
        """Begin at these checkpoints (those of other logs are passed over); groups without one at the beginning."""
        self.checkpoints = {g: Checkpoint(self.name, g, "", 0) for g in range(self._groups)}
        self.checkpoints.update((c.group, c) for c in checkpoints if c.log == self.name)

    def moved(self, checkpoints: Iterable[Checkpoint]) -> None:
        """A batch was applied, and these are the checkpoints now."""
        self.checkpoints = {c.group: c for c in checkpoints}
        self.failures, self.reason = 0, None
        if self.position >= self.culprit:
            self.attempts = self.culprit = 0

    def failed(self, reason: str, culprit: int = 0) -> None:
        """An attempt failed; `culprit` is the position of the event that is to blame, if one is."""
        self.failures += 1
        self.reason = reason
        if culprit:
            self.attempts += 1
            self.culprit = max(self.culprit, culprit)

    def report(self, reason: str | None) -> None:
        """What stands in the way of reading."""
        self.reason = reason
