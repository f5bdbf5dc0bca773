"""One holder per stream: who comes later waits, in the order of coming."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence


class StreamLocks:
    """Locks by name, for the tasks of one event loop. A name costs nothing while nobody holds it."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}

    def acquire_now(self, streams: Sequence[str]) -> bool:
        """Hold all of these, if nobody holds any of them; else none."""
        queues = self._queues
        for stream in streams:
            if stream in queues:
                return False
        for stream in streams:
            queues[stream] = deque()
        return True

    async def acquire(self, streams: Sequence[str]) -> None:
        """Hold all of these, or none when cancelled. Give them sorted: then two callers cannot wait for each other."""
        held: list[str] = []
        try:
            for stream in streams:
                await self._acquire(stream)
                held.append(stream)
        except BaseException:
            self.release(held)
            raise

    async def _acquire(self, stream: str) -> None:
        queue = self._queues.get(stream)
        if queue is None:
            self._queues[stream] = deque()
            return
        turn = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            # Cancelled in the very moment in which the turn came: pass it on, or everybody behind waits for ever.
            if not turn.cancelled():
                self.release((stream,))
            raise

    def release(self, streams: Sequence[str]) -> None:
        """Let the next one of each have it."""
        for stream in streams:
            queue = self._queues[stream]
            while queue:
                turn = queue.popleft()
                if not turn.done():
                    turn.set_result(None)
                    break
            else:
                del self._queues[stream]
