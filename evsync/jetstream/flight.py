"""Messages on their way into the stream: published, not yet acknowledged.

Several hundred are in flight at once, each with the sequence it must get. What comes back is either the one exact
acknowledgement of that message, in order, or a `Fault`: the first one ends the flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Sequence

from evsync.errors import EventTooLarge, RelayError
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.frames import status_of
from evsync.jetstream.client.refusals import Refused
from evsync.jetstream.faults import Fault, Kind, fault_of
from evsync.jetstream.messages import END_OF_HEADERS, FIRST_LINE, MessageFormat
from evsync.records import StoredEvent

_TICK_S = 0.01
_LONGEST_RUN = 1_024


class Flight:
    """Publishes events of consecutive positions and counts their acknowledgements. Belongs to one connection epoch.

    It has an inbox of its own, so that no acknowledgement of an earlier flight or connection is taken for one of its.
    """

    def __init__(self, conn: Connection, form: MessageFormat, stream: str, *, after: int, epoch: int) -> None:
        """`after` is the stream's last sequence, verified in this `epoch` of the connection."""
        self.confirmed = after
        """Every position up to this one is in the stream: acknowledged one by one, none left out."""
        self.sent = after
        """Last position that was published."""
        self.fault: Fault | None = None
        self.disturbed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done as soon as there is a fault."""
        self._conn, self._form, self._stream, self._epoch = conn, form, stream, epoch
        self._chunks: deque[tuple[int, int]] = deque()  # last position and size of each chunk in flight
        self._bytes = 0
        self._answers = 0
        self._wake_at = 0
        self._woken: asyncio.Future[None] | None = None
        inbox = conn.inbox()
        self._reply_head = inbox + "."
        self._reply_length = len(self._reply_head)
        self._start = after
        # Compared with every acknowledgement, byte by byte; JSON is only parsed when they differ.
        self._ack_head = b'{"stream":"%b","seq":' % stream.encode()
        self._headers_head = FIRST_LINE
        self._headers_tail = b"\r\nNats-Expected-Stream: %b\r\n%b" % (stream.encode(), END_OF_HEADERS)
        self._subscription = conn.subscribe(inbox + ".*", self._answered)
        self._frame_head = b"MSG %b." % inbox.encode()
        self._run = 1  # so many acknowledgements in a row are looked for next
        conn.blocks.append(self._take)

    def send(self, events: Sequence[StoredEvent]) -> None:
        """Publish events, the first of them at `sent` + 1; none, and a fault, in another epoch than the flight's.

        Raises EventTooLarge (those before it are sent), EncodingError, and BrokerUnavailable when not connected.
        """
        if self._conn.epoch != self._epoch:
            self.fail(Fault(Kind.AWAY, "there was another connection since the stream was verified"))
            return
        publish, encode = self._conn.publish, self._form.encode
        head, tail, reply_head = self._headers_head, self._headers_tail, self._reply_head
        limit = self._conn.max_payload or 0
        size = 0
        for event in events:
            last = self.sent
            if event.position != last + 1:
                raise RelayError(
                    f"the log {self._form.log} returned position {event.position} where {last + 1} was due: "
                    "its store does not keep the laws of a log",
                    position=event.position,
                )
            subject, lines, body = encode(event)
            headers = b"%b%bNats-Expected-Last-Sequence: %d%b" % (head, lines, last, tail)
            total = len(headers) + len(body)
            if total > limit:
                raise EventTooLarge(event.type, event.stream, total, limit, event.position)
            publish(subject, f"{reply_head}{last + 1}", headers, body)
            self.sent = last + 1
            size += total
        self._bytes += size
        self._chunks.append((self.sent, size))

    async def room(self, count: int, *, window: int, window_bytes: int, timeout_s: float) -> None:
        """Wait until `count` more messages may be in flight, or there is a fault."""
        while self.fault is None:
            while self._chunks and self._chunks[0][0] <= self.confirmed:
                self._bytes -= self._chunks.popleft()[1]
            if self.sent + count - self.confirmed > window and self.sent > self.confirmed:
                await self.until(min(self.sent + count - window, self.sent), timeout_s)
            elif self._bytes > window_bytes:
                await self.until(self._chunks[0][0], timeout_s)
            else:
                return

    async def until(self, position: int, timeout_s: float) -> None:
        """Wait until `position` is confirmed or there is a fault; silence of `timeout_s` is one."""
        loop = asyncio.get_running_loop()
        while self.confirmed < position and self.fault is None:
            before = self._answers
            self._wake_at, self._woken = position, loop.create_future()
            await asyncio.wait((self._woken, self.disturbed), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if self._answers == before and self.fault is None:
                self.fail(Fault(Kind.AWAY, f"no acknowledgement of position {position} within {timeout_s:g} s"))

    async def drain(self, quiet_s: float) -> None:
        """Wait until everything that was sent is answered, or nothing came for `quiet_s`: what the server still has to
        handle would else meet the next flight."""
        quiet = 0.0
        while self._answers < self.sent - self._start and self._conn.connected and quiet < quiet_s:
            before = self._answers
            await asyncio.sleep(_TICK_S)
            quiet = quiet + _TICK_S if self._answers == before else 0.0

    def fail(self, fault: Fault) -> None:
        """End the flight: the first fault counts, those that follow from it do not."""
        if self.fault is None:
            self.fault = fault
            if not self.disturbed.done():
                self.disturbed.set_result(None)

    def concerns(self, violation: str) -> bool:
        """Whether the server's words about permissions are about this flight's messages or acknowledgements."""
        mine = (f'"{self._form.subjects[:-1]}', f'"{self._reply_head}')
        return any(subject.lower() in violation.lower() for subject in mine)

    def close(self) -> None:
        """Listen no more. What is still in flight may yet be stored, each at its own sequence."""
        self._subscription.unsubscribe()
        with contextlib.suppress(ValueError):  # closed before
            self._conn.blocks.remove(self._take)
        if not self.disturbed.done():
            self.disturbed.cancel()

    def _take(self, data: bytes, start: int) -> int:
        """Confirm whole runs of acknowledgements that are, byte by byte, the ones that are due.

        Several times quicker than taking each apart. What differs in a single byte is left to `_answered`. A run begins
        short and doubles while it fits, so that little is compared in vain where other messages stand in between.
        """
        while self.fault is None and data.startswith(self._frame_head, start):
            due, digits = self.confirmed + 1, len(str(self.confirmed + 1))
            frame = self._acknowledgement(digits)
            there = (len(data) - start) // (len(frame) - 2 * len(b"%d") + 2 * digits)
            run = min(self._run, there, self.sent - self.confirmed, 10**digits - due)
            while run > 0:
                block = b"".join([frame % (n, n) for n in range(due, due + run)])
                if data.startswith(block, start):
                    break
                run //= 4
            if run <= 0:
                self._run = 1
                return start
            self._answers += run
            self._confirm(due + run - 1)
            start += len(block)
            self._run = min(2 * run, _LONGEST_RUN)
        return start

    def _acknowledgement(self, digits: int) -> bytes:
        """The frame that acknowledges a position of so many digits, as a template for the position, twice."""
        head, sid = self._frame_head.replace(b"%", b"%%"), self._subscription.sid
        body = self._ack_head.replace(b"%", b"%%")
        return b"%b%%d %b %d\r\n%b%%d}\r\n" % (head, sid, len(self._ack_head) + digits + 1, body)

    def _answered(self, subject: bytes, _reply: bytes, headers: bytes, body: bytes) -> None:
        self._answers += 1
        number = subject[self._reply_length :]
        due = self.confirmed + 1
        if body == self._ack_head + number + b"}" and number == b"%d" % due:
            self._confirm(due)
        else:
            self._answered_otherwise(int(number), headers, body)

    def _confirm(self, position: int) -> None:
        self.confirmed = position
        if position >= self._wake_at and self._woken is not None:
            if not self._woken.done():
                self._woken.set_result(None)
            self._woken = None

    def _answered_otherwise(self, position: int, headers: bytes, body: bytes) -> None:
        """An answer that is not the exact acknowledgement that is due."""
        if headers and (status := status_of(headers)[0]) >= 400:
            self.fail(Fault(Kind.AWAY, f"no stream took position {position} (status {status})", position))
            return
        try:
            answer = json.loads(body)
            error = answer.get("error")
            stream, sequence = answer.get("stream"), answer.get("seq")
        except (ValueError, AttributeError):
            self.fail(Fault(Kind.LAW, f"position {position} was answered with {body[:200]!r}", position))
            return
        if error is not None:
            self.fail(fault_of(position, Refused.of(error)))
        elif stream != self._stream or sequence != position or answer.get("duplicate"):
            text = f"position {position} of stream {self._stream} was acknowledged as {body[:200].decode('latin-1')}"
            self.fail(Fault(Kind.LAW, text, position))
        elif position == self.confirmed + 1:  # exact, in another form: a JetStream domain stands in it
            self._confirm(position)
        elif position > self.confirmed:
            # The message before it may be anything: another publisher's, or our own whose acknowledgement got lost.
            text = f"position {position} was acknowledged before position {self.confirmed + 1}"
            self.fail(Fault(Kind.GAP, text, position))
