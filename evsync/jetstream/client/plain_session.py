"""A session through nats-py's documented calls alone, for versions whose insides we do not know.

It does what `QuickSession` does, several times slower: nats-py parses every message and header and wakes a task for it.
"""

from __future__ import annotations

import asyncio
import base64
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import nkeys
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error, StaleConnectionError

from evsync.jetstream.client.frames import Handler
from evsync.jetstream.client.session import OPTIONS, WITHOUT_TLS, Session, handler_failed
from evsync.jetstream.client.settings import NatsSettings
from evsync.tasks import end_task

_UNBOUNDED = {"pending_msgs_limit": 0, "pending_bytes_limit": 0}
"""A subscription that drops nothing: whoever asks for messages says how many."""


class PlainSession(Session):
    """See the module's text. What it is asked to do becomes calls of nats-py, one after the other in a task.

    Only the messages of one subscription come in order: nats-py has a queue for each. The socket of a peer that died
    with data unsent stays open until the kernel gives it up.
    """

    keeps_order = False

    def __init__(self, handlers: Mapping[bytes, Handler], violated: Callable[[str], None]) -> None:
        super().__init__(Client(), violated)
        self._handlers = handlers
        self._calls: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self._subscriptions: dict[bytes, Any] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._witness: _Witness | None = None

    def publish(self, subject: str, reply: str, headers: bytes, body: bytes) -> None:
        """Send a message after everything that was asked for before."""
        self._calls.put_nowait(partial(self.client.publish, subject, body, reply, _headers_of(headers)))

    def subscribe(self, subject: str, sid: bytes) -> None:
        """See `Session.subscribe`."""
        self._calls.put_nowait(partial(self._subscribe, subject, sid))

    def unsubscribe(self, sid: bytes) -> None:
        """See `Session.unsubscribe`."""
        self._calls.put_nowait(partial(self._unsubscribe, sid))

    def _prepared(self, settings: NatsSettings, tls: ssl.SSLContext) -> tuple[ssl.SSLContext, Mapping[str, Any]]:
        if not settings.uses_tls:
            return tls, {"user_credentials": settings.credentials, **settings.login}
        # nats-py logs in at a server that does not offer TLS; so it only gets hold of secrets after a handshake.
        tls = settings.tls_context()  # of its own, to be watched
        self._witness = _Witness(tls)
        login: dict[str, Any] = {key: self._witness.keep_back(value) for key, value in settings.login.items()}
        if settings.credentials is not None:
            login |= self._witness.keep_file_back(settings.credentials)
        return tls, login

    def _opened(self) -> None:
        if self._witness is not None:
            self._witness.check()
        self._tasks = [asyncio.create_task(self._call()), asyncio.create_task(self._watch())]

    async def _close(self, *, flush: bool) -> None:
        if flush:
            await self._all_called()
        self._lose(StaleConnectionError())
        await self._let_go()
        await self.client.close()

    async def _all_called(self) -> None:
        called: asyncio.Future[Any] = asyncio.create_task(self._calls.join())
        try:  # what was asked for before the connection was lost is never called
            await asyncio.wait([called, self.lost], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end_task(called)

    async def _let_go(self) -> None:
        for task in self._tasks:
            await end_task(task)

    async def _call(self) -> None:
        try:
            while True:
                await (await self._calls.get())()
                self._calls.task_done()
        except Exception as e:
            self._lose(e)

    async def _watch(self) -> None:
        """Notice a dead peer: nats-py's own pings wait, without limit, behind what the peer does not take."""
        interval_s = OPTIONS["ping_interval"]
        try:
            while True:
                await asyncio.sleep(interval_s)
                async with asyncio.timeout(interval_s * OPTIONS["max_outstanding_pings"]):
                    await self.client.flush()
        except (OSError, Error, TimeoutError):
            self._lose(StaleConnectionError())

    async def _subscribe(self, subject: str, sid: bytes) -> None:
        async def received(message: Msg) -> None:
            self._give(sid, message)

        self._subscriptions[sid] = await self.client.subscribe(subject, cb=received, **_UNBOUNDED)  # type: ignore[arg-type]

    async def _unsubscribe(self, sid: bytes) -> None:
        if (subscription := self._subscriptions.pop(sid, None)) is not None:
            await subscription.unsubscribe()

    def _give(self, sid: bytes, message: Msg) -> None:
        handler = self._handlers.get(sid)
        if handler is None:
            return
        subject = message.subject.encode()
        try:
            handler(subject, message.reply.encode(), block_of(message.headers), message.data)
        except Exception as e:
            handler_failed(subject, e)


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

    def keep_file_back(self, credentials: Path) -> dict[str, Callable[..., Any]]:
        """The same for a `.creds` file: what nats-py asks for its JWT, and for a signature by its seed."""

        def jwt() -> bytes:
            self.check()
            return _section(credentials, "NATS USER JWT")

        def sign(nonce: str) -> bytes:
            self.check()
            seed = bytearray(_section(credentials, "USER NKEY SEED"))
            return base64.b64encode(nkeys.from_seed(seed).sign(nonce.encode()))

        return {"user_jwt_cb": jwt, "signature_cb": sign}

    def check(self) -> None:
        """Raise nats.errors.Error if there was no handshake."""
        if not self.seen:
            raise Error(WITHOUT_TLS)


def _section(credentials: Path, title: str) -> bytes:
    """The line below a title of a `.creds` file."""
    found = re.search(rf"BEGIN {title}-+\s+(\S+)", credentials.read_text())
    if found is None:
        raise Error(f"{credentials} has no {title}")
    return found[1].encode()


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


def _headers_of(block: bytes) -> dict[str, str] | None:
    """A header block as nats-py takes it; None for none."""
    pairs = (line.partition(": ") for line in block.decode().split("\r\n")[1:-2])
    return {name: value for name, _, value in pairs} or None
