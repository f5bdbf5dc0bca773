"""Trimming a stream from the front: made anew, beginning behind what an archive holds."""

from __future__ import annotations

from evsync.errors import BrokerRefused, StreamAhead, StreamGone, StreamInconsistent
from evsync.jetstream import streams
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.refusals import NAME_IN_USE
from evsync.jetstream.rebuild import refill
from evsync.jetstream.stream_settings import stream_config, stream_name
from evsync.jetstream.verification import StreamReport
from evsync.ports import EventLog, Progress, unheard

_ATTEMPTS = 5
_OPERATORS = ("num_replicas", "max_bytes", "max_age", "max_msgs", "placement", "compression")
"""Settings that are the operator's to choose."""


async def trim_stream(log: EventLog, conn: Connection, position: int, on_progress: Progress = unheard) -> StreamReport:
    """Make the stream of a log anew, so that it begins behind `position`, and publish the rest of the log into it.

    The caller has made sure that what leaves is archived. A stream cannot be purged (see stream_settings), so it is
    deleted, and created with its first sequence; broken off in between, a relay makes it whole again. Consumers
    wait meanwhile and go on at their checkpoints; one that is behind `position` reads the archive, or stops with
    HistoryGone. Raises StreamGone where there is no stream, StreamAhead for one that holds more than the log,
    StreamInconsistent if a relay is faster every time, and what `Connection.api` raises.
    """
    name, head = stream_name(log.identity), await log.head()
    old = await streams.info(conn, name)
    if old is None:
        raise StreamGone(f"there is no stream {name} at {conn.settings.shown}; nothing was done", stream=name)
    if old.last > head:
        raise StreamAhead(
            f"stream {name} holds positions up to {old.last}, and the log ends at {head}; nothing was done",
            stream=name,
            last=old.last,
            head=head,
        )
    kept = {setting: old.config[setting] for setting in _OPERATORS if setting in old.config}
    config = {**stream_config(log.identity), **kept, "first_seq": position + 1}
    for _ in range(_ATTEMPTS):
        # A relay that runs looks for the stream now and then, and would make it as it was.
        await streams.delete(conn, name)
        try:
            await conn.api(f"STREAM.CREATE.{name}", config)
            break
        except BrokerRefused as e:
            if e.err_code != NAME_IN_USE:
                raise
    else:
        raise StreamInconsistent(f"stream {name} was made anew by a relay each time; stop the relay, and try again")
    return await refill(log, conn, position, head, on_progress)
