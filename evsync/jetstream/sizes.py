"""Whether an event fits into a broker's message, found out when it is saved."""

from __future__ import annotations

from collections.abc import Callable

from evsync.errors import EventTooLarge
from evsync.jetstream.messages import MessageFormat
from evsync.records import Append, LogIdentity, StoredEvent

DEFAULT_MAX_PAYLOAD = 1 << 20
"""What a nats-server takes unless it is told otherwise; assumed until one has been met."""


class SizeLimit:
    """Raises EventTooLarge for an append whose events no message of the log could carry.

    `limit` is asked each time: a broker tells its max_payload when it is connected. None: not known.
    """

    def __init__(self, identity: LogIdentity, limit: Callable[[], int | None]) -> None:
        self._identity, self._limit = identity, limit
        self._form = MessageFormat(identity.name)

    def __call__(self, append: Append) -> None:
        limit = self._limit() or DEFAULT_MAX_PAYLOAD
        for e in append.events:
            # Subject and headers of an ordinary event are far below this: nothing to measure. Some tags are written a
            # second time, as CloudEvents attributes, where a character may take three.
            if len(e.data) + 4 * len(e.meta or "") + 8_192 < limit and len(append.stream) <= 128:
                continue
            stored = StoredEvent(
                position=0, stream=append.stream, version=0, slot=append.slot, type=e.type, time_us=e.time_us,
                id=bytes(16), remaining=0, incarnation=self._identity.incarnation, data=e.data, meta=e.meta,
            )  # fmt: skip
            if (size := self._form.size_of(stored)) > limit:
                raise EventTooLarge(e.type, append.stream, size, limit)
