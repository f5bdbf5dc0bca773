"""The ports: what a store, a log and its readers promise, on one page.

Each law has a test in `evsync.testing.contracts`.

Laws of a store
    A commit is stored whole or not at all, its checkpoint included.
    A (stream, version) exists once; versions of a stream are 1, 2, 3, … without a gap, wherever appends state the
    version they expect (see `Append.versions`).
    Of two writers with the same expected version exactly one wins; the other gets Conflict.
    Positions of a log are 1, 2, 3, … without a gap and in commit order: a reader that has seen n can never later find
    a new event at or below n. The events of one commit are neighbours, streams in the order given.
    When `append` returns, the commit survives a crash of the process and, with default settings, of the machine.
    A commit whose fate is not known raises OutcomeUnknown, never an ordinary error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from evsync.control import OWN_STREAMS
from evsync.errors import Conflict
from evsync.records import (
    Ancestor,
    Change,
    Checkpoint,
    Commit,
    History,
    LogIdentity,
    Opening,
    SlotRows,
    SlotState,
    Snapshot,
    StoredEvent,
)

Progress = Callable[[int, int], None]
"""Is told how much of something long is done, and how much there is in all."""


def unheard(done: int, total: int) -> None:
    """The Progress of what nobody waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an adapter can do; the contract suites ask here and never skip in silence."""

    durable: bool = True
    """Survives the process."""
    several_processes: bool = True
    """Two processes may append to the same log."""
    any_text: bool = True
    """Types and tags may be any text. Else a type is `service.Aggregate.Event`, and tags are ASCII, as in a message."""
    checkpoints_are_events: bool = False
    """A commit with a checkpoint has one event more, its last: evsync's own (see `is_control`), with a position."""
    max_commit_events: int = 65_536
    """How many events one commit may hold, that of a checkpoint included."""
    slots_leave: bool = True
    """A slot of a SlotStore can be moved away when its log holds events. Else see KeepsSlots."""
    given_versions: bool = False
    """An append may say at which versions its events stand (`Append.versions`)."""


@runtime_checkable
class EventStore(Protocol):
    """Appends commits and reads streams. See the laws above."""

    identity: LogIdentity
    capabilities: Capabilities

    async def append(self, commits: Sequence[Commit]) -> list[int | Conflict]:
        """Append each commit, all of it or none, in one durable write.

        Returns, per commit and in their order, the position of its last event (for a commit without events the head),
        or the Conflict that kept it out: a conflict fails its own commit only. Later commits of the same call see the
        earlier ones. Raises OutcomeUnknown when the reply was lost, StoreFull or StoreUnavailable when nothing of the
        whole call was stored.
        """
        ...

    async def read_stream(
        self, stream: str, *, after_version: int = 0, to_version: int | None = None
    ) -> list[StoredEvent]:
        """The events of a stream with `after_version < version <= to_version`, in order; [] if there are none.

        Where versions are given they may begin at 0: `after_version=-1` reads that one too.
        """
        ...

    def read_changes(
        self, stream: str, *, after_version: int = 0, to_version: int | None = None
    ) -> AsyncIterator[Sequence[Change]]:
        """The same events in slices, as little of them as a fold needs: what `get` and `execute` read.

        Slices are small enough to stay in the processor's cache, and a long stream is never in memory as a whole.
        """
        ...

    async def checkpoints(self, follower: str) -> list[Checkpoint]:
        """The checkpoints that commits have stored under this name."""
        ...

    async def close(self) -> None:
        """Release everything. What was appended stays. Calling twice is fine."""
        ...


@runtime_checkable
class EventLog(Protocol):
    """Reads a log in commit order."""

    identity: LogIdentity

    async def head(self) -> int:
        """The position of the last event: 0 for an empty log."""
        ...

    async def read(self, after: int, limit: int) -> list[StoredEvent]:
        """The events at positions after + 1, after + 2, …: about `limit` of them, whole commits only, so at least one
        commit if there is one, however large. [] at the end of the log."""
        ...

    async def wait(self, after: int, timeout_s: float) -> int:
        """The head, as soon as it is beyond `after`, or when the time has run out. Woken by appends of this process at
        once, of others within a poll."""
        ...


class Share(NamedTuple):
    """Some of the groups of a log's slots: those that one worker has."""

    groups: frozenset[int]
    of: int
    """How many groups there are: a slot is in group slot mod `of`."""

    def serves(self, other: Share | None) -> bool:
        """Whether another share, or that of one who has all groups, is part of this one."""
        return other is not None and other.of == self.of and other.groups <= self.groups


class Stretch(NamedTuple):
    """What stands behind a position of a log, whole commits, as far as it was asked for."""

    events: Sequence[StoredEvent]
    """In their order. The last one is always that at the stretch's end, whoever it is for."""
    left_out: int = 0
    """How many more there are: of other groups. Where there are any, no event of the stretch is evsync's own."""
    share: Share | None = None
    """Whose events are all there; None: everybody's."""

    def cut_to(self, share: Share) -> Stretch:
        """What is left of a whole stretch for a share: how ReadsShares is implemented where nothing is gained by it."""
        events = self.events
        if any(e.stream.startswith(OWN_STREAMS) for e in events):
            return self
        kept = [e for e in events if e.slot % share.of in share.groups or e is events[-1]]
        return Stretch(kept, len(events) - len(kept), share)


@runtime_checkable
class ReadsShares(Protocol):
    """A log, or a reader of one, that can leave out what a worker would only pass over: before it is fetched."""

    async def read_share(self, after: int, limit: int, share: Share) -> Stretch:
        """What stands behind position `after`, about `limit` events long, with what is left out. Does not wait.

        Empty at the end of the log, and where one of evsync's own events is next, or something is missing: then `read`
        says what is there. Laws: each position up to that of the last event is given or counted as left out, one by
        one; and from a stretch with an event of evsync's own nothing is left out.
        """
        ...


class SnapshotStore(Protocol):
    """Keeps the latest snapshot of each stream. Snapshots are a convenience: losing one costs time, never data."""

    async def put_snapshot(self, snapshot: Snapshot) -> None:
        """Keep it in place of an older one of its stream, or of one of another shape; ignore it if it is older."""
        ...

    async def snapshot(self, stream: str) -> Snapshot | None:
        """The snapshot of a stream, if one is kept."""
        ...


Place = tuple[int, int]
"""Where an event stands in the order in which a store has come to have events, own and imported."""
Arrived = tuple[Place, StoredEvent]


class SlotSize(NamedTuple):
    """How much there is in one shard."""

    events: int
    """In its log, whoever owns their slots now; evsync's own do not count."""
    size_bytes: int
    """Of their data."""
    streams: int
    """Of the slots that are open there."""


@runtime_checkable
class SlotStore(Protocol):
    """A store that says which slots are open in it, and that slots can be moved from and to.

    Laws: an append to a slot that is not open here is refused with SlotMoved, which says where it went if the store
    knows, in the transaction that would store it.
    Each method is one transaction; those that change say False or None, having changed nothing, where what they
    presuppose is not so. An import has the position and incarnation of the log that it was appended to. It is read
    with its stream, counts for its versions, and is in no log.
    """

    identity: LogIdentity

    async def head(self) -> int:
        """The position of the last event of the store's log."""
        ...

    async def slot_states(self) -> Mapping[int, SlotState]:
        """What the store says of each slot that is, or was, open in it."""
        ...

    async def slot_state(self, slot: int) -> SlotState | None:
        """What the store says of one slot, now."""
        ...

    async def arrived(self, slots: Sequence[int]) -> Mapping[int, History]:
        """What has arrived of the histories of slots that are not open here: own events of earlier epochs included."""
        ...

    async def slot_events(self, slots: Sequence[int], after: Place, limit: int) -> list[Arrived]:
        """Up to `limit` events of these slots behind a place, in the order in which they came: that of their slot."""
        ...

    async def slot_size(self) -> SlotSize:
        """How much there is. Reads everything: for people who ask."""
        ...

    async def import_events(
        self, events: Sequence[StoredEvent], expected: Mapping[int, History], source: LogIdentity | None = None
    ) -> bool:
        """Import slots' events, behind what is expected to have arrived of each, from the store of `source`: see
        `check_fence`."""
        ...

    async def close_slots(
        self, closing: Mapping[int, int], to: str, seen: int, histories: Mapping[int, History]
    ) -> Mapping[int, SlotState] | None:
        """Close slots for the shard `to`, each into the epoch given, if all are open in the epoch before.

        Appends a SLOT_CLOSED for each. `histories` are those of the events up to position `seen` of this log.
        """
        ...

    async def open_slots(self, opening: Mapping[int, Opening], source: LogIdentity | None = None) -> bool:
        """Open slots whose whole history has arrived, unless one is known in that epoch or a later one.

        Appends a SLOT_OPENED for each. Raises as import_events.
        """
        ...


@runtime_checkable
class ReadsOpenSlots(Protocol):
    """A SlotStore that says in one answer what is in a stream, and that its slot is open: where each question costs."""

    def read_open(
        self, stream: str, slot: int, *, after_version: int = 0, to_version: int | None = None
    ) -> AsyncIterator[Sequence[Change]]:
        """See EventStore.read_changes. Raises SlotMoved, having given nothing, where the slot is not open here."""
        ...


@runtime_checkable
class KeepsSlots(Protocol):
    """A SlotStore that slots can be moved to, and away from only at times."""

    async def check_leaving(self) -> None:
        """Raise ConfigurationError, saying why, where no slot can leave; a slot that was closed already can."""
        ...


class Store(EventStore, EventLog, SnapshotStore, SlotStore, Protocol):
    """A store that holds its own log, snapshots and slots: what `open_store` gives."""


class Past(Protocol):
    """What was trimmed from a store, as its archive has it."""

    async def read(self, after: int, limit: int, to: int) -> list[StoredEvent]:
        """See EventLog.read; nothing behind the commit that ends at `to` or later will be asked for. Raises
        ArchiveError."""
        ...

    async def read_stream(self, stream: str, after_version: int, to_version: int, to: int) -> list[StoredEvent]:
        """The events of a stream with `after_version < version <= to_version`, in order, all at positions up to `to`.

        Raises ArchiveError, also where the archive ends before it could have them all.
        """
        ...


class LogReader(Protocol):
    """A log as a follower reads it, whether from the store itself, a JetStream stream or an archive.

    `incarnation` is None until it is known. A reader is used by one task at a time.
    """

    log: str

    @property
    def incarnation(self) -> str | None:
        """Of the log as it is now."""
        ...

    @property
    def ancestry(self) -> Sequence[Ancestor]:
        """Earlier incarnations of the log: see LogIdentity."""
        ...

    async def read(self, after: int, limit: int, timeout_s: float) -> list[StoredEvent]:
        """The events at positions after + 1, after + 2, …, without a gap, whole commits only, about `limit` of them.

        Returns [] when none came within `timeout_s`. May be asked for any `after`, also an earlier one: it then starts
        anew from there. Raises a RelayError (HistoryGone, ForeignMessage, …) for what a person must mend; waits out
        everything that passes by itself, such as a broker that is away.
        """
        ...

    async def head(self) -> int | None:
        """The last position the source knows of, or None if it cannot be told now."""
        ...

    async def close(self) -> None:
        """Let go of everything held for this reader."""
        ...


@runtime_checkable
class LogSource(Protocol):
    """Where the logs of one service are found."""

    service: str

    async def readers(self) -> Sequence[LogReader]:
        """One new reader per log (shard) of the service; waits until a log is known. The caller closes them."""
        ...


class BackupTarget(Protocol):
    """A place that keeps archived segments: files by name, each written whole or not at all.

    A name is a path of plain parts with '/' between them. All methods raise TargetUnavailable, naming the place, where
    it does not answer or refuses.
    """

    url: str
    """For people: without a secret."""

    async def put(self, name: str, content: bytes, *, replace: bool = False) -> bool:
        """Keep the content under a name. False, with nothing changed, if there is something else and not `replace`.

        When it returns True, the content was read back and is the same; it survives what the place survives. Whoever
        reads meanwhile, and whoever is killed, sees all of it or nothing: with `replace` the old or the new content.
        Raises TargetUnavailable, having taken the content away again, where what is read back is not what was written.
        """
        ...

    async def get(self, name: str, *, most: int | None = None) -> bytes | None:
        """The content under a name, with `most` its first bytes; None if there is none."""
        ...

    async def list(self, prefix: str) -> Sequence[str]:
        """The names that begin with a prefix, which is empty or ends with '/', sorted."""
        ...

    async def delete(self, name: str) -> None:
        """Take away what is kept under a name. If there is nothing, that is fine."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class StoreRestore(Protocol):
    """A store that is being filled from a backup. Nobody can open it before it is complete.

    Begun by `evsync.opening.restore_store`, which clears away what another restore has left unfinished.
    """

    async def load(self, events: Sequence[StoredEvent]) -> None:
        """Store events as they are, ids, times and incarnations included, behind those that were loaded before.

        Their positions go on without a gap from 1. Raises StoreError, EncodingError, EventTooLarge.
        """
        ...

    async def import_events(self, arrived: Sequence[Arrived]) -> None:
        """Store imports, each in its place, in any order. Their numbers are 1, 2, 3, … when all are there.

        Raises StoreError, EncodingError, EventTooLarge.
        """
        ...

    async def complete(
        self, identity: LogIdentity, checkpoints: Mapping[str, Sequence[Checkpoint]], slots: SlotRows | None = None
    ) -> None:
        """Store the checkpoints by follower, and make of it a store that can be opened: in one step.

        `identity` is that of the restored log. A store where checkpoints are events gets them as its last ones. With
        `slots` that is what the store says of them; else all are open, as where none has ever moved.
        """
        ...

    async def close(self) -> None:
        """Release everything. What is not complete is taken away, as far as that can be done now."""
        ...
