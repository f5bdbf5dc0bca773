"""The relay: publishes a log to its JetStream stream, event n at sequence n or nowhere.

    SYNC     compare the stream with the log: configuration, holes, the tail read back
    STANDBY  another relay is at work: watch it, take over when it stops
    PROBE    publish one event; its exact acknowledgement proves that the stream is as it seems
    PUMP     publish as fast as acknowledgements come, woken by commits
    HALTED   something that only a person may mend; looks every few seconds whether they did

Nothing is stored about progress: the stream's last sequence, once verified, is the checkpoint. So any number of relays
may run, be killed or paused at any point; the broker lets one of them store event n, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from evsync.errors import EvsyncError, OtherIncarnation, RelayError
from evsync.jetstream import streams
from evsync.jetstream.client.backoff import Backoff
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.faults import Doubt, Fault, Kind, error_of, passes
from evsync.jetstream.flight import Flight
from evsync.jetstream.messages import MessageFormat
from evsync.jetstream.stream_settings import StreamState, stream_name
from evsync.jetstream.verification import check_state, holds_same, verify
from evsync.ports import EventLog
from evsync.records import StoredEvent
from evsync.tasks import end_task

log = logging.getLogger("evsync.jetstream")

TAIL = 4096
"""So many messages are read back at each SYNC, at least."""
_DRAIN_S = 0.25
_SHORTEST_WAIT_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayPolicy:
    """How a relay works. Times in seconds."""

    window: int = 1000
    """Messages in flight."""
    window_bytes: int = 8 << 20
    """Bytes in flight, give or take a quarter of the window."""
    replicas: int = 1
    """Of the stream, if the relay creates it."""
    ack_timeout_s: float = 5.0
    """Silence after which the stream is looked at again."""
    longest_wait_s: float = 5.0
    """Between attempts while the broker or the store is away; the first ones come sooner."""
    look_s: float = 5.0
    """How often an idle or halted relay looks at the stream."""
    patience_s: float = 2.0
    """How long another relay may stand still, with events to publish, before this one takes over."""
    doubt_s: float = 30.0
    """How long the server may contradict itself about the stream's last sequence before that is an error."""
    scrub_interval_s: float = 3600.0
    """How often the whole stream is read and compared with the log."""
    scrub_pause_s: float = 0.1
    """After every thousand messages of a scrub."""


class RelayState(StrEnum):
    """See the module's text."""

    SYNC = "sync"
    STANDBY = "standby"
    PROBE = "probe"
    PUMP = "pump"
    HALTED = "halted"


@dataclass(frozen=True, slots=True)
class RelayStatus:
    """What a relay is doing, for people."""

    state: RelayState
    stream: str
    confirmed: int
    """Last position known to be in the stream."""
    head: int
    """Last position of the log, as far as the relay knows."""
    reason: str
    """Why it does not publish; "" when nothing is in its way."""
    since: datetime
    """When it entered the state."""

    @property
    def lag(self) -> int:
        """Events not known to be in the stream yet."""
        return max(self.head - self.confirmed, 0)


class Relay:
    """Keeps the stream of one log up to date, for as long as `run()` runs.

    `halted` is the error that stopped it, if one did. It goes on by itself when the stream, its settings or the
    server's limits change (every mend does that), and verifies the stream anew.
    """

    def __init__(self, log: EventLog, conn: Connection, policy: RelayPolicy | None = None) -> None:
        self.state = RelayState.SYNC
        self.halted: Exception | None = None
        self._log, self._conn, self._policy = log, conn, policy or RelayPolicy()
        self._form = MessageFormat(log.identity.name)
        self._stream = stream_name(log.identity)
        self._seen: StreamState | None = None  # the stream at the last SYNC
        self._known: tuple[object, ...] = ()  # its fingerprint then
        self._epoch = 0  # of the connection then
        self._last = 0  # the stream's last sequence, as far as we know
        self._verified = 0  # the same, where compared with the log or acknowledged; 0 for never
        self._head = 0
        self._flight: Flight | None = None
        self._reason = ""
        self._since = datetime.now(UTC)
        self._lost_race = False
        self._doubt = Doubt()
        self._found: RelayError | None = None
        self._nudge = asyncio.Event()
        self._backoff = Backoff(_SHORTEST_WAIT_S, self._policy.longest_wait_s)

    @property
    def confirmed(self) -> int:
        """Last position known to be in the stream."""
        return self._flight.confirmed if self._flight is not None else self._last

    def status(self) -> RelayStatus:
        """What it is doing now."""
        head = max(self._head, self.confirmed)
        return RelayStatus(self.state, self._stream, self.confirmed, head, self._reason, self._since)

    async def run(self) -> None:
        """Relay until cancelled. Raises nothing else: what goes wrong is waited out, or kept in `halted`."""
        steps = {
            RelayState.SYNC: self._sync,
            RelayState.STANDBY: self._standby,
            RelayState.PROBE: self._probe,
            RelayState.PUMP: self._pump,
        }
        self.halted = None
        scrub = asyncio.create_task(self._scrub_now_and_then())
        try:
            with self._hooks():
                state = RelayState.SYNC
                while True:
                    self._enter(state)
                    try:
                        state = await steps[state]()
                    except Exception as error:
                        await self._end_flight()
                        await (self._back_off(error) if passes(error) else self._halt(error))
                        state = RelayState.SYNC
        finally:
            if self._flight is not None:
                self._last = self._flight.confirmed
                self._flight.close()
                self._flight = None
            await end_task(scrub)

    async def _sync(self) -> RelayState:
        """Make certain of the stream: after this, its last sequence is the checkpoint."""
        await self._conn.ready(self._policy.ack_timeout_s)
        self._epoch = self._conn.epoch
        # Before anything is judged: if it is condemned, whatever changed since then is a reason to look again.
        self._known = await streams.fingerprint(self._conn, self._log.identity)
        if self._found is not None:
            found, self._found = self._found, None
            raise found
        stream = await self._ensure()
        # Asked after the stream: every event in it was in the log before.
        self._head = await self._log.head()
        self._doubt.check(stream, self._policy.doubt_s)
        check_state(stream, self._log.identity)
        if self._seen is None or stream.created != self._seen.created:
            self._verified = 0
        elif stream.last < self._verified:
            log.warning("stream %s lost positions %d to %d", self._stream, stream.last + 1, self._verified)
        self._seen, self._last = stream, stream.last
        start = stream.last - TAIL + 1
        if self._verified:
            start = min(start, self._verified)
        await verify(self._log, self._conn, max(start, stream.first), stream.last)
        self._verified = stream.last
        self._known = await streams.fingerprint(self._conn, self._log.identity)
        if stream.last >= self._head:
            self._reason = ""
        lost_race, self._lost_race = self._lost_race, False
        return RelayState.STANDBY if lost_race else RelayState.PROBE

    async def _standby(self) -> RelayState:
        """Watch the relay that was first. It is gone when the stream stands still while the log is longer."""
        self._reason = "another relay publishes this log"
        loop = asyncio.get_running_loop()
        still_since: float | None = None
        while True:
            self._head = await self._log.wait(self._last, self._policy.look_s)
            stream = await streams.info(self._conn, self._stream)
            if stream is None or not stream.same_as(self._seen) or stream.last < self._last:
                return RelayState.SYNC
            if stream.last > self._last or stream.last >= self._head:
                self._last, still_since = stream.last, None
            elif still_since is None:
                still_since = loop.time()
            elif loop.time() - still_since > self._policy.patience_s:
                if self._last - self._verified > TAIL:
                    self._verified = 0  # verified by the other relay; as at a fresh start, the tail is enough
                return RelayState.SYNC
            await asyncio.sleep(self._policy.patience_s / 8)

    async def _probe(self) -> RelayState:
        """Publish one event, and believe only its acknowledgement."""
        flight = self._flight = Flight(self._conn, self._form, self._stream, after=self._last, epoch=self._epoch)
        due = self._last + 1
        while flight.fault is None:
            events = await self._log.read(due - 1, 1)
            if events:
                flight.send(events[:1])
                await flight.until(due, self._policy.ack_timeout_s)
                if flight.fault is None:
                    self._reason, self._doubt = "", Doubt()
                    self._backoff.reset()
                    return RelayState.PUMP
            elif not await self._idle(flight):
                break
        return await self._land()

    async def _pump(self) -> RelayState:
        """Publish whatever the log has, many messages in flight."""
        flight, policy = self._flight, self._policy
        assert flight is not None
        while flight.fault is None:
            events = await self._log.read(flight.sent, policy.window)
            if events:
                behind = len(events) >= policy.window
                self._head = await self._log.head() if behind else max(self._head, events[-1].position)
            elif not await self._idle(flight):
                break
            for chunk in _chunks(events, policy):
                await flight.room(
                    len(chunk), window=policy.window, window_bytes=policy.window_bytes, timeout_s=policy.ack_timeout_s
                )
                if flight.fault is None:
                    flight.send(chunk)
        return await self._land()

    async def _idle(self, flight: Flight) -> bool:
        """Wait for a commit or a fault, and look at the stream now and then; False if it is not as we left it."""
        waiting = asyncio.create_task(self._log.wait(flight.sent, self._policy.look_s))
        try:
            await asyncio.wait((waiting, flight.disturbed), return_when=asyncio.FIRST_COMPLETED)
            if flight.fault is None:
                self._head = await waiting
        finally:
            await end_task(waiting)
        if flight.fault is not None or self._head > flight.sent:
            return True
        if flight.sent > flight.confirmed:
            flight.fail(Fault(Kind.AWAY, f"position {flight.confirmed + 1} was not acknowledged"))
            return True
        stream = await streams.info(self._conn, self._stream)
        return stream is not None and stream.same_as(self._seen) and stream.last == flight.confirmed

    async def _land(self) -> RelayState:
        """End the flight, and go where its fault sends us."""
        fault = await self._end_flight()
        if fault is None or fault.kind is Kind.GAP:
            return RelayState.SYNC
        if fault.kind is Kind.CONFLICT:
            self._lost_race = True
            self._doubt.refused(fault)
            return RelayState.SYNC
        raise error_of(fault, self._stream)

    async def _end_flight(self) -> Fault | None:
        """Let go of the flight, after the server has answered what is under way."""
        flight, self._flight = self._flight, None
        if flight is None:
            return None
        await flight.drain(_DRAIN_S)
        self._last = self._verified = flight.confirmed
        flight.close()
        return flight.fault

    async def _ensure(self) -> StreamState:
        """The log's stream; it takes the place of an ancestor's whose last event is in this log."""
        identity, replicas = self._log.identity, self._policy.replicas
        try:
            return await streams.ensure(self._conn, identity, replicas=replicas)
        except OtherIncarnation as other:
            name, last = str(other.values["stream"]), other.values["last"]
            if not isinstance(last, int) or not await holds_same(self._log, self._conn, name, last):
                raise
            log.warning("stream %s is an earlier part of this log: replacing it by %s", name, self._stream)
            await streams.delete(self._conn, name)
            return await streams.ensure(self._conn, identity, replicas=replicas)

    async def _back_off(self, error: Exception) -> None:
        """Wait for what passes by itself: longer each time, but not beyond the next connection."""
        self._explain(error, logging.WARNING)
        await self._nudged(self._backoff.step())
        with contextlib.suppress(EvsyncError):  # the store may be what is away
            self._head = await self._log.head()

    async def _nudged(self, timeout_s: float) -> None:
        """Wait for a connection, or until the time has run out."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._nudge.wait()
        self._nudge.clear()

    async def _halt(self, error: Exception) -> None:
        """Stand still until something about the stream was changed."""
        self._enter(RelayState.HALTED)
        self._explain(error, logging.ERROR)
        self.halted = error
        while True:
            await self._nudged(self._policy.look_s)
            with contextlib.suppress(EvsyncError):
                self._head = await self._log.head()
                if await streams.fingerprint(self._conn, self._log.identity) != self._known:
                    break
        log.info("the relay of %s goes on", self._stream)
        self.halted, self._verified, self._seen, self._doubt = None, 0, None, Doubt()

    async def _scrub_now_and_then(self) -> None:
        """Read the whole stream at times: the server does not tell of messages that it can no longer read."""
        while True:
            await asyncio.sleep(self._policy.scrub_interval_s)
            try:
                stream = await streams.info(self._conn, self._stream)
                if self.state is RelayState.PUMP and stream is not None:
                    last = min(stream.last, self.confirmed)
                    await verify(self._log, self._conn, stream.first, last, pause_s=self._policy.scrub_pause_s)
            except RelayError as error:
                self._found = error
                if self._flight is not None:
                    self._flight.fail(Fault(Kind.GAP, "the scrub found something"))
            except EvsyncError as error:
                log.info("the scrub of %s is put off: %s", self._stream, error)
            except Exception:
                log.exception("the scrub of %s failed", self._stream)

    @contextlib.contextmanager
    def _hooks(self) -> Iterator[None]:
        """Hear of connections and of what permissions forbid."""

        def changed(connected: bool) -> None:
            if connected:
                self._backoff.reset()
                self._nudge.set()
            elif self._flight is not None:
                self._flight.fail(Fault(Kind.AWAY, f"the connection was lost: {self._conn.problem}"))

        def violated(words: str) -> None:
            if self._flight is not None and self._flight.concerns(words):
                self._flight.fail(Fault(Kind.DENIED, words))

        removals = [self._conn.on_connection_change(changed), self._conn.on_violation(violated)]
        try:
            yield
        finally:
            for remove in removals:
                remove()

    def _enter(self, state: RelayState) -> None:
        if state is not self.state:
            log.debug("the relay of %s: %s after %s", self._stream, state, self.state)
            self.state, self._since = state, datetime.now(UTC)

    def _explain(self, error: Exception, level: int) -> None:
        reason = str(error) or type(error).__name__
        if reason != self._reason:
            unforeseen = error if not isinstance(error, EvsyncError) else None
            log.log(level, "the relay of %s: %s", self._stream, reason, exc_info=unforeseen)
        self._reason = reason


def _chunks(events: Sequence[StoredEvent], policy: RelayPolicy) -> Iterator[Sequence[StoredEvent]]:
    """Cut what was read into pieces of at most a quarter of what may be in flight (but at least one event)."""
    most, most_bytes = max(policy.window // 4, 1), policy.window_bytes // 4
    start = size = 0
    for i, event in enumerate(events):
        size += len(event.data)
        if i - start >= most or (size > most_bytes and i > start):
            yield events[start:i]
            start, size = i, len(event.data)
    if start < len(events):
        yield events[start:]
