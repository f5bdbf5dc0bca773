"""A JetStream consumer read by overlapping pulls: what it delivers, in order, and how we notice when it no longer does.

Two pulls are outstanding at a time, so that the server always has one to answer while the other is renewed. Nothing is
acknowledged: the position is the reader's, and a consumer that is lost is simply made anew at the right place.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from evsync.errors import BrokerUnavailable, ConfigurationError
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.frames import status_of

_SECOND_NS = 1_000_000_000
_OVERHEAD_BYTES = 16_384
"""Beyond max_payload, for the subjects and the framing that the server counts too."""

_HEARTBEAT, _CONFLICT = 100, 409
_ENDS_ONE_PULL = (404, 408)  # no messages, and time out
_CONFLICTS_OF_ONE_PULL = ("message size exceeds maxbytes", "batch completed")
"""Words that come with 409 and leave the consumer as it is. All others (deleted, leadership change, …) are its end."""

Delivery = tuple[bytes, bytes, bytes, bytes]
"""Subject, reply subject, header block and body of a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullPolicy:
    """How a consumer is read. At most three batches wait in memory: one that is not read yet, and two on their way."""

    batch: int = 1_000
    """Messages asked for at a time."""
    batch_bytes: int = 4 << 20
    """Bytes asked for at a time; more if the server takes larger messages than that."""
    expires_s: float = 30.0
    """After this the server answers a pull even if it is not used up."""
    heartbeat_s: float = 2.0
    """The server says so often that a consumer without messages is alive."""
    inactive_s: float = 120.0
    """The server deletes a consumer that nobody pulls from after this."""

    def __post_init__(self) -> None:
        """Raise ConfigurationError for what a server would refuse at every pull."""
        if self.batch < 1 or not 0.1 <= self.heartbeat_s <= self.expires_s / 2:
            raise ConfigurationError(
                f"batch = {self.batch}, heartbeat_s = {self.heartbeat_s} and expires_s = {self.expires_s} cannot be: "
                "batch must be 1 or more, the heartbeat 0.1 s or more, and a pull last at least two heartbeats"
            )


class PullConsumer:
    """An ephemeral consumer of a stream and the messages that it has delivered, in `messages`, oldest first.

    It never mends itself: once `broken` says why, no more messages come; take what is there, close it, make another.
    """

    def __init__(self, conn: Connection, stream: str, policy: PullPolicy) -> None:
        """Use `create()`."""
        self.name = f"evsync-{secrets.token_hex(8)}"
        self.messages: deque[Delivery] = deque()
        self.broken = ""
        self.first = 0
        """Stream sequence from which it delivers."""
        self._loop = asyncio.get_running_loop()
        self.last_message_at = self._loop.time()
        """When a message came, or else when the consumer was made, by the event loop's clock."""
        self._conn, self._stream, self._policy = conn, stream, policy
        self._batch_bytes = max(policy.batch_bytes, (conn.max_payload or 0) + _OVERHEAD_BYTES)
        self._buffered_bytes = 0
        self._heard_at = self.last_message_at
        self._waiter: asyncio.Future[None] | None = None
        self._pulls: list[_Pull] = []
        self._forget_hook: Callable[[], None] | None = None

    @classmethod
    async def create(cls, conn: Connection, stream: str, start: int, policy: PullPolicy) -> PullConsumer:
        """A consumer that delivers the messages of the stream from sequence `start` on, or from `first` if that is
        where the stream begins. Raises what `Connection.api` raises."""
        consumer = cls(conn, stream, policy)
        epoch = conn.epoch
        config = {
            "name": consumer.name,
            "description": f"a reader of {conn.name}",
            "ack_policy": "none",
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": start,
            "replay_policy": "instant",
            "inactive_threshold": int(policy.inactive_s * _SECOND_NS),
            "mem_storage": True,
            "num_replicas": 1,
        }
        request = {"stream_name": stream, "action": "create", "config": config}
        answer = await conn.api(f"CONSUMER.CREATE.{stream}.{consumer.name}", request)
        consumer.first = int(answer["delivered"]["stream_seq"]) + 1
        if conn.epoch != epoch or not conn.connected:
            raise BrokerUnavailable("the connection was lost while a consumer was made")
        consumer._forget_hook = conn.on_connection_change(consumer._connection_changed)
        # The first pull is half as large, so that the two are not used up at the same moment: the server uses them
        # in turn.
        consumer._pulls = [_Pull(consumer, conn, max(policy.batch // 2, 1)), _Pull(consumer, conn, policy.batch)]
        if not conn.keeps_order:  # each has a subscription of its own
            consumer._pulls.pop().subscription.unsubscribe()
        consumer.refill()
        return consumer

    async def wait(self, timeout_s: float) -> None:
        """Return when there is a message, when the consumer is broken, or when the time has run out."""
        self.refill()
        loop = self._loop
        end = loop.time() + timeout_s
        while not self.messages and not self.broken:
            now = loop.time()
            silence_ends = self._heard_at + 2.5 * self._policy.heartbeat_s
            if now >= silence_ends and any(pull.left for pull in self._pulls):
                self.give_up(f"no heartbeat of consumer {self.name} for {now - self._heard_at:.1f} s")
                return
            if now >= end:
                return
            self._waiter = loop.create_future()
            timer = loop.call_at(max(min(end, silence_ends), now), self._wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None

    def taken(self, size_bytes: int) -> None:
        """So much was taken out of `messages`: there may be room to ask for more."""
        self._buffered_bytes -= size_bytes
        self.refill()

    def refill(self) -> None:
        """Ask for more wherever a pull is used up, unless a whole batch waits to be read."""
        policy = self._policy
        for pull in self._pulls:
            if pull.left or self.broken:
                continue
            if len(self.messages) > policy.batch or self._buffered_bytes > self._batch_bytes:
                return
            try:
                pull.ask(f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self.name}", policy, self._batch_bytes)
            except BrokerUnavailable as e:
                self.give_up(str(e))
            self._heard_at = self._loop.time()

    async def info(self) -> dict[str, Any]:
        """The server's account of the consumer. Raises what `Connection.api` raises."""
        return await self._conn.api(f"CONSUMER.INFO.{self._stream}.{self.name}")

    def close(self) -> None:
        """Let go of it, and ask the server to do so; if that does not arrive, `inactive_s` ends it there."""
        for pull in self._pulls:
            pull.subscription.unsubscribe()
        if self._forget_hook is not None:
            self._forget_hook()
            self._forget_hook = None
        if self._conn.connected:
            self._conn.publish(f"$JS.API.CONSUMER.DELETE.{self._stream}.{self.name}", "", b"", b"")
        self._pulls = []
        self.messages.clear()
        self.give_up("closed")

    def _arrived(self, subject: bytes, reply: bytes, headers: bytes, body: bytes) -> None:
        self.messages.append((subject, reply, headers, body))
        self._buffered_bytes += size_of(subject, headers, body)
        self.last_message_at = self._heard_at = self._loop.time()
        if self._waiter is not None:
            self._wake()

    def _said(self, pull: _Pull, number: int, status: int, words: str) -> None:
        """The server said something about a pull, maybe about one that is over."""
        self._heard_at = self._loop.time()
        if number != pull.number or status == _HEARTBEAT:
            return
        pull.left = 0
        if status in _ENDS_ONE_PULL or (status == _CONFLICT and words.lower() in _CONFLICTS_OF_ONE_PULL):
            self.refill()
        else:
            self.give_up(f"the server ended consumer {self.name}: {status} {words}".rstrip())

    def _connection_changed(self, connected: bool) -> None:
        self.give_up("the connection was lost" if not connected else "the connection was made anew")

    def give_up(self, why: str) -> None:
        """It is of no use any more."""
        self.broken = self.broken or why
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Pull:
    """One of a consumer's outstanding requests for messages, renewed whenever it is used up."""

    def __init__(self, consumer: PullConsumer, conn: Connection, batch: int) -> None:
        self.left = 0
        """Messages that it may still bring; 0 when it is over."""
        self.number = 0
        """Tells this request from the earlier ones of the same slot, whose statuses may be late."""
        self._consumer, self._conn, self._batch = consumer, conn, batch
        self._inbox = conn.inbox()
        # The server keeps a message's own subject on delivery, so it is the subscription that tells whose it is.
        self.subscription = conn.subscribe(f"{self._inbox}.*", self._received)

    def ask(self, subject: str, policy: PullPolicy, most_bytes: int) -> None:
        """Send the request. Raises BrokerUnavailable when not connected."""
        request = {
            "batch": self._batch,
            "max_bytes": most_bytes,
            "expires": int(policy.expires_s * _SECOND_NS),
            "idle_heartbeat": int(policy.heartbeat_s * _SECOND_NS),
        }
        self.number += 1
        self._conn.publish(subject, f"{self._inbox}.{self.number}", b"", json.dumps(request).encode())
        self.left, self._batch = self._batch, policy.batch

    def _received(self, subject: bytes, reply: bytes, headers: bytes, body: bytes) -> None:
        consumer = self._consumer
        if reply:
            self.left -= 1
            consumer._arrived(subject, reply, headers, body)
        else:
            consumer._said(self, int(subject.rpartition(b".")[2]), *status_of(headers))


def size_of(subject: bytes, headers: bytes, body: bytes) -> int:
    """Bytes that a message takes while it waits, about."""
    return len(subject) + len(headers) + len(body)
