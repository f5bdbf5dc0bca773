"""The end of a log as far as this process knows, and those who wait for it to move."""

from __future__ import annotations

import asyncio


class Tail:
    """Wakes whoever waits for a position, at once and only then; any number may wait."""

    def __init__(self, head: int = 0) -> None:
        self.head = head
        self._waiters: dict[asyncio.Future[None], int] = {}

    @property
    def awaited(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiters)

    def moved(self, head: int) -> None:
        """The log is known to reach to `head`. Knowledge that arrives late, after better knowledge, is ignored."""
        if head <= self.head:
            return
        self.head = head
        for future, after in self._waiters.items():
            if after < head:
                _wake(future)

    def failed(self, error: Exception) -> None:
        """Nothing more can be learned of the log: everybody who waits gets the error."""
        for future in self._waiters:
            if not future.done():
                future.set_exception(error)

    async def beyond(self, after: int, timeout_s: float) -> None:
        """Return as soon as the head is beyond `after`, or when the time has run out."""
        if self.head > after or timeout_s <= 0:
            return
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(timeout_s, _wake, future)
        self._waiters[future] = after
        try:
            await future
        finally:
            del self._waiters[future]
            timer.cancel()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
