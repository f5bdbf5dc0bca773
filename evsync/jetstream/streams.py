"""Streams at a server: found, looked at, created, deleted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from evsync.errors import BrokerRefused, BrokerUnavailable, ConfigurationError, OtherIncarnation
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.refusals import NAME_IN_USE, STREAM_NOT_FOUND, SUBJECTS_OVERLAP
from evsync.jetstream.stream_settings import StreamState, check_config, stream_config, stream_name, subjects
from evsync.records import LogIdentity

INFO_TIMEOUT_S = 1.5
"""A question that went to a leader which died is never answered: better ask again soon."""


async def info(conn: Connection, name: str) -> StreamState | None:
    """The state of a stream; None if the server says for certain that there is none (silence raises)."""
    try:
        return StreamState.of(await conn.api(f"STREAM.INFO.{name}", timeout_s=INFO_TIMEOUT_S))
    except BrokerRefused as e:
        if e.err_code == STREAM_NOT_FOUND:
            return None
        raise


async def create(conn: Connection, config: Mapping[str, Any]) -> StreamState:
    """Create a stream. One that another process has made meanwhile is fine, whatever its configuration.

    Raises BrokerRefused, with SUBJECTS_OVERLAP where another stream has the subjects.
    """
    name = config["name"]
    try:
        return StreamState.of(await conn.api(f"STREAM.CREATE.{name}", config))
    except BrokerRefused as e:
        if e.err_code != NAME_IN_USE:
            raise
        return StreamState.of(await conn.api(f"STREAM.INFO.{name}", timeout_s=INFO_TIMEOUT_S))


async def ensure(conn: Connection, identity: LogIdentity, *, replicas: int = 1) -> StreamState:
    """The log's stream, created if it does not exist, its configuration checked.

    Raises StreamMisconfigured; OtherIncarnation when a stream of another incarnation of the log has the subjects;
    ConfigurationError when a stream that is not evsync's has them; and what `Connection.api` raises.
    """
    state = await info(conn, stream_name(identity))
    if state is None:
        try:
            state = await create(conn, stream_config(identity, replicas=replicas))
        except BrokerRefused as e:
            if e.err_code == SUBJECTS_OVERLAP:
                raise await occupied(conn, identity) from e
            raise
    check_config(state.config, identity)
    return state


async def occupant(conn: Connection, identity: LogIdentity) -> StreamState | None:
    """The stream that captures the log's subjects, whatever its name, if there is one."""
    for name in await _capturing(conn, identity):
        if (state := await info(conn, name)) is not None:
            return state
    return None


async def fingerprint(conn: Connection, identity: LogIdentity) -> tuple[object, ...]:
    """What differs after anything was changed about the log's stream: made anew, edited, its subjects freed."""
    state = await info(conn, stream_name(identity))
    if state is not None:
        return state.created, json.dumps(state.config, sort_keys=True), conn.max_payload
    try:
        return tuple(await _capturing(conn, identity))
    except BrokerRefused:  # a relay needs no permission for this
        return ()


async def _capturing(conn: Connection, identity: LogIdentity) -> Sequence[str]:
    """The names of the streams that capture the log's subjects."""
    found = await conn.api("STREAM.NAMES", {"subject": subjects(identity)}, timeout_s=INFO_TIMEOUT_S)
    return found.get("streams") or ()


async def delete(conn: Connection, name: str) -> None:
    """Delete a stream with everything in it, consumers too. One that does not exist is fine."""
    try:
        await conn.api(f"STREAM.DELETE.{name}")
    except BrokerRefused as e:
        if e.err_code != STREAM_NOT_FOUND:
            raise


async def find(conn: Connection, service: str) -> list[StreamState]:
    """The streams of the service's logs, one per shard, in order of their names."""
    found: list[StreamState] = []
    offset = 0
    while True:
        page = await conn.api("STREAM.LIST", {"subject": f"evsync.{service}.>", "offset": offset})
        listed = page.get("streams") or []
        for state in map(StreamState.of, listed):
            identity = state.identity
            if identity is None or identity.service != service or state.is_restoring:
                continue
            if state.is_store or state.name == stream_name(identity):
                found.append(state)
        offset += len(listed)
        if not listed or offset >= int(page.get("total", 0)):
            return sorted(found, key=lambda s: s.name)


def check_owner(state: StreamState, identity: LogIdentity) -> None:
    """Raise ConfigurationError if a stream that has the log's subjects is not one of this log, of any incarnation."""
    other = state.identity
    if state.is_store:
        raise ConfigurationError(
            f"stream {state.name} is the event store of log {other.name if other else '?'}: it holds the only copy of "
            "its events, has no relay, and cannot be made anew from anything. Nothing was touched"
        )
    if other is None or other.name != identity.name or state.name != stream_name(other):
        raise ConfigurationError(
            f"stream {state.name} captures subjects of {subjects(identity)} and is not a stream of evsync: "
            "take them out of its subjects, or delete it"
        )


async def occupied(conn: Connection, identity: LogIdentity) -> OtherIncarnation | BrokerUnavailable:
    """What is wrong where a stream that is not the log's has its subjects, as an error that says what to do.

    Raises ConfigurationError as `check_owner`.
    """
    state = await occupant(conn, identity)
    if state is None:
        return BrokerUnavailable(f"the subjects {subjects(identity)} were taken a moment ago, and now they are free")
    check_owner(state, identity)
    incarnation = state.identity.incarnation if state.identity is not None else ""
    common = next((a.last for a in identity.ancestry if a.incarnation == incarnation), None)
    mend = (
        "If another service runs under this name, give one of them another name. If this store replaces the one that "
        "filled the stream, have it made anew: `evsync stream rebuild`"
        if common is None
        else f"It was restored from that one, up to position {common}. To keep what the stream holds beyond, restore "
        f"once more with `evsync restore --from-stream --incarnation {incarnation}`; to give it up: "
        "`evsync stream rebuild --allow-loss`"
    )
    return OtherIncarnation(
        f"the subjects {subjects(identity)} belong to stream {state.name}, of incarnation {incarnation} of log "
        f"{identity.name} (last position {state.last}); this store holds incarnation {identity.incarnation}. {mend}",
        stream=state.name,
        incarnation=incarnation,
        wanted=identity.incarnation,
        last=state.last,
    )
