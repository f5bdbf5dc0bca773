"""One connection to one server through nats-py's documented calls alone, for versions whose insides we do not know.

It does what `Session` does, several times slower: nats-py parses every message and header, and wakes a task for it.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import ParseResult

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error, StaleConnectionError

from evsync.jetstream.client.frames import Handler
from evsync.jetstream.client.settings import NatsSettings
from evsync.tasks import end_task

log = logging.getLogger("evsync.jetstream")

OPTIONS: Mapping[str, Any] = {
    "allow_reconnect": False,
    "connect_timeout": 5,
    "reconnect_time_wait": 0.2,
    "max_reconnect_attempts": -1,
    # A peer that does not answer two pings is dead; nats-py's own default would notice after four minutes.
    "ping_interval": 5,
    "max_outstanding_pings": 2,
    "pending_size": 0,
}
"""How nats-py connects, for either kind of session."""
WITHOUT_TLS = "the server does not use TLS, and the settings insist on it"
_VIOLATION = "Permissions Violation"
_UNBOUNDED = {"pending_msgs_limit": 0, "pending_bytes_limit": 0}
"""A subscription that drops nothing: whoever asks for messages says how many."""


class PlainSession:
    """See `Session`. The frames that it is given are taken apart again, for calls of nats-py in the same order.

    Only the messages of one subscription come in order: nats-py has a queue for each.
    """

    def __init__(self, handlers: Mapping[bytes, Handler], violated: Callable[[str], None]) -> None:
        self.lost: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self._handlers, self._violated = handlers, violated
        self._client = Client()
        self._frames: asyncio.Queue[bytes] = asyncio.Queue()
        self._subscriptions: dict[bytes, Any] = {}
        self._sending: asyncio.Task[None] | None = None

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection."""
        return bool(self._client.is_connected)

    @property
    def max_payload(self) -> int:
        """The largest message that the server takes, in bytes."""
        return int(self._client.max_payload)

    @property
    def discovered_servers(self) -> list[ParseResult]:
        """The other servers of the cluster."""
        return list(self._client.discovered_servers)

    async def open(
        self,
        settings: NatsSettings,
        *,
        tls: ssl.SSLContext,
        servers: Sequence[str],
        name: str,
        problem: Callable[[Exception], None],
    ) -> None:
        """See `Session.open`."""

        async def on_error(error: Exception) -> None:
            words = str(error).removeprefix("nats: ")
            if words.lower().startswith(_VIOLATION.lower()):  # nats-py has made small letters of it
                self._violated(_VIOLATION + words[len(_VIOLATION) :])
            elif self.is_connected:
                self._lose(error)
            else:
                problem(error)

        async def on_end() -> None:
            self._lose(self._client.last_error or StaleConnectionError())

        login = settings.login
        witness = None
        if settings.uses_tls:
            tls = settings.tls_context()  # of its own, to be watched
            witness = _Witness(tls)
            # nats-py sends the login to a server that does not offer TLS; so it only gets hold of it after a handshake.
            login = {key: witness.keep_back(value) for key, value in login.items()}
        await self._client.connect(
            list(servers), error_cb=on_error, closed_cb=on_end, name=name, tls=tls,
            user_credentials=settings.credentials, **OPTIONS, **login,
        )  # fmt: skip
        if witness is not None:
            witness.check()
        self._sending = asyncio.create_task(self._send(), name=f"frames to NATS of {name}")

    def write(self, frames: Sequence[bytes]) -> None:
        """Send whole frames, without waiting. The caller bounds what is in flight."""
        for frame in frames:
            self._frames.put_nowait(frame)

    async def end(self, *, flush: bool) -> None:
        """Close the connection, after sending what was written if `flush`, and end its tasks. Never hangs."""
        try:
            async with asyncio.timeout(1.0):
                if flush and self._sending is not None and not self._sending.done():
                    await self._frames.join()
                self._lose(StaleConnectionError())
                await self._stop_sending()
                await self._client.close()
        except (OSError, Error, TimeoutError) as e:
            log.debug("closing the connection to NATS: %r", e)
        finally:
            self._lose(StaleConnectionError())
            await self._stop_sending()

    async def _stop_sending(self) -> None:
        if self._sending is not None:
            await end_task(self._sending)

    async def _send(self) -> None:
        try:
            while True:
                await self._call(await self._frames.get())
                self._frames.task_done()
        except Exception as e:
            self._lose(e)

    async def _call(self, frame: bytes) -> None:
        line, _, rest = frame.partition(b"\r\n")
        kind, *args = line.decode().split(" ")
        if kind == "PUB":
            subject, reply, _ = args
            await self._client.publish(subject, rest[:-2], reply)
        elif kind == "HPUB":
            subject, reply, size, _ = args
            block, body = rest[: int(size)], rest[int(size) : -2]
            pairs = (text.partition(": ") for text in block.decode().split("\r\n")[1:-2])
            await self._client.publish(subject, body, reply, {name: value for name, _, value in pairs})
        elif kind == "SUB":
            await self._subscribe(args[0], args[1].encode())
        else:
            subscription = self._subscriptions.pop(args[0].encode(), None)
            if subscription is not None:
                await subscription.unsubscribe()

    async def _subscribe(self, subject: str, sid: bytes) -> None:
        async def received(message: Msg) -> None:
            self._give(sid, message)

        self._subscriptions[sid] = await self._client.subscribe(subject, cb=received, **_UNBOUNDED)  # type: ignore[arg-type]

    def _give(self, sid: bytes, message: Msg) -> None:
        handler = self._handlers.get(sid)
        if handler is None:
            return
        try:
            handler(message.subject.encode(), message.reply.encode(), block_of(message.headers), message.data)
        except Exception as e:
            log.error("the handler of a message on %s failed", message.subject, exc_info=e)

    def _lose(self, error: Exception) -> None:
        if not self.lost.done():
            self.lost.set_result(error)


class _Witness:
    """Sees whether a TLS context has been used for a handshake."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.seen = False

        class Watched(ssl.SSLObject):
            def do_handshake(watched) -> None:
                super().do_handshake()
                self.seen = True

        context.sslobject_class = Watched

    def keep_back(self, secret: str) -> Callable[[], str]:
        """What tells the secret, once there was a handshake. Raises nats.errors.Error before that."""

        def tell() -> str:
            self.check()
            return secret

        return tell

    def check(self) -> None:
        """Raise nats.errors.Error if there was no handshake."""
        if not self.seen:
            raise Error(WITHOUT_TLS)


def block_of(headers: Mapping[str, str] | None) -> bytes:
    """The header block that nats-py has made these headers of; what a server adds stands behind the message's own."""
    if not headers:
        return b""
    left = dict(headers)
    status = left.pop("Status", None)
    first = "NATS/1.0" if status is None else f"NATS/1.0 {status} {left.pop('Description', '')}".rstrip()
    ordered = list(left.items())
    if "Nats-Stream" in left:  # nats-py may parse headers with a library that does not keep their order
        ordered.sort(key=lambda header: (header[0].startswith("Nats-"), header[0] != "Nats-Stream"))
    return "\r\n".join([first, *(f"{name}: {value}" for name, value in ordered), "", ""]).encode()
