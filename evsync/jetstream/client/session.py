"""One connection to one server, from its handshake to its loss: what both ways of using nats-py have in common."""

from __future__ import annotations

import asyncio
import logging
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from nats.aio.client import Client
from nats.errors import Error, StaleConnectionError

from evsync.jetstream.client.settings import NatsSettings

log = logging.getLogger("evsync.jetstream")

RECONNECT_WAIT_S = 0.2
OPTIONS: Mapping[str, Any] = {
    "allow_reconnect": False,
    "connect_timeout": 5,
    "reconnect_time_wait": RECONNECT_WAIT_S,
    "max_reconnect_attempts": -1,
    # A peer that does not answer two pings is dead; nats-py's own default would notice after four minutes.
    "ping_interval": 5,
    "max_outstanding_pings": 2,
    "pending_size": 0,
}
"""How nats-py connects."""
WITHOUT_TLS = "the server does not use TLS, and the settings insist on it"
_VIOLATION = "Permissions Violation"
_END_S = 1.0


class Session(ABC):
    """nats-py does handshake, TLS, authentication and keep-alive. It never reconnects.

    nats-py's reconnect flushes what was pending to the new connection (a publish that was given up reappears), waits
    without limit for a dead peer's socket to drain, and gives up for good on some errors of the server. A new Session
    per connection has none of that, and everything of the old one ends with it.
    """

    keeps_order: ClassVar[bool]
    """Whether messages come in the order in which the server sent them, also those of different subscriptions."""

    def __init__(self, client: Client, violated: Callable[[str], None]) -> None:
        """`violated` is told of permissions violations, in the server's words."""
        self.lost: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        """Done, with the reason, when the connection is lost."""
        self.client = client
        """For what it tells of the connection."""
        self._violated = violated

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
            words = str(error).removeprefix("nats: ")
            if words.lower().startswith(_VIOLATION.lower()):  # nats-py has made small letters of it
                self._violated(_VIOLATION + words[len(_VIOLATION) :])
            elif self.client.is_connected:
                self._lose(error)
            else:
                problem(error)

        async def on_end() -> None:
            self._lose(self.client.last_error or StaleConnectionError())

        tls, login = self._prepared(settings, tls)
        await self.client.connect(
            list(servers), error_cb=on_error, closed_cb=on_end, name=name, tls=tls, **OPTIONS, **login
        )
        self._opened()

    @abstractmethod
    def publish(self, subject: str, reply: str, headers: bytes, body: bytes) -> None:
        """See `Connection.publish`."""

    @abstractmethod
    def subscribe(self, subject: str, sid: bytes) -> None:
        """Give messages on the subject to the handler of this id. Does not wait, nor does `unsubscribe`."""

    @abstractmethod
    def unsubscribe(self, sid: bytes) -> None:
        """Ask for no more messages of this subscription."""

    async def end(self, *, flush: bool) -> None:
        """Close the connection, after sending what was published if `flush`, and end its tasks. Never hangs."""
        try:
            async with asyncio.timeout(_END_S):
                await self._close(flush=flush)
        except (OSError, Error, TimeoutError) as e:
            log.debug("closing the connection to NATS: %r", e)
        finally:
            self._lose(StaleConnectionError())
            await self._let_go()

    @abstractmethod
    async def _close(self, *, flush: bool) -> None:
        """Close as is polite; `_let_go` follows, also when the time has run out."""

    @abstractmethod
    async def _let_go(self) -> None:
        """Release what is left."""

    @abstractmethod
    def _prepared(self, settings: NatsSettings, tls: ssl.SSLContext) -> tuple[ssl.SSLContext, Mapping[str, Any]]:
        """What a handshake is made with: TLS and a login. Sees to it that TLS is used where the settings insist."""

    @abstractmethod
    def _opened(self) -> None:
        """Begin to carry messages: the handshake is over."""

    def _lose(self, error: Exception) -> None:
        if not self.lost.done():
            self.lost.set_result(error)


def handler_failed(subject: bytes, error: Exception) -> None:
    """Report what the handler of a message raised: it must not end the connection."""
    log.error("the handler of a message on %s failed", subject.decode(errors="replace"), exc_info=error)
