"""Reading a stream back and comparing it with its log: what makes a stream's last sequence a checkpoint.

The server's own account (STREAM.INFO) shows neither foreign messages nor, always, damaged files; only reading does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from evsync.errors import (
    BrokerUnavailable,
    DecodingError,
    RelayError,
    StreamAhead,
    StreamDiverged,
    StreamGone,
    StreamHole,
)
from evsync.jetstream import streams
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.gets import DirectGets, Stored, leader_get
from evsync.jetstream.messages import MessageFormat
from evsync.jetstream.stream_settings import StreamState, check_config, stream_name
from evsync.ports import EventLog, Progress, unheard
from evsync.records import LogIdentity, StoredEvent

BATCH = 1000
MOST_PROBLEMS = 10
_BATCH_BYTES = 4 << 20
_SILENCE_S = 5.0


@dataclass(slots=True)
class StreamReport:
    """What `check_stream` found. The stream mirrors its log as far as it reaches if `problems` is empty."""

    stream: str
    first: int
    last: int
    head: int
    """Last position of the log. `head - last` events are not published yet."""
    compared: int = 0
    problems: list[RelayError] = field(default_factory=list)
    """The first few differences, in order of position."""

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.problems


async def check_stream(log: EventLog, conn: Connection, on_progress: Progress = unheard) -> StreamReport:
    """Read the whole stream of a log and compare each message with the log's event at that position.

    Changes nothing; may run beside a relay. Raises StreamGone when there is no stream, BrokerUnavailable when the
    broker does not answer or the stream is deleted meanwhile.
    """
    name = stream_name(log.identity)
    state = await streams.info(conn, name)
    if state is None:
        raise StreamGone(
            f"there is no stream {name} at {conn.settings.shown}; a running relay creates it",
            stream=name,
        )
    head = await log.head()
    report = StreamReport(name, state.first, state.last, head)
    try:
        check_config(state.config, log.identity)
        check_state(state, log.identity)
    except RelayError as e:
        report.problems.append(e)
    async for done, problem in compare(log, conn, state.first, state.last):
        report.compared = done
        if problem is not None:
            report.problems.append(problem)
        on_progress(done, state.last - state.first + 1)
        if len(report.problems) >= MOST_PROBLEMS:
            break
    return report


def check_state(state: StreamState, identity: LogIdentity) -> None:
    """Raise StreamHole if the server itself says that messages are missing."""
    if state.missing or state.problem:
        what = f"{state.missing} of the messages up to sequence {state.last} are gone" if state.missing else ""
        raise StreamHole(
            f"stream {state.name}: {' and '.join(filter(None, (what, state.problem)))}. "
            f"A sequence cannot be filled again: have it made anew from the log of {identity.name}, "
            "with `evsync stream rebuild`",
            stream=state.name,
            first=state.first,
            last=state.last,
            missing=state.missing,
        )


async def verify(log: EventLog, conn: Connection, first: int, last: int, *, pause_s: float = 0.0) -> None:
    """Compare the stream's messages from `first` to `last` with the log, and raise the first difference.

    StreamHole, StreamDiverged or StreamAhead; BrokerUnavailable when the broker does not answer. `pause_s` is slept
    between batches of about a thousand, to leave room for others.
    """
    async for _, problem in compare(log, conn, first, last):
        if problem is not None:
            raise problem
        if pause_s:
            await asyncio.sleep(pause_s)


async def holds_same(log: EventLog, conn: Connection, name: str, last: int) -> bool:
    """Whether the last message of some stream, at sequence `last`, is this log's event at that position.

    Event ids are random, and histories only grow: if two logs share an event they share all before it. So if this is
    True, or if the stream is empty, nothing that a relay put into it is lost with it.
    """
    if last == 0:
        return True
    found = await last_event(log, conn, name, last, last)
    return found is not None and await holds(log, found)


async def holds(log: EventLog, event: StoredEvent) -> bool:
    """Whether this very event stands at its position in the log."""
    return (await log.read(event.position - 1, 1))[:1] == [event]


async def last_event(log: EventLog, conn: Connection, name: str, first: int, last: int) -> StoredEvent | None:
    """The last event of this log between two sequences of a stream that stands at its own position.

    What cannot be read there, and what others published, is passed over.
    """
    form = MessageFormat(log.identity.name)
    while last >= first:
        start = max(last - BATCH + 1, first)
        found: list[Stored | None] = []
        while start + len(found) <= last:
            found += await read_back(conn, name, start + len(found), last)
        for n in range(last, start - 1, -1):
            message = found[n - start]
            with contextlib.suppress(DecodingError):
                event = message and form.decode(message.subject, message.headers, message.body)
                if event is not None and event.position == n:
                    return event
        last = start - 1
    return None


async def compare(
    log: EventLog, conn: Connection, first: int, last: int
) -> AsyncIterator[tuple[int, RelayError | None]]:
    """Yield after each batch how many messages were compared, and with each difference the difference."""
    name = stream_name(log.identity)
    form = MessageFormat(log.identity.name)
    position = first
    while position <= last:
        until = min(position + BATCH - 1, last)
        found = await read_back(conn, name, position, until)
        until = position + len(found) - 1
        events = await _events(log, position, until)
        for n, message in enumerate(found, position):
            if message is None and await _trimmed(conn, name, n):
                continue
            event = events[n - position] if n - position < len(events) else None
            problem = _difference(name, form, n, message, event)
            if problem is not None:
                yield n - first + 1, problem
        position = until + 1
        yield until - first + 1, None


async def read_back(conn: Connection, name: str, first: int, last: int) -> Sequence[Stored | None]:
    """The messages at sequences first, first + 1, … of a stream: at least one, at most to `last`; None where none is.

    A message's headers are followed by those of the server. Direct gets may be answered by a replica that lags, so
    what they leave out is asked of the stream's leader before it counts as missing.
    """
    ask = {"seq": first, "batch": last - first + 1, "max_bytes": _BATCH_BYTES}
    with contextlib.closing(DirectGets(conn, _SILENCE_S)) as gets:
        got = {m.sequence: m for m in (await gets.get(name, ask)).messages if m.sequence <= last}
    # Where a batch ended early, for its size, the next call goes on; before that, what is left out is missing.
    end = max(got, default=first)
    return [got.get(n) or await leader_get(conn, name, {"seq": n}) for n in range(first, end + 1)]


async def _trimmed(conn: Connection, name: str, sequence: int) -> bool:
    """Whether a message that is not there left for its age since we looked. Raises if the stream changed."""
    state = await streams.info(conn, name)
    if state is None or state.last < sequence:
        raise BrokerUnavailable(f"stream {name} was deleted, or lost its tail, while it was read back")
    return state.first > sequence and not state.missing


async def _events(log: EventLog, first: int, last: int) -> list[StoredEvent]:
    """The log's events from `first` to `last`, fewer if the log ends before."""
    events: list[StoredEvent] = []
    while first + len(events) <= last:
        more = await log.read(first - 1 + len(events), last - first + 1 - len(events))
        if not more:
            break
        events += more
    return events[: last - first + 1]


def _difference(
    name: str, form: MessageFormat, position: int, message: Stored | None, event: StoredEvent | None
) -> RelayError | None:
    """What is wrong with the message at this position, if anything."""
    if message is None:
        return StreamHole(
            f"stream {name} has no message at sequence {position}: it was deleted, or the server's files are damaged. "
            "A sequence cannot be filled again: have the stream made anew from the log, with `evsync stream rebuild`",
            stream=name,
            position=position,
        )
    try:
        found = form.decode(message.subject, message.headers, message.body)
    except DecodingError as e:
        return StreamDiverged(
            f"sequence {position} of stream {name} holds a message that no relay published: {e}. Allow only the "
            f"relay's user to publish to evsync.{form.log}.>, then have the stream made anew: `evsync stream rebuild`",
            stream=name,
            position=position,
            subject=message.subject,
        )
    if found == event:
        return None
    if event is None and found.position == position:
        return StreamAhead(
            f"stream {name} holds position {position} and the store does not: the store was put back to an earlier "
            "state. Put back the store that has it, or make one of the archive and the stream: `evsync restore "
            "--from-stream`. `evsync stream rebuild --allow-loss` would give up what only the stream holds",
            stream=name,
            position=position,
        )
    return StreamDiverged(
        f"sequence {position} of stream {name} holds {_described(found)}, and the log "
        f"{_described(event) if event else 'nothing'}: the store was put back to an earlier state and written since, "
        "or another publisher forged the message. Restore the store under a new incarnation, or, if the log is right, "
        "have the stream made anew: `evsync stream rebuild`",
        stream=name,
        position=position,
    )


def _described(event: StoredEvent) -> str:
    return (
        f"{event.type} {event.id.hex()} (position {event.position}, version {event.version} of stream "
        f"{event.stream!r}, incarnation {event.incarnation})"
    )
