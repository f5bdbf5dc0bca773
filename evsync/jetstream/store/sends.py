"""Events on their way into a stream that is the store: published one by one, many in flight, or as one atomic batch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import NamedTuple
from uuid import uuid4

from evsync.errors import BrokerUnavailable, EventTooLarge
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.frames import status_of
from evsync.jetstream.client.refusals import Refused
from evsync.jetstream.messages import END_OF_HEADERS, FIRST_LINE, MessageFormat
from evsync.jetstream.store.reads import TOP_HEADER, Top
from evsync.records import StoredEvent


class Draft(NamedTuple):
    """A message to publish, but for the header lines that say how it is sent."""

    event: StoredEvent
    subject: str
    lines: bytes
    body: bytes


Answer = int | Refused | None
"""The sequence of the (last) message, a refusal, or None: no answer came, it may or may not be stored."""


class Sender:
    """Publishes and matches the acknowledgements. One inbox for its life; answers that come late are passed over."""

    def __init__(self, conn: Connection, stream: str) -> None:
        self._conn = conn
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

    async def one_by_one(self, drafts: Sequence[Draft], timeout_s: float) -> list[Answer]:
        """Publish each message by itself, all of them in flight at once; the answer to each.

        Raises EventTooLarge or BrokerUnavailable when nothing was sent.
        """
        return await self._send([self._message(draft, b"") for draft in drafts], {*range(len(drafts))}, timeout_s)

    async def batch(self, drafts: Sequence[Draft], timeout_s: float, *, behind: int | None = None) -> Answer:
        """Publish all messages as one atomic batch; the sequence of its last one. Raises as `one_by_one`.

        With `behind` nothing is stored unless that is the stream's last sequence.
        """
        batch, last = uuid4().hex, len(drafts)
        messages = []
        for n, draft in enumerate(drafts, 1):
            lines = b"Nats-Batch-Id: %b\r\nNats-Batch-Sequence: %d\r\n" % (batch.encode(), n)
            if n == 1 and behind is not None:
                lines += b"Nats-Expected-Last-Sequence: %d\r\n" % behind
            if n == last:
                lines += b"Nats-Batch-Commit: 1\r\n"
            messages.append(self._message(draft, lines))
        return (await self._send(messages, {last - 1}, timeout_s))[last - 1]

    def _message(self, draft: Draft, more: bytes) -> tuple[str, bytes, bytes]:
        event, subject, lines, body = draft
        headers = b"%b%b%b%b%b" % (FIRST_LINE, lines, self._tail, more, END_OF_HEADERS)
        limit = self._conn.max_payload
        if limit is not None and (size := len(headers) + len(body)) > limit:
            raise EventTooLarge(event.type, event.stream, size, limit)
        return subject, headers, body

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


class _Wait:
    """Messages whose answers are waited for."""

    __slots__ = ("answers", "done", "left")

    def __init__(self, messages: int, left: int) -> None:
        self.answers: list[Answer] = [None] * messages
        self.left = left
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


def stored(answer: Answer, what: str) -> int:
    """The sequence in an answer. Raises BrokerUnavailable if there is none, or it may go better soon; BrokerRefused."""
    if isinstance(answer, int):
        return answer
    if answer is None:
        raise BrokerUnavailable(f"no answer to {what}")
    if answer.is_conflict or answer.passes:
        raise BrokerUnavailable(f"{what} were refused: {answer.text}")
    raise answer.error(what)


def drafts_of(form: MessageFormat, rows: Sequence[StoredEvent], tops: dict[str, Top]) -> list[Draft]:
    """The rows as messages of a store, the first of each stream expecting that the stream ends where `tops` says.

    Afterwards `tops` holds the greatest version of each stream. Raises EncodingError.
    """
    found: list[Draft] = []
    begun: set[str] = set()
    for row in rows:
        top = tops[row.stream]
        version = max(top.version, row.version)
        expected = b""
        if row.stream not in begun:
            begun.add(row.stream)
            expected = expectation(top.sequence, form.stream_filter(row.stream, row.slot))
        found.append(draft_of(form, row, version, expected))
        tops[row.stream] = top._replace(version=version)
    return found


def draft_of(form: MessageFormat, row: StoredEvent, top: int, expected: bytes = b"") -> Draft:
    """A row as a message of a store; `top` is the greatest version in its stream. Raises EncodingError."""
    subject, lines, body = form.encode_unplaced(row)
    if top != row.version:
        lines += f"{TOP_HEADER}: {top}\r\n".encode()
    return Draft(row, subject, lines + expected, body)


def expectation(last: int, subjects: str) -> bytes:
    """Header lines with which a message is refused unless `last` is the last sequence of these subjects; 0: none."""
    return (
        f"Nats-Expected-Last-Subject-Sequence: {last}\r\nNats-Expected-Last-Subject-Sequence-Subject: {subjects}\r\n"
    ).encode()
