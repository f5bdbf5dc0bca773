"""Making a stream anew from its log: the mend for a stream that can no longer mirror it."""

from __future__ import annotations

import asyncio

from evsync.errors import OtherIncarnation, StreamAhead, StreamDiverged
from evsync.jetstream import streams
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.relay import Relay, RelayState
from evsync.jetstream.stream_settings import StreamState, stream_name
from evsync.jetstream.verification import StreamReport, check_stream, holds, last_event
from evsync.ports import EventLog, Progress, unheard
from evsync.tasks import end_task

_TICK_S = 0.05


async def rebuild_stream(
    log: EventLog,
    conn: Connection,
    on_progress: Progress = unheard,
    *,
    allow_loss: bool = False,
) -> StreamReport:
    """Delete the stream that has the log's subjects, create it, publish the log into it, and read all of it back.

    The log is only read. Consumers of the stream wait meanwhile and resume at their checkpoints; a relay that runs, or
    has halted, goes on by itself. May be broken off and called again. `on_progress` is told of the events published.

    Raises StreamAhead, StreamDiverged or OtherIncarnation, with nothing touched, when the stream may hold the only copy
    of events (unless `allow_loss`): it reaches beyond the log, has another history, or belongs to another incarnation;
    ConfigurationError when a stream that is not evsync's has the subjects; what `Connection.api` raises; and whatever
    halts a relay.
    """
    name, head = stream_name(log.identity), await log.head()
    old = await streams.info(conn, name) or await streams.occupant(conn, log.identity)
    if old is not None:
        streams.check_owner(old, log.identity)
        if not allow_loss:
            await _refuse_loss(log, conn, old)
        await streams.delete(conn, old.name)
    return await refill(log, conn, 0, head, on_progress)


async def refill(log: EventLog, conn: Connection, after: int, head: int, on_progress: Progress) -> StreamReport:
    """Publish the log's events behind `after`, up to `head`, into its new stream, and read all of that back.

    Raises whatever halts a relay.
    """
    relay = Relay(log, conn)
    task = asyncio.create_task(relay.run())
    try:
        while relay.confirmed < head or relay.state is RelayState.SYNC:
            if relay.halted is not None:
                raise relay.halted
            on_progress(max(relay.confirmed - after, 0), head - after)
            await asyncio.sleep(_TICK_S)
    finally:
        await end_task(task)
    on_progress(head - after, head - after)
    return await check_stream(log, conn)


async def _refuse_loss(log: EventLog, conn: Connection, old: StreamState) -> None:
    """Raise if the stream holds what the log does not, as far as its last event tells: histories only grow.

    What strangers have published is not counted: to be rid of it is what a rebuild is for.
    """
    head, found = await log.head(), await last_event(log, conn, old.name, old.first, old.last)
    if found is None:
        return
    if found.position > head:
        raise StreamAhead(
            f"stream {old.name} holds events up to position {found.position}, and the log of {log.identity.name} ends "
            f"at {head}: what lies between would be gone. Put back the store that has it, or accept this loss with "
            "`evsync stream rebuild --allow-loss`",
            stream=old.name,
            last=found.position,
            head=head,
        )
    if await holds(log, found):
        return
    if old.name == stream_name(log.identity):
        raise StreamDiverged(
            f"position {found.position} of stream {old.name} holds another event ({found.type} {found.id.hex()}) than "
            f"the log of {log.identity.name}: the store was put back to an earlier state and written since, and the "
            "events that it has forgotten would be gone. Put the newer store back, or accept this with --allow-loss",
            stream=old.name,
            position=found.position,
        )
    raise OtherIncarnation(
        f"stream {old.name} belongs to another incarnation of {log.identity.name}, and its last event (position "
        f"{old.last}) is not in this log: its events would be gone. If another service runs under this name, give "
        "one of them another name; otherwise accept this loss with --allow-loss",
        stream=old.name,
        last=old.last,
    )
