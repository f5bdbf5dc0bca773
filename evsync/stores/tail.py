"""The end of a log as far as this process knows, and those who wait for it to move."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from evsync.tasks import end_task


class Tail:
    """Wakes whoever waits for a position, at once and only then; any number may wait."""

    def __init__(self, head: int = 0, watch: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """`watch` looks for what others append: it is begun, and begun anew once it has ended, when somebody waits."""
        self.head = head
        self._watch = watch
        self._watching: asyncio.Task[None] | None = None
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
        if self._watch is not None and (self._watching is None or self._watching.done()):
            self._watching = loop.create_task(self._watch())
        future: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(timeout_s, _wake, future)
        self._waiters[future] = after
        try:
            await future
        finally:
            del self._waiters[future]
            timer.cancel()

    async def close(self, error: Exception) -> None:
        """End the watch; everybody who waits gets the error."""
        self.failed(error)
        if self._watching is not None:
            await end_task(self._watching)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
