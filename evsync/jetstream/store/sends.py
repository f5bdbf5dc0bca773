"""Events on their way into a stream that is the store: published one by one, many in flight, or as one atomic batch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import NamedTuple
from uuid import uuid4

from evsync.errors import EventTooLarge
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.frames import status_of
from evsync.jetstream.client.refusals import Refused
from evsync.jetstream.messages import END_OF_HEADERS, FIRST_LINE, MessageFormat
from evsync.jetstream.store.reads import TOP_HEADER, Top
from evsync.records import StoredEvent


class Outgoing(NamedTuple):
    """An event to publish, and what it expects of the stream."""

    row: StoredEvent
    after: int | None
    """Sequence of the last message of the aggregate's stream; None for a later event of the same stream."""
    top: int | None
    """The greatest version of the aggregate's stream, where it is not this event's."""


Answer = int | Refused | None
"""The sequence of the (last) message, a refusal, or None: no answer came, it may or may not be stored."""


class Sender:
    """Publishes and matches the acknowledgements. One inbox for its life; answers that come late are passed over."""

    def __init__(self, conn: Connection, form: MessageFormat, stream: str) -> None:
        self._conn, self._form = conn, form
        self._tail = f"Nats-Expected-Stream: {stream}\r\n".encode()
        self._ack_head = b'{"stream":"%b","seq":' % stream.encode()
        self._waits: dict[bytes, _Wait] = {}
        self._last_token = 0
        self._inbox = conn.inbox()
        self._subscription = conn.subscribe(f"{self._inbox}.*.*", self._answered)
        self._forget = conn.on_connection_change(self._connection_changed)

    def close(self) -> None:
        """Listen no more."""
        self._subscription.unsubscribe()
        self._forget()

    async def one_by_one(self, events: Sequence[Outgoing], timeout_s: float) -> list[Answer]:
        """Publish each event by itself, all of them in flight at once; the answer to each.

        Raises EventTooLarge, EncodingError or BrokerUnavailable when nothing was sent.
        """
        return await self._send([self._message(event, b"") for event in events], {*range(len(events))}, timeout_s)

    async def batch(self, events: Sequence[Outgoing], timeout_s: float, *, behind: int | None = None) -> Answer:
        """Publish all events as one atomic batch; the sequence of its last one. Raises as `one_by_one`.

        With `behind` nothing is stored unless that is the stream's last sequence.
        """
        batch, last = uuid4().hex, len(events)
        messages = []
        for n, event in enumerate(events, 1):
            lines = batch_lines(batch, n, last)
            if n == 1 and behind is not None:
                lines += b"Nats-Expected-Last-Sequence: %d\r\n" % behind
            messages.append(self._message(event, lines))
        return (await self._send(messages, {last - 1}, timeout_s))[last - 1]

    def _message(self, event: Outgoing, more: bytes) -> tuple[str, bytes, bytes]:
        row, after, top = event
        subject, lines, body = self._form.encode_unplaced(row)
        if top is not None:
            lines += f"{TOP_HEADER}: {top}\r\n".encode()
        if after is not None:
            more += expectation_lines(after, self._form.stream_filter(row.stream, row.slot))
        return subject, whole_headers(self._conn, row, lines + self._tail + more, body), body

    async def _send(
        self, messages: Sequence[tuple[str, bytes, bytes]], answered: set[int], timeout_s: float
    ) -> list[Answer]:
        self._last_token += 1
        token = b"%d" % self._last_token
        wait = self._waits[token] = _Wait(len(messages), len(answered))
        try:
            # Without a pause between them: all are sent on one connection, or none is.
            for n, (subject, headers, body) in enumerate(messages):
                reply = f"{self._inbox}.{self._last_token}.{n}" if n in answered else ""
                self._conn.publish(subject, reply, headers, body)
            await asyncio.wait([wait.done], timeout=timeout_s)
        finally:
            del self._waits[token]
        return wait.answers

    def _answered(self, subject: bytes, _reply: bytes, headers: bytes, body: bytes) -> None:
        _, token, number = subject.rsplit(b".", 2)
        wait = self._waits.get(token)
        if wait is None or wait.done.done():
            return
        wait.answers[int(number)] = self._read(headers, body)
        wait.left -= 1
        if not wait.left:
            wait.done.set_result(None)

    def _read(self, headers: bytes, body: bytes) -> Answer:
        head = self._ack_head
        if body.startswith(head) and (digits := body[len(head) : -1]).isdigit():
            return int(digits)
        if headers and (status := status_of(headers))[0]:
            return Refused(status[0], 0, f"no stream took it ({status[0]} {status[1]})")
        try:
            answer = json.loads(body)
            error = answer.get("error")
            if error is None:
                return int(answer["seq"])
            return Refused.of(error)
        except (ValueError, AttributeError, KeyError):
            return None

    def _connection_changed(self, _connected: bool) -> None:
        for wait in self._waits.values():
            if not wait.done.done():
                wait.done.set_result(None)


def batch_lines(batch: str, number: int, last: int) -> bytes:
    """The header lines of message `number` of an atomic batch, counted from 1; the last one commits it."""
    lines = f"Nats-Batch-Id: {batch}\r\nNats-Batch-Sequence: {number}\r\n"
    return (lines + "Nats-Batch-Commit: 1\r\n" * (number == last)).encode()


def expectation_lines(after: int, subjects: str) -> bytes:
    """The header lines with which a message is refused unless that is the last sequence of these subjects; 0: none."""
    return (
        f"Nats-Expected-Last-Subject-Sequence: {after}\r\nNats-Expected-Last-Subject-Sequence-Subject: {subjects}\r\n"
    ).encode()


def whole_headers(conn: Connection, event: StoredEvent, lines: bytes, body: bytes) -> bytes:
    """The header block of an event's message. Raises EventTooLarge for a message that the server does not take."""
    headers = b"%b%b%b" % (FIRST_LINE, lines, END_OF_HEADERS)
    if conn.max_payload is not None and (size := len(headers) + len(body)) > conn.max_payload:
        raise EventTooLarge(event.type, event.stream, size, conn.max_payload)
    return headers


class _Wait:
    """Messages whose answers are waited for."""

    __slots__ = ("answers", "done", "left")

    def __init__(self, messages: int, left: int) -> None:
        self.answers: list[Answer] = [None] * messages
        self.left = left
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


def outgoing(rows: Sequence[StoredEvent], tops: dict[str, Top]) -> list[Outgoing]:
    """The rows with their expectations: the first of each stream states where the stream ended.

    `tops` holds that place, and afterwards the greatest version of each stream.
    """
    found: list[Outgoing] = []
    expected: set[str] = set()
    for row in rows:
        top = tops[row.stream]
        version = max(top.version, row.version)
        found.append(
            Outgoing(row, None if row.stream in expected else top.sequence, None if version == row.version else version)
        )
        expected.add(row.stream)
        tops[row.stream] = top._replace(version=version)
    return found
