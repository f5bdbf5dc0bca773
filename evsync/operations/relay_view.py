"""A relay as its stream shows it: it runs in one process, and its stream is seen from everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from evsync.errors import BrokerError, BrokerUnavailable, ConfigurationError, EvsyncError, RelayError
from evsync.jetstream import streams
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.stream_settings import StreamState, check_config, stream_name
from evsync.jetstream.verification import check_state
from evsync.ports import Store
from evsync.records import LogIdentity

CONNECT_S = 2.0


@dataclass(frozen=True, slots=True)
class RelayView:
    """A log's stream beside the log."""

    stream: str
    state: Literal["current", "behind", "faulty", "unreachable"]
    head: int
    """Of the log."""
    confirmed: int | None = None
    """The last position in the stream; None if it cannot be told now."""
    reason: str | None = None
    """What stands in the way, if anything does."""

    @property
    def lag(self) -> int | None:
        """How many events of the log are not in the stream; None if it cannot be told now."""
        return None if self.confirmed is None else max(0, self.head - self.confirmed)


async def view_of(connection: Connection, store: Store) -> RelayView:
    """How far the relay of a store's log is. Raises StoreError; of a broker that is away the view tells."""
    name = stream_name(store.identity)
    try:
        await connection.ready(CONNECT_S)
        state = await streams.info(connection, name)
    except BrokerError as e:
        return RelayView(name, "unreachable", await store.head(), reason=str(e))
    head = await store.head()  # not from before: while a service writes, its stream may be further by now
    if state is None:
        return await _absent(connection, store.identity, head)
    problem = _problem(state, store.identity, head)
    return RelayView(
        name, "faulty" if problem else "behind" if state.last < head else "current", head, state.last, problem
    )


async def _absent(connection: Connection, identity: LogIdentity, head: int) -> RelayView:
    """There is no stream: because no relay has run yet, or because another stream has its subjects."""
    try:
        other: EvsyncError = await streams.occupied(connection, identity)
    except ConfigurationError as e:
        other = e
    name = stream_name(identity)
    if isinstance(other, BrokerUnavailable):
        return RelayView(name, "behind", head, 0, "no relay has made the stream yet")
    return RelayView(name, "faulty", head, 0, str(other))


def _problem(state: StreamState, identity: LogIdentity, head: int) -> str | None:
    try:
        check_config(state.config, identity)
        check_state(state, identity)
    except RelayError as e:
        return str(e)
    return f"the stream holds positions up to {state.last}, and the log ends at {head}" if state.last > head else None
