"""Trimming a store from the front: what may leave it, and that it is archived.

An aggregate is made of its events, or of its snapshot and those behind it. So of a stream only such events leave that
its snapshot holds, or that belong to an aggregate which was discarded; and never its last one. Whoever needs the others
(an earlier version, a history, an aggregate whose class has changed since the snapshot) reads the archive.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evsync.aggregates.replay import Fold
from evsync.aggregates.snapshots import Snapshots
from evsync.archive.copies import Copy
from evsync.archive.history import read_copies
from evsync.archive.verification import verify_copy
from evsync.codec.events import EventCodec
from evsync.errors import ArchiveDamaged, ArchiveError, ArchiveIncomplete, CodecError, ConfigurationError
from evsync.ports import BackupTarget, Progress, Store, unheard
from evsync.records import change_of
from evsync.stores.trimmed import Trimmed

READ_EVENTS = 2_000
STREAMS = 200


@dataclass(slots=True)
class TrimReport:
    """What left a store."""

    log: str
    position: int
    """Up to where the log is trimmed now."""
    dropped: int = 0
    """Events that left."""
    streams: int = 0
    """Whose."""
    kept: int = 0
    """Streams with older events that stay whole: they have no snapshot that fits, or none so far."""


async def verified_copies(
    store: Store, targets: Sequence[BackupTarget], copies: int, position: int, progress: Callable[[str], Progress]
) -> list[Copy]:
    """The copies that hold the log up to a position, read from end to end.

    Raises ArchiveIncomplete where they are fewer than `copies`.
    """
    whole: list[Copy] = []
    found: list[str] = []
    for place in targets:
        copy = Copy(place, store.identity.name, store.identity.incarnation)
        try:
            report = await verify_copy(copy, progress(f"Reading {place.url}"))
        except ArchiveError as e:
            found.append(str(e))
            continue
        found += [str(problem) for problem in report.problems]
        if report.last >= position:
            whole.append(copy)
    if len(whole) < copies:
        raise ArchiveIncomplete(
            f"positions up to {position} are whole in {len(whole)} places "
            f"({', '.join(c.target.url for c in whole) or 'none'}), and the policy needs {copies}; nothing was "
            f"trimmed. {' '.join(['Make a backup, or mend the others.', *found])}"
        )
    return whole


async def trim_store(
    store: Store,
    copies: Sequence[Copy],
    position: int,
    codec: EventCodec,
    snapshots: Snapshots | None,
    tell: Progress = unheard,
) -> TrimReport:
    """Take out of a store what its aggregates do not need, up to a position; `copies` hold it, which is looked at.

    The service may run meanwhile. Broken off anywhere, everything can be read as before; begun again, it goes on.
    Raises ConfigurationError for a store that cannot be trimmed and a position that is no commit's end, ArchiveDamaged
    for a copy that holds another history than the store, StoreError.
    """
    if not isinstance(store, Trimmed):
        raise ConfigurationError(
            f"a {type(store).__name__} cannot be trimmed in this version: only stores in SQLite and PostgreSQL can. "
            "Nothing was done"
        )
    await check_end(store, position)
    for number, copy in enumerate(copies):
        await _compare(store, copy, position)
        tell(number + 1, len(copies))
    report = TrimReport(store.identity.name, max(position, await store.trimmed()))
    await store.begin_trim(position)
    after = ""
    while streams := await store.old_streams(position, after, STREAMS):
        leaving: dict[str, int] = {}
        for stream, last in streams:
            version = await _superfluous(store, codec, snapshots, stream, last)
            if version:
                leaving[stream] = version
            else:
                report.kept += 1
        report.dropped += await store.drop(leaving)
        report.streams += len(leaving)
        after = streams[-1][0]
    return report


async def check_end(store: Store, position: int) -> None:
    """Raise ConfigurationError unless a commit of the log ends at the position."""
    if position > (head := await store.head()):
        raise ConfigurationError(
            f"log {store.identity.name!r} ends at position {head}, before {position}; nothing was trimmed"
        )
    events = await store.read(position - 1, 1)
    if events[0].remaining:
        raise ConfigurationError(
            f"position {position} is within a commit of log {store.identity.name!r}, which ends at "
            f"{events[-1].position}: trim to there, or to before it. Nothing was trimmed"
        )


async def _compare(store: Store, copy: Copy, position: int) -> None:
    """Raise ArchiveDamaged unless a copy holds what the store does, up to a position. What leaves is not to be had
    again: a store that was put back to an older copy has another history under the same name."""
    assert isinstance(store, Trimmed)
    after = await store.trimmed()
    async for segment, archived in read_copies([copy], after):
        compared = 0
        while compared < len(archived) and after < position:
            events = await store.read(after, min(READ_EVENTS, len(archived) - compared))
            if not events or events != archived[compared : compared + len(events)]:
                what = f"it holds another event behind position {after} than the store"
                raise ArchiveDamaged(copy.target.url, segment.header.name, what)
            compared, after = compared + len(events), events[-1].position
        if after >= position:
            return


async def _superfluous(store: Store, codec: EventCodec, snapshots: Snapshots | None, stream: str, last: int) -> int:
    """The version up to which a stream's events are not needed for its aggregate; 0 if they all are."""
    if snapshots is not None and (kept := await snapshots.load(stream)) is not None:
        return kept.snapshot.version
    [end] = await store.read_stream(stream, after_version=last - 1, to_version=last)
    with contextlib.suppress(CodecError):  # what cannot be read stays
        # Only an event with a way of its own can discard its aggregate.
        if codec.coding_of(end.type).event.function is None:
            folding = Fold(codec, stream)
            folding.add(map(change_of, await store.read_stream(stream, to_version=last)))
            if folding.aggregate is None:
                return last
    return 0
