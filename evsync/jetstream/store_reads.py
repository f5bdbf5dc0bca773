"""Reading a stream that is the store: aggregates and the log by direct gets, the last word by the leader."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from operator import attrgetter
from typing import Any, NamedTuple

from evsync.errors import BrokerRefused, BrokerUnavailable, DecodingError, ForeignMessage, StreamHole
from evsync.jetstream import streams
from evsync.jetstream.connection import Connection
from evsync.jetstream.frames import status_of
from evsync.jetstream.messages import MessageFormat, headers_of_server, parse_headers
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
_END_OF_BATCH, _NOT_FOUND, _TOO_MANY = 204, 404, 413


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


class _Page(NamedTuple):
    """The answer to one batched direct get."""

    events: list[StoredEvent]
    status: int
    pending: int
    """How many messages were left out."""
    up_to: int
    """The last sequence that the answering replica had."""
    last: int
    """Sequence of the last message in it; 0 for none."""


class StreamReads:
    """What a store's stream is asked. Raises BrokerError for what the broker does not answer or refuses."""

    def __init__(self, conn: Connection, stream: str, identity: LogIdentity, form: MessageFormat) -> None:
        self.round_trips = 0
        """Requests that were answered, for measuring."""
        self._conn, self._stream, self._identity, self._form = conn, stream, identity, form
        self._collecting: dict[bytes, _Collector] = {}
        self._last_token = 0
        self._inbox = conn.inbox()
        self._subscription = conn.subscribe(f"{self._inbox}.*", self._received)

    def close(self) -> None:
        """Listen no more."""
        self._subscription.unsubscribe()

    def subject_of(self, event: StoredEvent) -> str:
        """The subject that an event of this stream has."""
        return self._form.encode_unplaced(event)[0]

    # ---- the leader

    async def last(self, stream: str) -> tuple[StoredEvent, Top] | None:
        """The last event of an aggregate's stream, as the leader knows it, and where the stream ends."""
        found = await self._leader_get(self._form.stream_filter(stream, self._slot(stream)))
        if found is None:
            return None
        event, headers = found
        top = parse_headers(headers).get(TOP_HEADER, "")
        return event, Top(max(event.version, int(top) if top.isdigit() else 0), event.position)

    async def head(self) -> int:
        """The sequence of the last message, as the leader knows it. Raises BrokerRefused if the stream is gone."""
        answer = await self._conn.api(f"STREAM.INFO.{self._stream}", timeout_s=_SILENCE_S)
        return int(answer["state"]["last_seq"])

    async def at(self, stream: str, version: int) -> StoredEvent | None:
        """The event of one version of an aggregate's stream, as the leader knows it."""
        found = await self._leader_get(self._form.stream_filter(stream, self._slot(stream), version))
        return found[0] if found is not None else None

    async def _leader_get(self, subject: str) -> tuple[StoredEvent, bytes] | None:
        self.round_trips += 1
        try:
            answer = await self._conn.api(
                f"STREAM.MSG.GET.{self._stream}", {"last_by_subj": subject}, timeout_s=_SILENCE_S
            )
        except BrokerRefused as e:
            if e.err_code == streams.NO_MESSAGE:
                return None
            raise
        message: Mapping[str, Any] = answer["message"]
        headers = base64.b64decode(message.get("hdrs") or "")
        body = base64.b64decode(message.get("data") or "")
        return self._event(str(message["subject"]), int(message["seq"]), headers, body), headers

    # ---- direct gets, which a replica that lags behind may answer

    async def log(self, after: int, limit: int) -> tuple[list[StoredEvent], bool]:
        """Events from position after + 1 on, and whether there were more. Raises StreamHole for a missing one."""
        page = await self._direct_get({"seq": after + 1, "batch": max(limit, 1), "max_bytes": MOST_BYTES})
        for due, event in enumerate(page.events, after + 1):
            if event.position != due:
                raise StreamHole(
                    f"stream {self._stream}, the event store of {self._identity.name}, has no message {due}, and has "
                    f"{event.position}: events are missing, deleted by a person or lost with the server's files. "
                    "Restore the store from a backup.",
                    stream=self._stream,
                    position=due,
                )
        return page.events, page.pending > 0

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
        for attempt in range(_LAGGING_ATTEMPTS):
            page = await self._direct_get({"multi_last": wanted, "batch": PAGE, "max_bytes": MOST_BYTES})
            if page.status == _TOO_MANY:
                return None
            if seen is None or page.up_to >= seen.sequence:
                break
            await asyncio.sleep(0.005 * attempt)
        else:
            raise BrokerUnavailable(f"the replica of stream {self._stream} that answers is far behind its leader")
        events, up_to = page.events, page.up_to
        while page.pending and page.events:  # the server ends an answer at a number of bytes
            ask = {"multi_last": wanted, "batch": PAGE, "max_bytes": MOST_BYTES}
            page = await self._direct_get(ask | {"seq": page.last + 1, "up_to_seq": up_to})
            events += page.events
        return events

    async def _direct_get(self, request: Mapping[str, Any]) -> _Page:
        self._last_token += 1
        self.round_trips += 1
        token = b"%d" % self._last_token
        collector = self._collecting[token] = _Collector()
        epoch = self._conn.epoch
        try:
            reply = f"{self._inbox}.{self._last_token}"
            self._conn.publish(f"$JS.API.DIRECT.GET.{self._stream}", reply, b"", json.dumps(request).encode())
            while not collector.ended.done():
                before = len(collector.messages)
                await asyncio.wait([collector.ended], timeout=_SILENCE_S)
                silent = not collector.ended.done() and len(collector.messages) == before
                if silent or self._conn.epoch != epoch:
                    raise BrokerUnavailable(f"no answer while reading stream {self._stream}")
        finally:
            del self._collecting[token]
        status, words, own = collector.ended.result()
        if status not in (_END_OF_BATCH, _NOT_FOUND, _TOO_MANY):
            raise BrokerUnavailable(f"reading stream {self._stream} was answered with {status} {words}")
        events = [self._direct_event(headers, body) for headers, body in collector.messages]
        last = int(headers_of_server(collector.messages[-1][0])["Nats-Sequence"]) if events else 0
        return _Page(events, status, int(own.get("Nats-Num-Pending", 0)), int(own.get("Nats-UpTo-Sequence", 0)), last)

    def _received(self, subject: bytes, _reply: bytes, headers: bytes, body: bytes) -> None:
        collector = self._collecting.get(subject.rpartition(b".")[2])
        if collector is None or collector.ended.done():
            return
        status, words = status_of(headers)
        if status:
            collector.ended.set_result((status, words, parse_headers(headers)))
        else:
            collector.messages.append((headers, body))

    def _direct_event(self, headers: bytes, body: bytes) -> StoredEvent:
        own = headers_of_server(headers)
        return self._event(own["Nats-Subject"], int(own["Nats-Sequence"]), headers, body)

    def _event(self, subject: str, sequence: int, headers: bytes, body: bytes) -> StoredEvent:
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


class _Collector:
    """The messages of one answer, as they come in."""

    __slots__ = ("ended", "messages")

    def __init__(self) -> None:
        self.messages: list[tuple[bytes, bytes]] = []
        self.ended: asyncio.Future[tuple[int, str, dict[str, str]]] = asyncio.get_running_loop().create_future()
