"""Getting messages out of a stream: one as its leader knows it, or many from any replica."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from evsync.errors import BrokerRefused, BrokerUnavailable
from evsync.jetstream.client.connection import API_TIMEOUT_S, Connection
from evsync.jetstream.client.frames import headers_of_server, parse_headers, status_of
from evsync.jetstream.client.refusals import NO_MESSAGE, STREAM_NOT_FOUND

_END_OF_BATCH, _NOT_FOUND, _TOO_MANY = 204, 404, 413


class Stored(NamedTuple):
    """A message that a stream holds."""

    sequence: int
    subject: str
    headers: bytes
    """The whole block, followed by the server's own where it is the answer to a direct get."""
    body: bytes


class Page(NamedTuple):
    """What a direct get was answered with."""

    messages: list[Stored]
    too_many: bool
    """The request was for more subjects than the server looks up at once: there are no messages."""
    pending: int
    """How many messages were left out."""
    up_to: int
    """The last sequence that the answering replica had."""


async def leader_get(
    conn: Connection,
    stream: str,
    which: Mapping[str, Any],
    *,
    timeout_s: float = API_TIMEOUT_S,
    may_be_missing: bool = False,
) -> Stored | None:
    """The message that the stream's leader has at `seq` or `last_by_subj`; None for none.

    Raises BrokerError; also if there is no such stream, unless it `may_be_missing`.
    """
    try:
        answer = await conn.api(f"STREAM.MSG.GET.{stream}", which, timeout_s=timeout_s)
    except BrokerRefused as e:
        if e.err_code == NO_MESSAGE or (may_be_missing and e.err_code == STREAM_NOT_FOUND):
            return None
        raise
    message: Mapping[str, Any] = answer["message"]
    headers, body = (base64.b64decode(message.get(name) or "") for name in ("hdrs", "data"))
    return Stored(int(message["seq"]), str(message["subject"]), headers, body)


class DirectGets:
    """Asks streams for many messages at once. A replica that lags behind may answer."""

    def __init__(self, conn: Connection, silence_s: float) -> None:
        self._conn, self._silence_s = conn, silence_s
        self._collecting: dict[bytes, _Collector] = {}
        self._last_token = 0
        self._inbox = conn.inbox()
        self._subscription = conn.subscribe(f"{self._inbox}.*", self._received)

    def close(self) -> None:
        """Listen no more."""
        self._subscription.unsubscribe()

    async def get(self, stream: str, request: Mapping[str, Any]) -> Page:
        """What is answered. Raises BrokerUnavailable when the server falls silent, or answers with anything else."""
        self._last_token += 1
        token = b"%d" % self._last_token
        collector = self._collecting[token] = _Collector()
        epoch = self._conn.epoch
        try:
            reply = f"{self._inbox}.{self._last_token}"
            self._conn.publish(f"$JS.API.DIRECT.GET.{stream}", reply, b"", json.dumps(request).encode())
            while not collector.ended.done():
                before = len(collector.messages)
                await asyncio.wait([collector.ended], timeout=self._silence_s)
                silent = not collector.ended.done() and len(collector.messages) == before
                if silent or self._conn.epoch != epoch:
                    raise BrokerUnavailable(f"no answer while reading stream {stream}")
        finally:
            del self._collecting[token]
        status, words, own = collector.ended.result()
        if status not in (_END_OF_BATCH, _NOT_FOUND, _TOO_MANY):
            raise BrokerUnavailable(f"reading stream {stream} was answered with {status} {words}")
        messages = [_stored(headers, body) for headers, body in collector.messages]
        pending, up_to = int(own.get("Nats-Num-Pending", 0)), int(own.get("Nats-UpTo-Sequence", 0))
        return Page(messages, status == _TOO_MANY, pending, up_to)

    def _received(self, subject: bytes, _reply: bytes, headers: bytes, body: bytes) -> None:
        collector = self._collecting.get(subject.rpartition(b".")[2])
        if collector is None or collector.ended.done():
            return
        status, words = status_of(headers)
        if status:
            collector.ended.set_result((status, words, parse_headers(headers)))
        else:
            collector.messages.append((headers, body))


class _Collector:
    """The messages of one answer, as they come in."""

    __slots__ = ("ended", "messages")

    def __init__(self) -> None:
        self.messages: list[tuple[bytes, bytes]] = []
        self.ended: asyncio.Future[tuple[int, str, dict[str, str]]] = asyncio.get_running_loop().create_future()


def _stored(headers: bytes, body: bytes) -> Stored:
    own = headers_of_server(headers)
    return Stored(int(own["Nats-Sequence"]), own["Nats-Subject"], headers, body)
