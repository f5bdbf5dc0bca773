"""Reading a stream that is the store: aggregates and the log by direct gets, the last word by the leader."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from operator import attrgetter
from typing import Any, NamedTuple

from evsync.errors import BrokerUnavailable, DecodingError, ForeignMessage, StreamHole
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.frames import parse_headers
from evsync.jetstream.client.gets import DirectGets, Page, Stored, leader_get
from evsync.jetstream.messages import MessageFormat
from evsync.records import LogIdentity, StoredEvent
from evsync.sharding.slots import slot_of

TOP_HEADER = "evsync-top"
"""The greatest version in its stream, on a message that is not that one itself: a gap was filled."""

PAGE = 1_024
"""Subjects that a server looks up in one request."""
MOST_BYTES = 8 << 20
"""What a server is asked to send in one answer; one message at least."""
_FILTERS_BYTES = 256 << 10
_LAGGING_ATTEMPTS = 40
_SILENCE_S = 2.0


class Top(NamedTuple):
    """The end of one aggregate's stream."""

    version: int
    """The greatest version in it; 0 for none."""
    sequence: int
    """Of the last message in it; 0 for none."""


class Seen(NamedTuple):
    """A message that this process knows to be in the stream: what it reads must not be older."""

    subject: str
    sequence: int


class StreamReads:
    """What a store's stream is asked. Raises BrokerError for what the broker does not answer or refuses."""

    def __init__(self, conn: Connection, stream: str, identity: LogIdentity, form: MessageFormat) -> None:
        self._conn, self._stream, self._identity, self._form = conn, stream, identity, form
        self.round_trips = 0
        """Requests so far, for measuring."""
        self._gets = DirectGets(conn, _SILENCE_S)

    def close(self) -> None:
        """Listen no more."""
        self._gets.close()

    def subject_of(self, event: StoredEvent) -> str:
        """The subject that an event of this stream has."""
        return self._form.encode_unplaced(event)[0]

    # ---- the leader

    async def last(self, stream: str) -> tuple[StoredEvent, Top] | None:
        """The last event of an aggregate's stream, as the leader knows it, and where the stream ends."""
        found = await self._leader_get(self._form.stream_filter(stream, self._slot(stream)))
        if found is None:
            return None
        event, top = self._event(found), parse_headers(found.headers).get(TOP_HEADER, "")
        return event, Top(max(event.version, int(top) if top.isdigit() else 0), event.position)

    async def head(self) -> int:
        """The sequence of the last message, as the leader knows it. Raises BrokerRefused if the stream is gone."""
        answer = await self._conn.api(f"STREAM.INFO.{self._stream}", timeout_s=_SILENCE_S)
        return int(answer["state"]["last_seq"])

    async def at(self, stream: str, version: int) -> StoredEvent | None:
        """The event of one version of an aggregate's stream, as the leader knows it."""
        found = await self._leader_get(self._form.stream_filter(stream, self._slot(stream), version))
        return self._event(found) if found is not None else None

    async def _leader_get(self, subject: str) -> Stored | None:
        self.round_trips += 1
        return await leader_get(self._conn, self._stream, {"last_by_subj": subject}, timeout_s=_SILENCE_S)

    # ---- direct gets, which a replica that lags behind may answer

    async def log(self, after: int, limit: int) -> tuple[list[StoredEvent], bool]:
        """Events from position after + 1 on, and whether there were more. Raises StreamHole for a missing one."""
        page = await self._direct_get({"seq": after + 1, "batch": max(limit, 1), "max_bytes": MOST_BYTES})
        events = self._events(page)
        for due, event in enumerate(events, after + 1):
            if event.position != due:
                raise StreamHole(
                    f"stream {self._stream}, the event store of {self._identity.name}, has no message {due}, and has "
                    f"{event.position}: events are missing, deleted by a person or lost with the server's files. "
                    "Restore the store from a backup.",
                    stream=self._stream,
                    position=due,
                )
        return events, page.pending > 0

    async def stream(self, stream: str, after: int, to: int | None, seen: Seen | None) -> list[StoredEvent]:
        """The events of an aggregate's stream with after < version <= to, in order; not older than `seen`."""
        events: list[StoredEvent] = []
        if to is not None and to - after < PAGE:
            events = await self._versions(stream, after, to, seen)
        elif (
            after > 0
            or (found := await self._all([self._form.stream_filter(stream, self._slot(stream))], seen)) is None
        ):
            end = await self.last(stream)
            if end is not None:
                last, top = end
                seen = seen and Seen(self.subject_of(last), top.sequence)
                events = await self._versions(stream, after, top.version if to is None else min(to, top.version), seen)
        else:
            events = found
        mine = (e for e in events if e.stream == stream and after < e.version and (to is None or e.version <= to))
        return sorted(mine, key=attrgetter("version"))

    async def _versions(self, stream: str, after: int, last: int, seen: Seen | None) -> list[StoredEvent]:
        """The events of these versions, asked for by their subjects, some hundred at a time."""
        slot = self._slot(stream)
        step = max(min(PAGE - 1, _FILTERS_BYTES // (len(self._form.stream_filter(stream, slot)) + 24)), 1)
        events: list[StoredEvent] = []
        for start in range(max(after, -1) + 1, last + 1, step):
            versions = range(start, min(start + step, last + 1))
            events += await self._all([self._form.stream_filter(stream, slot, v) for v in versions], seen) or ()
        return events

    async def _all(self, filters: list[str], seen: Seen | None) -> list[StoredEvent] | None:
        """The last event on each of these subjects, however many answers it takes; None if the subjects are too many.

        With `seen`, that message is asked for too: a replica that does not have it lags behind, and another is asked.
        """
        wanted = filters if seen is None else [*filters, seen.subject]
        ask = {"multi_last": wanted, "batch": PAGE, "max_bytes": MOST_BYTES}
        for attempt in range(_LAGGING_ATTEMPTS):
            page = await self._direct_get(ask)
            if page.too_many:
                return None
            if seen is None or page.up_to >= seen.sequence:
                break
            await asyncio.sleep(0.005 * attempt)
        else:
            raise BrokerUnavailable(f"the replica of stream {self._stream} that answers is far behind its leader")
        events, up_to = self._events(page), page.up_to
        while page.pending and page.messages:  # the server ends an answer at a number of bytes
            page = await self._direct_get(ask | {"seq": page.messages[-1].sequence + 1, "up_to_seq": up_to})
            events += self._events(page)
        return events

    async def _direct_get(self, request: Mapping[str, Any]) -> Page:
        self.round_trips += 1
        return await self._gets.get(self._stream, request)

    def _events(self, page: Page) -> list[StoredEvent]:
        return [self._event(message) for message in page.messages]

    def _event(self, message: Stored) -> StoredEvent:
        sequence, subject, headers, body = message
        try:
            event = self._form.decode(subject, headers, body, sequence)
        except DecodingError as e:
            raise self._foreign(sequence, str(e)) from e
        if event.position != sequence or event.incarnation != self._identity.incarnation_at(sequence):
            raise self._foreign(sequence, f"it is of incarnation {event.incarnation}, position {event.position}")
        return event

    def _foreign(self, sequence: int, what: str) -> ForeignMessage:
        return ForeignMessage(
            f"message {sequence} of stream {self._stream} was not written by the store of {self._identity.name}: "
            f"{what}. Something else publishes to its subjects: take that permission away, and restore the store "
            "from a backup.",
            stream=self._stream,
            position=sequence,
        )

    def _slot(self, stream: str) -> int:
        return slot_of(stream, self._identity.slots)
