"""One log of a reaction: how far its events have been dealt with, and how far that is stored."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from evsync.errors import Conflict, OtherIncarnation
from evsync.ports import LogReader
from evsync.projections.batch import digest_of
from evsync.projections.running.feed import Feed
from evsync.projections.status import State
from evsync.records import Checkpoint, StoredEvent, service_of

ReadCheckpoints = Callable[[str], Awaitable[Sequence[Checkpoint]]]
"""The checkpoints that commits have stored under a follower's name."""


class AnsweredLog:
    """What a reaction knows of one of its logs.

    An event whose answer is None needs no commit, so what was `seen` may be ahead of what is `stored`.
    """

    def __init__(self, reader: LogReader, follower: str, batch: int) -> None:
        self.name, self.reader, self._follower = reader.log, reader, follower
        self.feed = Feed(reader, batch, self.report)
        self.seen = self.stored = Checkpoint(self.name, 0, "", 0)
        self.state: State = "running"
        self.reason: str | None = None
        """What stands in the way, if anything does."""
        self.unstored = 0
        """How many events were seen beyond what is stored; evsync's own do not count.

        In a store where a checkpoint is an event, a reaction to its own log would else store a checkpoint because it
        has seen the last one, for ever.
        """
        self.failures = 0
        """In a row, of any kind: how long to pause."""
        self.attempts = 0
        """How often the event after `seen` was to blame."""
        self._conflict: tuple[str, int] | None = None
        """Stream and version of the last conflict since `seen`."""

    @property
    def checkpoints(self) -> Mapping[int, Checkpoint]:
        """How far it is answered: as for a projection with a single group."""
        return {0: self.seen}

    async def load(self, read: ReadCheckpoints) -> bool:
        """Compare with what is stored; if that is not where this process left it, go on from there.

        Returns whether there is a checkpoint of any log of this service: a shard that was added later is answered from
        its beginning, since what "now" means was settled with the first.
        """
        found = await read(self._follower)
        stored = next((c for c in found if c.log == self.name), Checkpoint(self.name, 0, "", 0))
        if stored.position != self.stored.position or not self.seen.incarnation:
            self.seen = self.stored = stored
            self.unstored = 0
        return any(service_of(c.log) == service_of(self.name) for c in found)

    def after(self, event: StoredEvent, *, handled: bool) -> Checkpoint:
        """The checkpoint once this event has been dealt with; only handled ones are counted."""
        seen = self.seen
        return Checkpoint(
            self.name,
            0,
            event.incarnation,
            event.position,
            seen.count + handled,
            (seen.digest + digest_of(event)) % 2**64 if handled else seen.digest,
        )

    def passed(self, checkpoint: Checkpoint, *, stored: bool, control: bool = False) -> None:
        """An event has been dealt with; a `control` event is evsync's own."""
        self.seen = checkpoint
        if stored:
            self.stored, self.unstored = checkpoint, 0
        elif not control:
            self.unstored += 1
        self.failures = self.attempts = 0
        self._conflict = None
        self.state, self.reason = "running", None

    def failed(self, reason: str) -> None:
        """An attempt failed."""
        self.failures += 1
        self.state, self.reason = "retrying", reason

    def is_contended(self, conflict: Conflict) -> bool:
        """Whether others were merely faster, so that trying again will do: the stream has grown since the last one.

        One over a stream that stands still, or that was to be new, is the handler's own fault and would come back.
        """
        before, self._conflict = self._conflict, (conflict.stream, conflict.actual)
        return conflict.expected > 0 and self._conflict != before

    def report(self, reason: str | None) -> None:
        """What stands in the way of reading."""
        self.reason = reason

    def other_history(self, follower: str) -> OtherIncarnation:
        """What to say when the log does not continue what was answered. The checkpoint is in the reaction's own store,
        among events that must stay, so that the mend is another name rather than a deletion."""
        found = self.reader.incarnation
        other = f"is incarnation {found}" if found not in (None, self.seen.incarnation) else "is another, or shorter"
        return OtherIncarnation(
            f"reaction {follower!r} has answered log {self.name!r} up to position {self.seen.position} of incarnation "
            f"{self.seen.incarnation}, and the log that is there now {other}: it was put back to an older copy, "
            "restored from a backup, or made anew. Nothing of it was answered, and what was saved in answer to the old "
            "one stays. Put the old log back if there is one. Else give the reaction a new name, and the since= from "
            'which on it is to answer the new history (since="now": nothing that is there already), and start again.',
            log=self.name,
            position=self.seen.position,
            incarnation=self.seen.incarnation,
            other_incarnation=found,
        )
