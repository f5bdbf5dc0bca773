"""What a JetStream store holds, for those who look at it from outside."""

from __future__ import annotations

from typing import Any

from evsync.control import CHECKPOINTS_EVENT
from evsync.errors import BrokerRefused, DecodingError
from evsync.inspection import StoreFacts, Unreadable
from evsync.jetstream import streams
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.refusals import STREAM_NOT_FOUND
from evsync.jetstream.messages import MessageFormat, unescape
from evsync.jetstream.store.checkpoints import PREFIX
from evsync.jetstream.store.stream import FORMAT
from evsync.jetstream.stream_settings import subjects
from evsync.jetstream.verification import read_back
from evsync.ports import EventStore
from evsync.records import StoredEvent


async def facts(conn: Connection, name: str, snapshots: str, store: EventStore) -> StoreFacts:
    """How much it holds."""
    state = (await conn.api(f"STREAM.INFO.{name}"))["state"]
    kept: dict[str, Any] = {}
    try:
        kept = (await conn.api(f"STREAM.INFO.{snapshots}"))["state"]
    except BrokerRefused as e:
        if e.err_code != STREAM_NOT_FOUND:
            raise
    prefix = subjects(store.identity)[:-1]
    # An offset behind all of them: the number is told, and no subject.
    answer = await conn.api(f"STREAM.INFO.{name}", {"subjects_filter": f"{prefix}*.*.*.*.1", "offset": 2**53})
    checkpoints_of = f"{prefix}*.{CHECKPOINTS_EVENT}.*.1"
    found = (await conn.api(f"STREAM.INFO.{name}", {"subjects_filter": checkpoints_of}))["state"].get("subjects") or {}
    followers = sorted(unescape(subject.split(".")[-2]).removeprefix(PREFIX) for subject in found)
    checkpoints = [(f, c) for f in followers for c in await store.checkpoints(f)]
    return StoreFacts(
        kind="JetStream",
        where=f"stream {name} at {conn.settings.shown}",
        schema=int(FORMAT),
        head=int(state["last_seq"]),
        events=int(state["messages"]),
        streams=int(answer.get("total", 0)) - len(followers),
        size_bytes=int(state["bytes"]) + int(kept.get("bytes", 0)),
        snapshots=int(kept.get("messages", 0)),
        checkpoints=checkpoints,
    )


async def scan(
    conn: Connection, name: str, form: MessageFormat, after: int, limit: int
) -> list[StoredEvent | Unreadable]:
    """What stands at up to `limit` sequences after `after`; nothing of those that are gone."""
    last = int((await conn.api(f"STREAM.INFO.{name}"))["state"]["last_seq"])
    found: list[StoredEvent | Unreadable] = []
    first = after + 1
    while not found and first <= last:
        messages = await read_back(conn, name, first, min(first + limit - 1, last))
        for sequence, message in enumerate(messages, first):
            if message is None:
                continue
            try:
                event = form.decode(message.subject, message.headers, message.body, sequence)
                if event.position != sequence:
                    raise DecodingError(f"it says that its position is {event.position}")
                found.append(event)
            except DecodingError as e:
                found.append(Unreadable(sequence, str(e)))
        first += len(messages)
    return found


async def self_check(conn: Connection, name: str) -> list[str]:
    """What the server says is missing, or wrong with its files."""
    state = await streams.info(conn, name)
    if state is None:
        return [f"stream {name} is gone"]
    missing = [f"{state.missing} of the messages up to sequence {state.last} are gone"] if state.missing else []
    return missing + ([state.problem] if state.problem else [])
