"""Restores and drills: an archive on one side, a store of some kind on the other."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from evsync.aggregates.repository import Repository
from evsync.archive.copies import Archive
from evsync.archive.marks import MarkedLog
from evsync.archive.rescue import FencedStore
from evsync.archive.restore import Part, RestoreReport, Until, restore_beside, restore_shards
from evsync.codec.events import EventCodec
from evsync.control import OWN_STREAMS, is_control
from evsync.errors import ArchiveIncomplete, ConfigurationError, NotFound, TargetUnavailable
from evsync.homes import ShardedStores
from evsync.jetstream import streams
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.consumer import JetStreamReader
from evsync.jetstream.store.restore import NO_SHARDS
from evsync.jetstream.stream_settings import stream_name
from evsync.opening import restore_store
from evsync.ports import BackupTarget, EventLog, Progress, Store, unheard
from evsync.records import LogIdentity
from evsync.sharding.handover import bring_about, placement_of
from evsync.shards import open_home, open_shards
from evsync.stores.trimmed import Trimmed
from evsync.urls import is_on_nats

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
    """Restore an archived log, its service's only one, into a new store at a URL: see `restore_logs`."""
    shard = archive.identity.shard
    parts = {shard: (archive, marked)}
    return (await restore_logs(parts, {shard: to}, until, connection=connection, tell=tell))[shard]


async def restore_logs(
    logs: Mapping[str, tuple[Archive, MarkedLog | None]],
    to: Mapping[str, str],
    until: Until,
    *,
    connection: Connection | None = None,
    tell: Progress = unheard,
) -> dict[str, RestoreReport]:
    """Restore the archived logs of a service, by shard, into new stores at URLs.

    With marks of the logs, to these. With a connection to NATS, what an archive does not have yet comes from the log's
    stream there. Slots that were on their way between two shards arrive. Raises ArchiveError, StoreError,
    ConfigurationError where there is a store already, RelayError for a stream that cannot go on where the archive ends.
    """
    if len(logs) > 1 and any(is_on_nats(url) for url in to.values()):
        raise ConfigurationError(NO_SHARDS)
    async with AsyncExitStack() as stack:
        parts = {}
        for shard, (archive, marked) in logs.items():
            tailed = connection if archive.copies else None
            parts[shard] = await _part(archive, marked, to[shard], tailed, stack)
        reports = await restore_shards(parts, until=until, tell=tell)
    if len(to) > 1:
        await _finish_moves(next(iter(logs.values()))[0].identity.service, to)
    return reports


async def restore_shard(
    shard: str,
    archive: Archive,
    marked: MarkedLog | None,
    to: str,
    others: Mapping[str, str],
    until: Until,
    *,
    connection: Connection | None = None,
    tell: Progress = unheard,
) -> RestoreReport:
    """Restore the archived log of one shard into a new store at a URL, beside the others at theirs, which live on.

    See `restore_beside`, and `restore_logs`. Raises ConfigurationError too for stores that cannot take part in it.
    """
    if any(is_on_nats(url) for url in (to, *others.values())):
        raise ConfigurationError(NO_SHARDS)
    identity = archive.identity
    async with AsyncExitStack() as stack:
        stores = await open_shards(others, identity.service, stack, create=False)
        living = {name: store for name, store in stores.items() if isinstance(store, FencedStore)}
        for name, store in stores.items():
            trimmed = await store.trimmed() if isinstance(store, Trimmed) else 0
            lasts = name in living and store.capabilities.durable
            if not lasts or trimmed or store.identity.slots != identity.slots:
                raise ConfigurationError(
                    f"shard {shard!r} cannot be restored beside shard {name!r}, whose store is trimmed, or of a kind "
                    "or a number of slots that does not fit. Nothing was restored. Restore all shards together"
                )
        part = await _part(archive, marked, to, connection, stack)
        report = await restore_beside(part, living, until=until, tell=tell)
    await _finish_moves(identity.service, {**others, shard: to})
    return report


async def _part(
    archive: Archive, marked: MarkedLog | None, to: str, connection: Connection | None, stack: AsyncExitStack
) -> Part:
    """What is restored of one log, into which store, with the log's stream where there is a connection."""
    identity, tail = archive.identity, None
    if connection is not None:
        tail = await stream_of(connection, identity)
        stack.push_async_callback(tail.close)
    into = await restore_store(to, service=identity.service, shard=identity.shard, slots=identity.slots)
    stack.push_async_callback(into.close)
    return Part(archive, into, marked, tail)


async def _finish_moves(service: str, urls: Mapping[str, str]) -> None:
    """Let slots arrive that were on their way between two shards."""
    async with opened_shards(service, urls) as (stores, home):
        await bring_about(stores, placement_of(await home.look()))


@asynccontextmanager
async def opened_shards(
    service: str, urls: Mapping[str, str]
) -> AsyncIterator[tuple[Mapping[str, Store], ShardedStores]]:
    """The shards' stores at these URLs, which are there, and where their slots are; for the length of a block."""
    async with AsyncExitStack() as stack:
        stores = await open_shards(urls, service, stack, create=False)
        yield stores, await open_home(stores, None, stack, place=False)


async def archives_of(
    targets: Sequence[BackupTarget], service: str, incarnations: Mapping[str, str | None]
) -> dict[str, Archive]:
    """The archives of a service's shards: of the incarnations named, or else the newest.

    Of several shards one may have none. Raises as Archive.find.
    """
    found: dict[str, Archive] = {}
    absent: list[ArchiveIncomplete] = []
    for shard, incarnation in incarnations.items():
        try:
            found[shard] = await Archive.find(targets, f"{service}.{shard}", incarnation)
        except ArchiveIncomplete as e:
            absent.append(e)
    if not found:
        raise absent[0]
    slots = next(iter(found.values())).identity.slots
    return {
        shard: found.get(shard) or Archive(LogIdentity(service, shard, incarnation or "", slots), ())
        for shard, incarnation in incarnations.items()
    }


async def stream_of(connection: Connection, identity: LogIdentity) -> JetStreamReader:
    """A reader of the stream that mirrors this incarnation of a log. Raises ArchiveIncomplete where there is none."""
    name = stream_name(identity)
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
    stores: Mapping[str, Store], targets: Sequence[BackupTarget], codec: EventCodec, tell: Progress = unheard
) -> list[DrillReport]:
    """Restore the logs of a service's shards into scratch stores, rebuild every aggregate, compare with the live logs.

    What was measured is kept. Reads only, but for the records of the drill on every target that can be reached. Raises
    ArchiveError, StoreError.
    """
    service = next(iter(stores.values())).identity.service
    archives = await archives_of(targets, service, {shard: s.identity.incarnation for shard, s in stores.items()})
    now, heads = time.time(), {shard: await store.head() for shard, store in stores.items()}
    reports = []
    with tempfile.TemporaryDirectory(prefix="evsync-drill-") as directory:
        urls = {shard: f"sqlite:///{Path(directory) / shard}.db" for shard in stores}
        parts: dict[str, tuple[Archive, MarkedLog | None]] = {shard: (archives[shard], None) for shard in stores}
        restored = await restore_logs(parts, urls, Until(), tell=tell)
        async with opened_shards(service, urls) as (scratch, home):
            repository = Repository(codec, home, lambda _append: None)
            replayed: set[str] = set()
            for shard, store in stores.items():
                measured = _Measured(store, heads[shard], scratch[shard], restored[shard], now)
                reports.append(await measured.report(repository, codec, replayed))
    for report, archive in zip(reports, archives.values(), strict=True):
        content = json.dumps(asdict(report), indent=1).encode()
        for copy in archive.copies:
            with contextlib.suppress(TargetUnavailable):
                await copy.target.put(f"{drills_of(report.log)}{int(now * 1000):015d}.json", content, replace=True)
    return reports


class _Measured(NamedTuple):
    """A live log, and what was restored of it."""

    live: Store
    head: int
    scratch: Store
    restored: RestoreReport
    now: float

    async def report(self, repository: Repository, codec: EventCodec, replayed: set[str]) -> DrillReport:
        """Rebuild the aggregates that are not in `replayed` yet, and compare the two logs."""
        end, began, before = self.restored.position, time.monotonic(), len(replayed)
        await _replay(self.scratch, repository, codec, replayed)
        replay_s = time.monotonic() - began
        expected, found = await digest_of(self.live, end), await digest_of(self.scratch, end)
        problem = (
            f"the restored log and the live one differ within the first {end} positions: their digests are {found} and "
            f"{expected}"
        )
        return DrillReport(
            log=self.live.identity.name,
            incarnation=self.live.identity.incarnation,
            at=datetime.fromtimestamp(self.now, UTC).isoformat(),
            position=end,
            head=self.head,
            events_behind=max(self.head - end, 0),
            seconds_behind=round(max(self.now - self.restored.latest_us / 1_000_000, 0.0), 3) if end else 0.0,
            restore_seconds=round(self.restored.seconds, 3),
            replay_seconds=round(replay_s, 3),
            aggregates=len(replayed) - before,
            digest=found,
            ok=expected == found,
            problem=None if expected == found else problem,
            worked_around=self.restored.worked_around,
        )


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


async def _replay(store: Store, repository: Repository, codec: EventCodec, replayed: set[str]) -> None:
    """Rebuild every aggregate from its events, but those replayed already. Raises what one raises that cannot be."""
    position = 0
    # A log that others fill has no aggregates: nothing here can read its events.
    while codec.aggregates and (events := await store.read(position, READ_EVENTS)):
        position = events[-1].position
        for event in events:
            if event.stream in replayed or is_control(event.type) or event.stream.startswith(OWN_STREAMS):
                continue
            replayed.add(event.stream)
            with contextlib.suppress(NotFound):  # discarded by one of its own events
                await repository.get(codec.coding_of(event.type).event.aggregate, event.stream)
