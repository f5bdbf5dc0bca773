"""Copying the events of an eventsourcing application into an evsync store."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from hashlib import blake2b

from eventsourcing.persistence import Notification
from eventsourcing.persistence import StoredEvent as LibraryEvent

from evsync.domain import stream_of
from evsync.errors import ConfigurationError, Conflict
from evsync.interop.states import decode, encode, is_whole
from evsync.interop.table import StoredEventsTable
from evsync.ports import Progress, Store
from evsync.records import Append, Commit, LogIdentity
from evsync.sharding.slots import slot_of

BATCH = 500


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import found to be true once it was done."""

    log: str
    events: int
    """In the table, and in the log: the same ones, in the same order."""
    copied: int
    """Of these, in this run."""
    digest: str
    """BLAKE2b over ids, versions, topics and states: of the table, and of the log."""
    renumbered: int
    """How many events have another position than they had a notification id (which may have gaps)."""
    whole: int
    """How many states are carried whole, because they are no JSON of the library's form: consumers cannot read them."""


async def copy_events(table: StoredEventsTable, store: Store, tell: Progress) -> int:
    """Append to the log what it does not hold yet of the table. Returns how many events these were.

    May be broken off at any moment and begun again: it goes on where the log ends. Nothing else may write to either
    meanwhile. Raises ConfigurationError for a log that holds anything else, StoreError.
    """
    before = await store.head()
    last = await _last_copied(table, store, before)
    total, done = await asyncio.to_thread(table.count), before
    tell(done, total)
    while events := await asyncio.to_thread(table.read, last, BATCH):
        outcomes = await store.append([_commit(store.identity, e) for e in events])
        for event, outcome in zip(events, outcomes, strict=True):
            if isinstance(outcome, Conflict):
                raise ConfigurationError(
                    f"event {event.id} (version {event.originator_version} of {event.originator_id}) is in the log "
                    "already: two imports at once, or an application that writes to it?"
                ) from outcome
        last, done = events[-1].id, done + len(events)
        tell(done, max(done, total))
    return done - before


async def compare_events(table: StoredEventsTable, store: Store, copied: int, tell: Progress) -> ImportReport:
    """Read table and log from end to end. Raises ConfigurationError at the first difference; StoreError."""
    digest, position, last, renumbered, whole = blake2b(digest_size=16), 0, -1, 0, 0
    head, total = await store.head(), await asyncio.to_thread(table.count)
    while records := await store.read(position, BATCH):
        originals = await asyncio.to_thread(table.read, last, len(records))
        for record, original in zip(records, originals, strict=False):
            content = _content(original)
            if _content(decode(record)) != content:
                raise ConfigurationError(
                    f"position {record.position} of log {store.identity.name!r} is not event {original.id} of the "
                    "table: the log holds something else. Delete the new store and import again."
                )
            digest.update(content)
            renumbered += original.id != record.position
            whole += is_whole(record)
        position = records[-1].position
        tell(position, max(position, total))
        if len(originals) < len(records):
            break
        last = originals[-1].id
    if not position == head == total:
        raise ConfigurationError(
            f"the table has {total} events and log {store.identity.name!r} {head}: something wrote to one of them "
            "meanwhile. Stop the application, and import again: it goes on where it was."
        )
    return ImportReport(store.identity.name, total, copied, digest.hexdigest(), renumbered, whole)


def _commit(identity: LogIdentity, event: Notification) -> Commit:
    """The event as a commit of its own: what was saved together is not known any more.

    Its id follows from what it is, so that another import of the same table gives the same ids.
    """
    stream, version = stream_of(event.originator_id), event.originator_version
    command = blake2b(f"{identity.service}/{stream}/{version}".encode(), digest_size=14).digest() + b"\0\0"
    new = encode(identity.service, event)
    return Commit(command, [Append(stream, slot_of(stream, identity.slots), version - 1, [new], [version])])


async def _last_copied(table: StoredEventsTable, store: Store, head: int) -> int:
    """The id, in the table, of the last event of the log."""
    if head == 0:
        return -1
    there = await asyncio.to_thread(table.nth, head)
    here = decode((await store.read(head - 1, 1))[0])
    if there is None or _content(there) != _content(here):
        raise ConfigurationError(
            f"log {store.identity.name!r} holds {head} events and is no beginning of a copy of that table: import into "
            "a store of its own"
        )
    return there.id


def _content(event: LibraryEvent) -> bytes:
    parts = (str(event.originator_id).encode(), b"%d" % event.originator_version, event.topic.encode(), event.state)
    return b"".join(b"%d:%b" % (len(part), part) for part in parts)
