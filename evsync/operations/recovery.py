"""Restores and drills: an archive on one side, a store of some kind on the other."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgpack

from evsync.aggregates.repository import Repository
from evsync.archive.marks import MarkedLog
from evsync.archive.restore import Archive, RestoreReport, Until, restore
from evsync.codec.events import EventCodec
from evsync.errors import ArchiveIncomplete, NotFound, TargetUnavailable
from evsync.homes import OneStore
from evsync.jetstream import streams
from evsync.jetstream.connection import Connection
from evsync.jetstream.consumer import JetStreamReader
from evsync.opening import open_store, restore_store
from evsync.ports import BackupTarget, EventLog, Progress, Store, unheard
from evsync.records import OWN_STREAMS, LogIdentity, is_control, to_datetime
from evsync.stores.group_commit import GroupCommit

READ_EVENTS = 2_000


async def restore_log(
    archive: Archive,
    to: str,
    until: Until,
    *,
    marked: MarkedLog | None = None,
    connection: Connection | None = None,
    tell: Progress = unheard,
) -> RestoreReport:
    """Restore an archived log into a new store at a URL.

    With a mark of the log, to that. With a connection to NATS, what the archive does not have yet comes from the log's
    stream there. Raises ArchiveError, StoreError, ConfigurationError where there is a store already, RelayError for a
    stream that cannot go on where the archive ends.
    """
    identity = archive.identity
    tail = await stream_of(connection, identity) if connection is not None else None
    try:
        into = await restore_store(to, service=identity.service, shard=identity.shard, slots=identity.slots)
        try:
            return await restore(archive, into, until=until, marked=marked, tail=tail, tell=tell)
        finally:
            await into.close()
    finally:
        if tail is not None:
            await tail.close()


async def stream_of(connection: Connection, identity: LogIdentity) -> JetStreamReader:
    """A reader of the stream that mirrors this incarnation of a log. Raises ArchiveIncomplete where there is none."""
    name = streams.stream_name(identity)
    state = await streams.info(connection, name)
    if state is None:
        raise ArchiveIncomplete(
            f"there is no stream {name} at {connection.settings.shown} that could have what the archive of log "
            f"{identity.name}, incarnation {identity.incarnation}, has not; restore without --from-stream"
        )
    return JetStreamReader(connection, name, identity.name, identity.incarnation, ancestry=identity.ancestry)


@dataclass(frozen=True, slots=True)
class DrillReport:
    """What a drill measured: how much would be lost now, and how long a restore would take."""

    log: str
    incarnation: str
    at: str
    position: int
    """Up to where the archive restores the log."""
    head: int
    """Of the live log."""
    events_behind: int
    """The measured recovery point: so many events would be lost."""
    seconds_behind: float
    """Between the last event that is restored and the drill: what was saved in that time would be lost."""
    restore_seconds: float
    """The measured recovery time, into an SQLite store of this machine."""
    replay_seconds: float
    aggregates: int
    """How many were rebuilt from their restored events."""
    digest: str
    """BLAKE2b over all fields of all restored events: the live log's, up to the same position."""
    ok: bool
    problem: str | None
    worked_around: list[str]


async def drill(
    store: Store, targets: Sequence[BackupTarget], codec: EventCodec, tell: Progress = unheard
) -> DrillReport:
    """Restore the log into a scratch store, rebuild every aggregate, compare with the live log; keep what was measured.

    Reads only, but for the record of the drill on every target that can be reached. Raises ArchiveError, StoreError.
    """
    identity = store.identity
    archive = await Archive.find(targets, identity.name, identity.incarnation)
    now, head = time.time(), await store.head()
    with tempfile.TemporaryDirectory(prefix="evsync-drill-") as directory:
        url = f"sqlite:///{Path(directory) / 'scratch.db'}"
        restored = await restore_log(archive, url, Until(), tell=tell)
        scratch = await open_store(url, service=identity.service, shard=identity.shard, create=False)
        try:
            began = time.monotonic()
            aggregates = await _replay(scratch, codec)
            replay_s = time.monotonic() - began
            expected, found = await digest_of(store, restored.position), await digest_of(scratch, restored.position)
        finally:
            await scratch.close()
    problem = None
    if expected != found:
        problem = (
            f"the restored log and the live one differ within the first {restored.position} positions: their digests "
            f"are {found} and {expected}"
        )
    report = DrillReport(
        log=identity.name,
        incarnation=identity.incarnation,
        at=datetime.fromtimestamp(now, UTC).isoformat(),
        position=restored.position,
        head=head,
        events_behind=max(head - restored.position, 0),
        seconds_behind=round(max(now - to_datetime(restored.latest_us).timestamp(), 0.0), 3),
        restore_seconds=round(restored.seconds, 3),
        replay_seconds=round(replay_s, 3),
        aggregates=aggregates,
        digest=found,
        ok=problem is None,
        problem=problem,
        worked_around=restored.worked_around,
    )
    content = json.dumps(asdict(report), indent=1).encode()
    for copy in archive.copies:
        with contextlib.suppress(TargetUnavailable):
            await copy.target.put(f"{drills_of(identity.name)}{int(now * 1000):015d}.json", content, replace=True)
    return report


def drills_of(log: str) -> str:
    """Where the records of a log's drills are."""
    return f"{log}/drills/"


async def last_drill(target: BackupTarget, log: str) -> Mapping[str, Any] | None:
    """What the last drill measured, if there was one."""
    for name in reversed(await target.list(drills_of(log))):
        content = await target.get(name)
        try:
            found = json.loads(content or b"")
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return None


async def digest_of(log: EventLog, position: int) -> str:
    """BLAKE2b over all fields of all events of a log up to a position."""
    digest, after = blake2b(digest_size=16), 0
    while after < position:
        events = await log.read(after, min(READ_EVENTS, position - after))
        if not events:
            break
        for event in events:
            if event.position <= position:
                digest.update(msgpack.packb(event))
        after = events[-1].position
    return digest.hexdigest()


async def _replay(store: Store, codec: EventCodec) -> int:
    """Rebuild every aggregate from its events; how many there were. Raises what one raises that cannot be."""
    if not codec.aggregates:  # a log that others fill: nothing here can read its events
        return 0
    commits = GroupCommit(store)
    repository = Repository(codec, OneStore(store, commits), lambda _append: None)
    replayed: set[str] = set()
    position = 0
    try:
        while events := await store.read(position, READ_EVENTS):
            position = events[-1].position
            for event in events:
                if event.stream in replayed or is_control(event.type) or event.stream.startswith(OWN_STREAMS):
                    continue
                replayed.add(event.stream)
                with contextlib.suppress(NotFound):  # discarded by one of its own events
                    await repository.get(codec.coding_of(event.type).event.aggregate, event.stream)
    finally:
        await commits.close()
    return len(replayed)
