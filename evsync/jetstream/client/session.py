"""One connection to one server, from its handshake to its loss."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nats.aio.client import Client
from nats.errors import Error, StaleConnectionError
from nats.protocol.parser import Parser

from evsync.jetstream.client.frames import Block, FrameParser, Handler
from evsync.jetstream.client.plain_session import OPTIONS, WITHOUT_TLS, PlainSession
from evsync.jetstream.client.settings import NatsSettings

log = logging.getLogger("evsync.jetstream")

RECONNECT_WAIT_S = 0.2
TESTED = frozenset({"2.16.0"})
"""Versions of nats-py whose private names and parser `Session` is known to fit."""
INSTALLED = importlib.metadata.version("nats-py")


def untested() -> str:
    """The installed version of nats-py, if the quick way was not tested with it; else ""."""
    return "" if INSTALLED in TESTED else INSTALLED


def new_session(
    handlers: Mapping[bytes, Handler], blocks: Sequence[Block], violated: Callable[[str], None]
) -> Session | PlainSession:
    """A session by the quick way, or with another nats-py than it was tested with, by nats-py's own.

    `handlers` are asked by the id of a subscription, `blocks` first (by the quick way only); `violated` is told
    of permissions violations, in the server's words.
    """
    return PlainSession(handlers, violated) if untested() else Session(handlers, blocks, violated)


class Session(Client):
    """nats-py does handshake, TLS, authentication and keep-alive; messages go around it, by `FrameParser` and `write`.

    It never reconnects. nats-py's reconnect flushes what was pending to the new connection (a publish that was given up
    reappears), waits without limit for a dead peer's socket to drain, and gives up for good on some errors of the
    server. A new Session per connection has none of that, and everything of the old one ends with it. `lost` is done,
    with the reason, when the connection is.

    The private names used (`_ps`, `_transport`, `_reading_task`, `_flush_queue`, `_process_op_err`, `_process_info`)
    are those of the versions in TESTED.
    """

    def __init__(
        self, handlers: Mapping[bytes, Handler], blocks: Sequence[Block], violated: Callable[[str], None]
    ) -> None:
        super().__init__()
        self.lost: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self._violated = violated
        self._needs_tls = False
        self._control_lines = Parser(self)
        self._ps = FrameParser(handlers, self._control, _handler_failed, blocks)  # type: ignore[assignment]  # same two methods

    async def open(
        self,
        settings: NatsSettings,
        *,
        tls: ssl.SSLContext,
        servers: Sequence[str],
        name: str,
        problem: Callable[[Exception], None],
    ) -> None:
        """Connect to one of the servers, trying them in turn for as long as it takes.

        `problem` is told of each vain attempt. Raises what the handshake raised (a refused login, a failed TLS
        handshake); use a new Session for the next attempt.
        """

        async def on_error(error: Exception) -> None:
            problem(error)

        self._needs_tls = settings.uses_tls
        await self.connect(
            list(servers), error_cb=on_error, name=name, tls=tls,
            user_credentials=settings.credentials, **OPTIONS, **settings.login,
        )  # fmt: skip
        assert self._reading_task is not None
        self._reading_task.add_done_callback(lambda _: self._lose(StaleConnectionError()))

    def write(self, frames: Sequence[bytes]) -> None:
        """Send whole frames, without waiting. The caller bounds what is in flight."""
        assert self._transport is not None
        self._transport.write(b"".join(frames))

    async def end(self, *, flush: bool) -> None:
        """Close the socket, after sending what was written if `flush`, and end nats-py's tasks. Never hangs."""
        if not flush:
            self._abort()
        self._lose(StaleConnectionError())
        if self._flush_queue is None:  # connect() failed before it had anything to close
            return
        try:
            async with asyncio.timeout(1.0):
                await self.close()
        except (OSError, Error, TimeoutError) as e:
            log.debug("closing the connection to NATS: %r", e)
        finally:
            self._abort()

    async def _process_op_err(self, e: Exception) -> None:
        """Called by nats-py's tasks when the connection failed."""
        self._lose(e)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """Called by nats-py with the server's INFO, before anything is sent: the moment to insist on TLS."""
        if initial_connection and self._needs_tls and not info.get("tls_required"):
            raise Error(WITHOUT_TLS)
        await super()._process_info(info, initial_connection)

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

    def _lose(self, error: Exception) -> None:
        if not self.lost.done():
            self.lost.set_result(error)

    def _abort(self) -> None:
        """Drop the socket now. Closing it would wait until a dead peer has read everything."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            with contextlib.suppress(OSError, RuntimeError):
                writer.transport.abort()


def _handler_failed(subject: bytes, error: Exception) -> None:
    log.error("the handler of a message on %s failed", subject.decode(errors="replace"), exc_info=error)
