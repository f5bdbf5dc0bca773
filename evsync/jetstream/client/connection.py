"""A connection to NATS that outlives its servers' restarts."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import ssl
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

from nats.errors import Error as NatsError

from evsync.errors import BrokerRefused, BrokerUnavailable, ConfigurationError
from evsync.jetstream.client.frames import Block, Handler, Message, header_block, status_of
from evsync.jetstream.client.plain_session import PlainSession
from evsync.jetstream.client.quick_session import TESTED, QuickSession, untested
from evsync.jetstream.client.refusals import FORBIDDEN, TOO_LARGE, UNAVAILABLE, Refused
from evsync.jetstream.client.session import RECONNECT_WAIT_S, Session
from evsync.jetstream.client.settings import NatsSettings
from evsync.records import check_name

log = logging.getLogger("evsync.jetstream")

API_TIMEOUT_S = 5.0
_SUBJECT = re.compile(r"[^\s\x00-\x1f]+")


class Subscription(NamedTuple):
    """Interest in a subject, kept over reconnects until `unsubscribe()`."""

    connection: Connection
    sid: bytes
    subject: str

    def unsubscribe(self) -> None:
        """The handler is not called again."""
        self.connection._unsubscribe(self)


class Connection:
    """Publishes, subscribes and asks; connects again by itself, for ever.

    Everything is bound to one connection at a time, its *epoch*: what was published in an earlier one is never sent
    later, and a request fails at once when its connection is lost. Use it from one event loop.
    """

    def __init__(self, settings: NatsSettings, name: str, tls: ssl.SSLContext) -> None:
        """Use `open()`."""
        self._tls = tls
        self.settings = settings
        self.name = name
        self.epoch = 0
        """Counts the connections made so far: 0 before the first."""
        self.max_payload: int | None = None
        """Largest message (headers and body) in bytes that the server takes; None before the first connection."""
        self.problem: str | None = "not connected yet"
        """Why there is no connection; None while there is one."""
        self._told = set[str]()
        """What the log has been told of since the last connection."""
        self.blocks: list[Block] = []
        """Who deals with blocks of frames before they are taken apart; see `Block`."""
        self._inbox_root = f"_INBOX_{name}"
        self._session: Session | None = None
        self._up = asyncio.Event()
        self._handlers: dict[bytes, Handler] = {}
        self._subjects: dict[bytes, str] = {}
        self._last_sid = 0
        self._asked: dict[bytes, tuple[str, asyncio.Future[Message]]] = {}
        self._last_token = 0
        self._connection_hooks: list[Callable[[bool], None]] = []
        self._violation_hooks: list[Callable[[str], None]] = []
        self._loop = asyncio.get_running_loop()
        self._discovered: list[str] = []
        self._replies = self.inbox()
        self.subscribe(f"{self._replies}.*", self._answered)
        self._keeper: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, settings: NatsSettings, name: str) -> Connection:
        """Begin to connect, as the service `name` (it becomes part of inbox subjects). Does not wait: see `ready()`.

        Raises ConfigurationError when the settings could never work.
        """
        connection = cls(settings, check_name("service", name), settings.tls_context())
        if version := untested():
            log.warning(
                "nats-py %s is none that this version of evsync was tested with: its own calls are used, several times "
                "slower. Take a newer evsync, or nats-py %s",
                version,
                ", ".join(sorted(TESTED)),
            )
        connection._keeper = asyncio.create_task(connection._keep_connected(), name=f"NATS connection of {name}")
        return connection

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._session is not None

    @property
    def keeps_order(self) -> bool:
        """Whether messages come in the order in which the server sent them, also those of different subscriptions."""
        return self._session is None or self._session.keeps_order

    async def ready(self, timeout_s: float) -> None:
        """Wait for a connection. Raises BrokerUnavailable, with the last problem, when the time has run out."""
        try:
            async with asyncio.timeout(timeout_s):  # not wait_for: in Python 3.11 it may swallow a cancellation
                await self._up.wait()
        except TimeoutError:
            raise self._unavailable(f"no connection within {timeout_s:g} s") from None

    def publish(self, subject: str, reply: str, headers: bytes, body: bytes) -> None:
        """Send a message, without waiting: it leaves with others at the end of this turn of the event loop.

        `headers` is a whole block (see `header_block`) or b"" for none; `reply` may be "". The caller answers for a
        valid subject, for headers + body within `max_payload` (beyond it the server closes the connection), and for
        how much is in flight. Raises BrokerUnavailable when not connected; then nothing is sent, also not later.
        """
        if self._session is None:
            raise self._unavailable("not connected")
        self._session.publish(subject, reply, headers, body)

    def subscribe(self, subject: str, handler: Handler) -> Subscription:
        """Call `handler` for every message on `subject`, from now on and over reconnects.

        Handlers are called in the order of the messages, inside the read loop; see `Handler`. Messages sent while there
        is no connection are missed.
        """
        self._last_sid += 1
        sid = str(self._last_sid).encode()
        self._handlers[sid], self._subjects[sid] = handler, _checked(subject)
        if self._session is not None:
            self._session.subscribe(subject, sid)
        return Subscription(self, sid, subject)

    async def request(
        self, subject: str, payload: bytes = b"", *, timeout_s: float, headers: Mapping[str, str] | None = None
    ) -> Message:
        """Send a message and return the first answer.

        Raises BrokerUnavailable when not connected, when nobody listens on the subject, when the connection is lost
        meanwhile or when no answer came in time (the last two: what was asked may have been done); BrokerRefused when
        permissions forbid it or the message is larger than the server takes.
        """
        block = header_block(headers) if headers else b""
        if self.max_payload is not None and len(block) + len(payload) > self.max_payload:
            words = f"{len(block) + len(payload)} bytes, and the server takes {self.max_payload}"
            raise BrokerRefused(subject, TOO_LARGE, 0, words)
        self._last_token += 1
        token = str(self._last_token).encode()
        answer: asyncio.Future[Message] = self._loop.create_future()
        self.publish(_checked(subject), f"{self._replies}.{self._last_token}", block, payload)
        self._asked[token] = subject, answer
        try:
            async with asyncio.timeout(timeout_s):
                message = await answer
        except TimeoutError as e:
            if isinstance(e, BrokerUnavailable):
                raise
            raise self._unavailable(f"no answer to {subject} within {timeout_s:g} s") from None
        finally:
            del self._asked[token]
        if message.headers and status_of(message.headers)[0] == UNAVAILABLE:
            raise self._unavailable(f"nobody answers {subject}; if it begins with $JS, JetStream is not enabled there")
        return message

    async def api(
        self, name: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = API_TIMEOUT_S
    ) -> dict[str, Any]:
        """The answer of a JetStream API, such as `STREAM.INFO.orders`, as a dict.

        Raises BrokerRefused, with the server's err_code and words, when it says no; BrokerUnavailable as `request`.
        """
        payload = json.dumps(body).encode() if body is not None else b""
        message = await self.request(f"$JS.API.{name}", payload, timeout_s=timeout_s)
        try:
            answer = json.loads(message.body)
            error = answer.get("error")
        except (ValueError, AttributeError) as e:
            raise BrokerRefused(name, 0, 0, f"an answer that is not JSON: {message.body[:200]!r}") from e
        if error is not None:
            raise Refused.of(error).error(name)
        return dict(answer)

    def inbox(self) -> str:
        """A fresh subject for answers, under the prefix that this service may subscribe to."""
        return f"{self._inbox_root}.{secrets.token_hex(8)}"

    def on_connection_change(self, hook: Callable[[bool], None]) -> Callable[[], None]:
        """Call `hook` with True after each connect (subscriptions are in place) and False after each loss.

        Returns a function that takes it off again.
        """
        self._connection_hooks.append(hook)
        return lambda: self._connection_hooks.remove(hook)

    def on_violation(self, hook: Callable[[str], None]) -> Callable[[], None]:
        """Call `hook` with the server's words after each permissions violation. Returns what takes it off again."""
        self._violation_hooks.append(hook)
        return lambda: self._violation_hooks.remove(hook)

    async def close(self) -> None:
        """Send what was published, then let go. Requests in flight fail. Calling twice is fine."""
        if self._keeper is None:
            return
        keeper, self._keeper = self._keeper, None
        session = self._session
        self._leave("the connection was closed")
        while not keeper.done():
            # Once is not enough: nats-py, and wait_for of Python 3.11, swallow a cancellation in places.
            keeper.cancel()
            await asyncio.wait([keeper], timeout=0.1)
        if session is not None:
            await session.end(flush=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<Connection {self.name} to {self.settings.shown}: {self.problem or f'epoch {self.epoch}'}>"

    async def _keep_connected(self) -> None:
        while self._keeper is not None:
            session = self._new_session()
            closing = False
            try:
                servers = [*self.settings.servers, *self._discovered]
                await session.open(
                    self.settings, tls=self._tls, servers=servers, name=f"evsync {self.name}", problem=self._note
                )
                self._enter(session)
                error = await session.lost
                self._leave(_words(error))
            except (OSError, NatsError, TimeoutError) as e:
                self._note(e)
            except asyncio.CancelledError:
                closing = session.client.is_connected  # close() sends the rest and ends it
                raise
            except Exception as e:  # a fault of the client library must not end the connection for good
                log.exception("connecting to NATS failed in a way that was not foreseen")
                self._leave(_words(e))
            finally:
                if not closing:
                    await session.end(flush=False)
            await asyncio.sleep(RECONNECT_WAIT_S)

    def _new_session(self) -> Session:
        """By the quick way, or with another nats-py than it was tested with, by nats-py's own."""
        if untested():
            return PlainSession(self._handlers, self._violated)
        return QuickSession(self._handlers, self.blocks, self._violated)

    def _enter(self, session: Session) -> None:
        self._session, self.problem = session, None
        self._told.clear()
        self.epoch += 1
        self.max_payload = session.client.max_payload
        if not self.settings.uses_tls:  # an address that the cluster tells may not be in its certificate
            known = set(self.settings.servers)
            self._discovered = sorted({f"nats://{u.netloc}" for u in session.client.discovered_servers} - known)
        for sid, subject in self._subjects.items():
            session.subscribe(subject, sid)
        self._up.set()
        log.info("connected to NATS at %s (epoch %d)", self.settings.shown, self.epoch)
        self._call(self._connection_hooks, True)

    def _leave(self, why: str) -> None:
        was_connected = self._session is not None
        self._session, self.problem = None, why
        self._up.clear()
        for subject, answer in self._asked.values():
            if not answer.done():
                answer.set_exception(self._unavailable(f"the connection was lost before {subject} was answered"))
        if was_connected:
            level = logging.WARNING if self._keeper is not None else logging.DEBUG
            log.log(level, "lost the connection to NATS at %s: %s", self.settings.shown, why)
            self._call(self._connection_hooks, False)

    def _note(self, error: Exception) -> None:
        if self._session is None:
            words = _words(error)
            if words not in self._told:  # a refused login shows now as that, now as a connection that was reset
                self._told.add(words)
                log.warning("cannot connect to NATS at %s (trying on): %s", self.settings.shown, words)
            if not (isinstance(error, (ConnectionResetError, BrokenPipeError)) and len(self._told) > 1):
                self.problem = words

    def _unsubscribe(self, subscription: Subscription) -> None:
        if self._handlers.pop(subscription.sid, None) is not None:
            del self._subjects[subscription.sid]
            if self._session is not None:
                self._session.unsubscribe(subscription.sid)

    def _answered(self, subject: bytes, reply: bytes, headers: bytes, body: bytes) -> None:
        asked = self._asked.get(subject.rpartition(b".")[2])
        if asked is not None and not asked[1].done():
            asked[1].set_result(Message(subject, reply, headers, body))

    def _violated(self, words: str) -> None:
        log.error("NATS at %s: %s", self.settings.shown, words)
        for subject, answer in self._asked.values():
            if f'"{subject}"'.lower() in words.lower() and not answer.done():
                answer.set_exception(BrokerRefused(subject, FORBIDDEN, 0, words))
        self._call(self._violation_hooks, words)

    def _call(self, hooks: list[Callable[[Any], None]], value: Any) -> None:
        for hook in list(hooks):
            try:
                hook(value)
            except Exception:
                log.exception("a hook of the NATS connection failed")

    def _unavailable(self, what: str) -> BrokerUnavailable:
        because = f": {self.problem}" if self.problem else ""
        return BrokerUnavailable(f"{what} (NATS at {self.settings.shown}{because})")


def _checked(subject: str) -> str:
    if not _SUBJECT.fullmatch(subject):
        raise ConfigurationError(f"{subject[:200]!r} cannot be a NATS subject")
    return subject


def _words(error: Exception) -> str:
    silent = isinstance(error, TimeoutError) and not str(error)
    return "nobody answers there as a NATS server does" if silent else str(error) or type(error).__name__
