"""The library's recorders over evsync's stores."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from itertools import groupby
from typing import Any
from uuid import UUID

from eventsourcing.persistence import (
    AggregateRecorder,
    ApplicationRecorder,
    IntegrityError,
    Notification,
    OperationalError,
    ProcessRecorder,
    StoredEvent,
    Subscription,
    Tracking,
    TrackingRecorder,
)

from evsync.control import is_control
from evsync.domain import stream_of
from evsync.errors import EvsyncError
from evsync.interop.states import decode, encode
from evsync.interop.threads import SharedStore, translated
from evsync.records import Append, Checkpoint, Commit, new_command
from evsync.records import StoredEvent as Record
from evsync.sharding.slots import slot_of

TRACKING = "es.tracking"
"""Name under which positions in other applications' logs are kept; no reaction can have it."""
READ_EVENTS = 500
"""How many events a subscription reads at a time."""
WAIT_S = 60.0
"""How long a subscription asks a store to wait: it waits again, so this bounds nothing but the life of a timer."""


class EvsyncRecorder:
    """What all of these have: a store, shared with the factory's other recorders."""

    def __init__(self, store: SharedStore) -> None:
        self.store = store


class EvsyncAggregateRecorder(EvsyncRecorder, AggregateRecorder):
    """Events of aggregates (or snapshots of them), each a (originator id, version) that exists once."""

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        """Store the events, all or none, durably. Raises IntegrityError where a version is taken, OperationalError."""
        self._insert(stored_events)
        return None

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        """The aggregate's events with `gt < version <= lte`, by version."""
        records = self.store.read_stream(str(originator_id), -1 if gt is None else gt, lte)
        if desc:
            records.reverse()
        return [_event_of(r) for r in records[:limit]]

    def _insert(self, events: Sequence[StoredEvent]) -> list[int]:
        """Store the events. Returns their positions."""
        if not events:
            return []
        return _positions(self.store.commit(Commit(new_command(), self._appends(events))), events)

    def _appends(self, events: Sequence[StoredEvent]) -> list[Append]:
        return [self._append(s, list(part)) for s, part in groupby(events, lambda e: stream_of(e.originator_id))]

    def _append(self, stream: str, events: Sequence[StoredEvent]) -> Append:
        identity = self.store.store.identity
        versions = [e.originator_version for e in events]
        new = [encode(identity.service, e) for e in events]
        return Append(stream, slot_of(stream, identity.slots), versions[0] - 1, new, versions)


class EvsyncApplicationRecorder(EvsyncAggregateRecorder, ApplicationRecorder):
    """The same, and the log of all events: a notification's id is the event's position."""

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        """Store the events as EvsyncAggregateRecorder does. Returns their positions."""
        return self._insert(stored_events)

    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> Sequence[Notification]:
        """Up to `limit` events from position `start` to `stop`, both included, of these topics (none given: of all)."""
        after = max((start or 0) - (start is not None and inclusive_of_start), 0)
        found: list[Notification] = []
        while len(found) < limit and (stop is None or after < stop):
            records = self.store.read(after, limit if not topics else READ_EVENTS)
            if not records:
                break
            after = records[-1].position
            found += _notifications(records, topics, stop)
        return found[:limit]

    def max_notification_id(self) -> int | None:
        """The position of the last event; None if there is none."""
        return self.store.head() or None

    def subscribe(self, gt: int | None = None, topics: Sequence[str] = ()) -> Subscription[ApplicationRecorder]:
        """The events after position `gt`, those to come included."""
        return EvsyncSubscription(self, gt, topics)


class EvsyncTrackingRecorder(EvsyncRecorder, TrackingRecorder):
    """How far this application has come in the logs of others: a checkpoint for each."""

    def __init__(self, store: SharedStore) -> None:
        super().__init__(store)
        self._known: dict[str, int] = {}

    def insert_tracking(self, tracking: Tracking) -> None:
        """Store the position. Raises IntegrityError unless it is beyond the stored one."""
        self._commit((), tracking)

    def max_tracking_id(self, application_name: str) -> int | None:
        """The stored position in that application's log; None if there is none."""
        checkpoints = self.store.checkpoints(TRACKING)
        return next((c.position for c in checkpoints if c.log == application_name), None)

    def _commit(self, appends: Sequence[Append], tracking: Tracking) -> int:
        """Store the events and the position, both or neither. Returns the position of the last event."""
        name, position = tracking.application_name, tracking.notification_id
        # What this object stored last is where the application is, unless another process works for it too.
        stored = self._known.get(name) or self.max_tracking_id(name)
        while True:
            if stored is not None and stored >= position:
                raise IntegrityError(f"position {position} of {name!r} comes again, where {stored} was reached")
            commit = Commit(new_command(), appends, TRACKING, Checkpoint(name, 0, "", position), stored or 0)
            try:
                last = self.store.commit(commit)
            except IntegrityError:
                found = self.max_tracking_id(name)
                if found == stored:
                    raise  # it is the events that are there already
                stored = found
            else:
                self._known[name] = position
                return last


class EvsyncProcessRecorder(EvsyncTrackingRecorder, EvsyncApplicationRecorder, ProcessRecorder):
    """Events, and in the same commit the position in another application's log that they answer."""

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        """Store the events, and the `tracking` if one is given: all or nothing. Returns their positions."""
        tracking: Tracking | None = kwargs.get("tracking")
        if tracking is None:
            return self._insert(stored_events)
        last = self._commit(self._appends(stored_events), tracking)
        return _positions(last - self.store.store.capabilities.checkpoints_are_events, stored_events)


class EvsyncSubscription(Subscription[EvsyncApplicationRecorder]):
    """An iterator over the events of a log, which waits for those to come. Woken by the store, without a thread.

    Ends when it is stopped; raises OperationalError when the application is closed, or the store gone, before that.
    """

    def __init__(self, recorder: EvsyncApplicationRecorder, gt: int | None, topics: Sequence[str]) -> None:
        super().__init__(recorder, gt, topics)
        self._position = max(gt or 0, 0)
        self._ready: deque[Notification] = deque()
        self._reading: Future[list[Record]] | None = None
        self._lock = threading.Lock()

    def stop(self) -> None:
        """End the iteration, also of a thread that waits in it."""
        with self._lock:
            super().stop()
            if self._reading is not None:
                self._reading.cancel()

    def __next__(self) -> Notification:
        while not self._has_been_stopped:
            if self._ready:
                return self._ready.popleft()
            records = self._read()
            if records:
                self._position = records[-1].position
                self._ready.extend(_notifications(records, self._topics))
        raise StopIteration

    def _read(self) -> list[Record]:
        store = self._recorder.store
        with self._lock:
            if self._has_been_stopped:
                return []
            self._reading = store.thread.submit(_next_events(store, self._position))
        try:
            return self._reading.result()
        except CancelledError as e:
            if self._has_been_stopped:
                return []
            raise OperationalError("the application was closed under a subscription") from e
        except EvsyncError as e:
            raise translated(e) from e


async def _next_events(store: SharedStore, after: int) -> list[Record]:
    while not (records := await store.store.read(after, READ_EVENTS)):
        await store.store.wait(after, WAIT_S)
    return records


def _notifications(records: Sequence[Record], topics: Sequence[str], stop: int | None = None) -> Iterator[Notification]:
    for record in records:
        if stop is not None and record.position > stop:
            return
        if is_control(record.type):
            continue
        e = _event_of(record)
        if not topics or e.topic in topics:
            yield Notification(e.originator_id, e.originator_version, e.topic, e.state, record.position)


def _event_of(record: Record) -> StoredEvent:
    try:
        return decode(record)
    except EvsyncError as e:
        raise translated(e) from e


def _positions(last: int, events: Sequence[StoredEvent]) -> list[int]:
    return list(range(last - len(events) + 1, last + 1))
