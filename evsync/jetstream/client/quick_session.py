"""A session whose messages go around nats-py: written as whole frames, and cut out of what comes by `FrameParser`."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nats.aio.client import Client
from nats.errors import Error, StaleConnectionError
from nats.protocol.parser import Parser

from evsync.jetstream.client.frames import Block, FrameParser, Handler
from evsync.jetstream.client.session import WITHOUT_TLS, Session, handler_failed
from evsync.jetstream.client.settings import NatsSettings

TESTED = frozenset({"2.16.0"})
"""Versions of nats-py whose private names and parser `QuickSession` is known to fit."""
INSTALLED = importlib.metadata.version("nats-py")


def untested() -> str:
    """The installed version of nats-py, if the quick way was not tested with it; else ""."""
    return "" if INSTALLED in TESTED else INSTALLED


class QuickSession(Session):
    """See the module's text.

    The private names of nats-py that are used (`_ps`, `_transport`, `_reading_task`, `_flush_queue`, `_process_op_err`,
    `_process_info`) are those of the versions in TESTED.
    """

    keeps_order = True

    def __init__(
        self, handlers: Mapping[bytes, Handler], blocks: Sequence[Block], violated: Callable[[str], None]
    ) -> None:
        """`handlers` are asked by the id of a subscription, `blocks` before them."""
        self._client = _Client(self._lose)
        super().__init__(self._client, violated)
        self._loop = asyncio.get_running_loop()
        self._out: list[bytes] = []
        self._control_lines = Parser(self._client)
        parser = FrameParser(handlers, self._control, handler_failed, blocks)
        self._client._ps = parser  # type: ignore[assignment]  # it has the same two methods

    def publish(self, subject: str, reply: str, headers: bytes, body: bytes) -> None:
        """Send a message with the others of this turn of the event loop."""
        if headers:
            head = f"HPUB {subject} {reply} {len(headers)} {len(headers) + len(body)}\r\n"
        else:
            head = f"PUB {subject} {reply} {len(body)}\r\n"
        self._send(head.encode(), headers, body, b"\r\n")

    def subscribe(self, subject: str, sid: bytes) -> None:
        """See `Session.subscribe`."""
        self._send(b"SUB %b %b\r\n" % (subject.encode(), sid))

    def unsubscribe(self, sid: bytes) -> None:
        """See `Session.unsubscribe`."""
        self._send(b"UNSUB %b\r\n" % sid)

    def _send(self, *parts: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out += parts

    def _flush(self) -> None:
        if self._out:
            assert self._client._transport is not None
            out, self._out = self._out, []
            self._client._transport.write(b"".join(out))

    def _prepared(self, settings: NatsSettings, tls: ssl.SSLContext) -> tuple[ssl.SSLContext, Mapping[str, Any]]:
        self._client.needs_tls = settings.uses_tls
        return tls, {"user_credentials": settings.credentials, **settings.login}

    def _opened(self) -> None:
        assert self._client._reading_task is not None
        self._client._reading_task.add_done_callback(lambda _: self._lose(StaleConnectionError()))

    async def _close(self, *, flush: bool) -> None:
        if flush:
            self._flush()
        else:
            self._client.abort()
        self._lose(StaleConnectionError())
        if self._client._flush_queue is not None:  # else connect() failed before it had anything to close
            await self._client.close()

    async def _let_go(self) -> None:
        self._client.abort()

    async def _control(self, line: bytes) -> None:
        """A line that is not a message. nats-py closes for good on most errors; here they end this session only."""
        if line.startswith(b"-ERR"):
            text = line[4:].strip().strip(b"'").decode(errors="replace")
            if text.lower().startswith("permissions violation"):
                self._violated(text)
            else:
                self._lose(Error(f"the server said: {text}"))
        else:
            await self._control_lines.parse(line)


class _Client(Client):
    """nats-py's client; its failures end the session that it belongs to."""

    def __init__(self, lose: Callable[[Exception], None]) -> None:
        super().__init__()
        self.needs_tls = False
        self._lose = lose

    async def _process_op_err(self, e: Exception) -> None:
        """Called by nats-py's tasks when the connection failed."""
        self._lose(e)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """Called by nats-py with the server's INFO, before anything is sent: the moment to insist on TLS."""
        if initial_connection and self.needs_tls and not info.get("tls_required"):
            raise Error(WITHOUT_TLS)
        await super()._process_info(info, initial_connection)

    def abort(self) -> None:
        """Drop the socket now. Closing it would wait until a dead peer has read everything."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            with contextlib.suppress(OSError, RuntimeError):
                writer.transport.abort()
