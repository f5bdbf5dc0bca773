"""Where the logs of a service are found on NATS: one stream per shard, each made by that shard's relay."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from evsync.errors import BrokerError
from evsync.jetstream import streams
from evsync.jetstream.client.backoff import Backoff
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.consumer import JetStreamReader, ReaderPolicy
from evsync.jetstream.stream_settings import StreamState
from evsync.ports import LogReader

log = logging.getLogger("evsync.jetstream")

_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 0.1, 2.0


class JetStreamSource:
    """The logs of one service, as its relays publish them. Implements LogSource.

    `waiting_for` says why there is no reader yet, for people; "" if nothing is waited for.
    """

    def __init__(self, conn: Connection, service: str, policy: ReaderPolicy | None = None) -> None:
        self.service = service
        self.waiting_for = ""
        self._conn, self._policy = conn, policy

    async def readers(self) -> Sequence[LogReader]:
        """A new reader per stream of the service. Waits for as long as there is none, or no broker: until cancelled.

        The stream says which incarnation of its log it mirrors; the readers accept no other.
        """
        backoff = Backoff(_SHORTEST_WAIT_S, _LONGEST_WAIT_S)
        while True:
            try:
                if not self._conn.connected:
                    self._wait_because(f"NATS at {self._conn.settings.shown}: {self._conn.problem}")
                    await self._conn.ready(_LONGEST_WAIT_S)
                    backoff.reset()
                found = await streams.find(self._conn, self.service)
            except BrokerError as e:
                self._wait_because(str(e))
            else:
                if found:
                    self._wait_because("")
                    return [self._reader(state) for state in found]
                self._wait_because(
                    f"there is no stream of service {self.service!r} at {self._conn.settings.shown}: it appears when "
                    "that service runs with its relay"
                )
            await backoff.pause()

    def _reader(self, state: StreamState) -> JetStreamReader:
        identity = state.identity
        assert identity is not None  # `find` gives no others
        return JetStreamReader(
            self._conn, state.name, identity.name, identity.incarnation, self._policy, ancestry=identity.ancestry
        )

    def _wait_because(self, reason: str) -> None:
        if reason and reason != self.waiting_for:
            log.info("the events of service %s: %s", self.service, reason)
        self.waiting_for = reason
