"""Pauses between attempts at something that fails for now."""

from __future__ import annotations

import asyncio


class Backoff:
    """Each pause is twice as long as the one before, up to the longest."""

    def __init__(self, shortest_s: float, longest_s: float) -> None:
        self._shortest_s, self._longest_s = shortest_s, longest_s
        self._next_s = shortest_s

    def reset(self) -> None:
        """Begin with the shortest again: something went well."""
        self._next_s = self._shortest_s

    def step(self) -> float:
        """How long to pause now, in seconds."""
        pause_s, self._next_s = self._next_s, min(self._next_s * 2, self._longest_s)
        return pause_s

    async def pause(self) -> None:
        """Sleep for one step."""
        await asyncio.sleep(self.step())
