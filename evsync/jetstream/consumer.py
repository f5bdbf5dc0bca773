"""A log as it is read from its JetStream stream, every message verified.

The law says that event n stands at sequence n, so what can go wrong shows in numbers: a message at another sequence
than its position is not the relay's, a jump in the stream's sequence is a hole, a jump in the consumer's own count is a
message that got lost on the way. The last is mended by making the consumer anew at the right place, and so is whatever
else happens to a connection, a server or a consumer; the others are raised, and nothing moves past them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from evsync.errors import BrokerError, BrokerRefused, BrokerUnavailable, DecodingError, RelayError, StreamHole
from evsync.jetstream import streams
from evsync.jetstream.client.backoff import Backoff
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.pulls import PullConsumer, PullPolicy, size_of
from evsync.jetstream.client.refusals import STREAM_NOT_FOUND
from evsync.jetstream.messages import MessageFormat
from evsync.jetstream.reading_faults import foreign, history_gone, hole, other_incarnation, unreadable
from evsync.records import Ancestor, LogIdentity, StoredEvent, incarnation_at

log = logging.getLogger("evsync.jetstream")

_LINGER_S = 0.005
_CHUNK = 500
"""Messages decoded in one turn of the event loop: some milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderPolicy:
    """How patiently a stream is read. Times in seconds."""

    pulls: PullPolicy = field(default_factory=PullPolicy)
    idle_check_s: float = 5.0
    """How often a reader to whom nothing comes asks whether there is something that should have come."""
    shortest_wait_s: float = 0.05
    """Before a consumer is made anew; longer each time, while it is in vain."""
    longest_wait_s: float = 2.0


class JetStreamReader:
    """Reads the log `service.shard` from its stream. Implements LogReader.

    `waiting_for` says why nothing comes, for people: the broker is away, the stream does not exist; "" if there is no
    such reason.
    """

    def __init__(
        self,
        conn: Connection,
        stream_name: str,
        log: str,
        incarnation: str,
        policy: ReaderPolicy | None = None,
        *,
        ancestry: Sequence[Ancestor] = (),
    ) -> None:
        self.log = log
        self.incarnation: str | None = incarnation
        self.ancestry: Sequence[Ancestor] = ancestry
        self.waiting_for = ""
        self._conn, self._stream, self._policy = conn, stream_name, policy or ReaderPolicy()
        self._form = MessageFormat(log)
        self._consumer: PullConsumer | None = None
        self._reply_head = b""  # what the reply subjects of the consumer's messages begin with, up to the numbers
        self._delivery = 0  # of the last message, as the consumer counts
        self._sequence = 0  # of the last message, as the stream counts
        self._after = 0  # everything up to here was returned
        self._next = 1  # the position that comes after what is in `_events`
        self._events: list[StoredEvent] = []
        self._whole = 0  # so many of `_events` are whole commits
        self._pending = 0  # messages that the stream has after the last one
        self._failure: RelayError | None = None
        self._doubted = 0  # the position that did not come although it should have
        self._checked_at = 0.0
        self._retry_at = 0.0
        self._backoff = Backoff(self._policy.shortest_wait_s, self._policy.longest_wait_s)

    async def read(self, after: int, limit: int, timeout_s: float) -> list[StoredEvent]:
        """See LogReader. The time is exceeded by that of one request at most, when a consumer has to be made.

        Raises HistoryGone, StreamHole, ForeignMessage, OtherIncarnation or StreamUnreadable, after everything before
        the trouble was returned. Reading again looks again: it goes on once the stream is mended.
        """
        if after != self._after:
            self._begin(after)
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while True:
            consumer = None
            if self._failure is None:
                consumer = await self._ready(end)
                if consumer is not None:
                    self._take(consumer, limit)
            if self._whole:
                if self._whole >= limit or self._failure or consumer is None or not await self._more_soon(consumer):
                    return self._give()
                continue
            if self._failure is not None:
                raise await self._fail(self._failure)
            left = end - loop.time()
            if left <= 0:
                return []
            if consumer is not None:
                await self._wait(consumer, left)

    @property
    def seen(self) -> int:
        """The last position that was read, also of a commit whose end has not come."""
        return self._next - 1

    async def head(self) -> int | None:
        """The stream's last sequence, or None while it cannot be told."""
        try:
            state = await streams.info(self._conn, self._stream)
        except BrokerError:
            return None
        return None if state is None else state.last

    async def close(self) -> None:
        """Let go of the consumer. Reading again makes another."""
        self._drop()

    # ---- the consumer

    def _begin(self, after: int) -> None:
        """Forget everything that was read ahead, and go to another place."""
        self._drop()
        self._after, self._next = after, after + 1
        self._events, self._whole, self._failure, self._doubted = [], 0, None, 0
        self._retry_at = 0.0

    def _drop(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    async def _ready(self, end: float) -> PullConsumer | None:
        """The consumer, made if need be; None if it cannot be made now, having waited a little."""
        consumer, loop = self._consumer, asyncio.get_running_loop()
        if consumer is not None:
            if consumer.messages or not consumer.broken:
                return consumer
            log.debug("reading %s anew from %d on: %s", self._stream, self._next, consumer.broken)
            self._drop()
        if not self._conn.connected:
            try:
                await self._conn.ready(max(end - loop.time(), 0))
            except BrokerUnavailable:
                self._wait_because(f"NATS at {self._conn.settings.shown}: {self._conn.problem}")
                return None
            self._backoff.reset()
            self._retry_at = 0.0
        if loop.time() < self._retry_at:
            await asyncio.sleep(max(min(self._retry_at, end) - loop.time(), 0))
            if loop.time() < self._retry_at:
                return None
        try:
            await self._open()
        except BrokerError as e:
            self._wait_because(await self._reason(e))
        else:
            self._wait_because("")
        self._retry_at = loop.time() + self._backoff.step()
        return self._consumer

    async def _open(self) -> None:
        consumer = await PullConsumer.create(self._conn, self._stream, self._next, self._policy.pulls)
        if consumer.first > self._next:
            consumer.close()
            raise history_gone(self._stream, self._next, consumer.first)
        self._consumer, self._checked_at = consumer, 0.0
        self._reply_head = b""
        self._sequence, self._delivery, self._pending = consumer.first - 1, 0, 0

    async def _reason(self, error: BrokerError) -> str:
        """Why there is no consumer. Raises OtherIncarnation if another stream took the place of this one.

        Unless that is of the same log, restored to where this reader has come, or farther: then it is read from now on.
        """
        if not isinstance(error, BrokerRefused) or error.err_code != STREAM_NOT_FOUND:
            return str(error)
        service, _, shard = self.log.partition(".")
        try:
            other = await streams.occupant(self._conn, LogIdentity(service, shard, self.incarnation or ""))
        except BrokerError as e:
            return str(e)
        identity = other.identity if other is not None else None
        if other is None or identity is None or identity.name != self.log or identity.incarnation == self.incarnation:
            return f"stream {self._stream} does not exist: the relay of {self.log} makes it when it runs"
        after = self._after  # what was read beyond, and not given to anybody, is read again
        if after and identity.incarnation_at(after) != self._incarnation_at(after):
            last = next((a.last for a in identity.ancestry if a.incarnation == self.incarnation), None)
            raise other_incarnation(self.log, self.incarnation, after, identity.incarnation, other.last, last)
        log.info("log %s was restored: reading stream %s instead of %s", self.log, other.name, self._stream)
        self._begin(after)
        self._stream, self.incarnation, self.ancestry = other.name, identity.incarnation, identity.ancestry
        return f"stream {self._stream} takes the place of the one that was read"

    def _incarnation_at(self, position: int) -> str:
        return incarnation_at(self.incarnation or "", self.ancestry, position)

    def _wait_because(self, reason: str) -> None:
        if reason and reason != self.waiting_for:
            log.warning("reading log %s after position %d waits: %s", self.log, self._next - 1, reason)
        self.waiting_for = reason

    # ---- the messages

    def _take(self, consumer: PullConsumer, limit: int) -> None:
        """Verify and decode what has come, up to the end of the commit that reaches the limit."""
        messages, events, decode, incarnation = consumer.messages, self._events, self._form.decode, self.incarnation
        size_bytes, reply = 0, b""
        for _ in range(min(len(messages), _CHUNK)):
            subject, reply, headers, body = messages.popleft()
            size_bytes += size_of(subject, headers, body)
            sequence = self._sequence + 1
            self._delivery += 1
            as_usual = reply.startswith(b"%b%d.%d." % (self._reply_head, sequence, self._delivery))
            if not as_usual and not self._follows(reply):
                break
            self._sequence = sequence
            if sequence < self._next:
                continue  # the stream is being filled again; this was read before
            try:
                event = decode(subject.decode("latin-1"), headers, body, sequence)
            except DecodingError as e:
                self._failure = foreign(self._stream, sequence, str(e))
                self._failure.__cause__ = e
                break
            if event.position != sequence:
                what = f"it is an event of position {event.position} (id {event.id.hex()}, {event.type})"
                self._failure = foreign(self._stream, sequence, what)
                break
            if event.incarnation != incarnation and event.incarnation != self._incarnation_at(sequence):
                self._failure = other_incarnation(self.log, incarnation, sequence - 1, event.incarnation, sequence)
                break
            self._next = sequence + 1
            events.append(event)
            if event.remaining == 0:
                self._whole = len(events)
                if self._whole >= limit:
                    break
        if reply:
            self._backoff.reset()
            self._doubted, self.waiting_for = 0, ""
            self._pending = _read_reply(reply)[3]
            consumer.taken(size_bytes)

    def _follows(self, reply: bytes) -> bool:
        """Whether a message is the next one, by its reply subject; remember then what these look like."""
        head, sequence, delivery, _ = _read_reply(reply)
        if delivery != self._delivery:
            log.warning("delivery %d of %s came where %d was due: reading anew", delivery, self._stream, self._delivery)
            self._drop()
            return False
        if sequence != self._sequence + 1:
            self._failure = hole(self._stream, self._sequence + 1, sequence)
            return False
        self._reply_head = head
        return True

    async def _more_soon(self, consumer: PullConsumer) -> bool:
        """Whether more messages are here, or on their way: then it is worth filling the batch."""
        if consumer.messages:
            await asyncio.sleep(0)
        elif self._pending:
            await consumer.wait(_LINGER_S)
        return bool(consumer.messages)

    def _give(self) -> list[StoredEvent]:
        """The whole commits that were read. A commit whose end has not come yet is kept for the next time."""
        given, self._events = self._events[: self._whole], self._events[self._whole :]
        self._whole, self._after = 0, given[-1].position
        return given

    # ---- trouble

    async def _wait(self, consumer: PullConsumer, timeout_s: float) -> None:
        """Wait for a message. When none has come for long, see whether one should have."""
        loop = asyncio.get_running_loop()
        check_at = max(consumer.last_message_at, self._checked_at) + self._policy.idle_check_s
        await consumer.wait(min(timeout_s, max(check_at - loop.time(), 0)))
        if consumer.messages or consumer.broken or loop.time() < check_at:
            return
        try:
            state = await streams.info(self._conn, self._stream)
            self._checked_at = loop.time()
            if state is None or consumer.messages or consumer.broken:
                return
            due = self._sequence + 1
            behind = f"stream {self._stream} ends at {state.last}: its relay fills it again"
            self._wait_because(behind if state.last < self._next - 1 else "")
            if state.last < due:
                self._doubted = 0
            elif self._doubted != due:
                self._doubted = due  # perhaps it is only this consumer that is stuck
                consumer.give_up(f"message {due} does not come, and the stream's last is {state.last}")
            else:
                pending = int((await consumer.info())["num_pending"])
                if not consumer.messages:
                    fault = unreadable if pending > 0 or not state.missing else hole
                    self._failure = fault(self._stream, due, state.last + 1)
        except BrokerError as e:
            log.debug("looking at %s failed: %s", self._stream, e)

    async def _fail(self, failure: RelayError) -> RelayError:
        """The error to raise for a failure. The next read begins at the same place again."""
        self._failure, self._doubted = None, 0
        self._drop()
        if isinstance(failure, StreamHole):
            # Limits (max_age, max_bytes) take messages at the beginning, also while they are being read.
            with contextlib.suppress(BrokerError):
                state = await streams.info(self._conn, self._stream)
                if state is not None and state.first > self._next:
                    return history_gone(self._stream, self._next, state.first)
        return failure


def _read_reply(reply: bytes) -> tuple[bytes, int, int, int]:
    """What a delivered message's reply subject says: what stands before the numbers, stream sequence, count of
    deliveries, messages after it.

    `$JS.ACK.<stream>.<consumer>.<deliveries of this one>.<sequence>.<count>.<time>.<pending>`; with a JetStream domain
    two more tokens follow $JS.ACK, and one may follow the last. Zeros for anything else: they follow nothing.
    """
    tokens = reply.split(b".")
    at = {9: 5, 11: 7, 12: 7}.get(len(tokens), 0)
    numbers = tokens[at : at + 4]
    if not at or not reply.startswith(b"$JS.ACK.") or not all(n.isdigit() for n in numbers):
        return b"", 0, 0, 0
    return b".".join(tokens[:at]) + b".", int(numbers[0]), int(numbers[1]), int(numbers[3])
