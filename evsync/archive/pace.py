"""Working beside others: what takes the interpreter's time rests in between, as long as others of the process work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")

_LOOK = 0.25
"""For so much of the time of a step it is watched what else goes on."""
_IDLE = 0.15
"""A process that uses so little of a processor meanwhile has nothing to do that a rest would help."""


class Pace:
    """Rests after each step, so that all steps together take `share` of the time while the process has other work.

    Steps are short, for what waits for the interpreter waits for the end of a step. In a process that is idle there is
    hardly any rest.
    """

    def __init__(self, share: float) -> None:
        self._rest_per_s = 1 / share - 1

    async def step(self, work: Awaitable[T]) -> T:
        """Do one step, then rest."""
        began = time.monotonic()
        result = await work
        await self._rest((time.monotonic() - began) * self._rest_per_s)
        return result

    async def _rest(self, seconds: float) -> None:
        if seconds <= 0:
            return
        began, used = time.monotonic(), time.process_time()
        await asyncio.sleep(min(seconds, seconds / self._rest_per_s * _LOOK))
        looked = time.monotonic() - began
        if time.process_time() - used > looked * _IDLE:
            await asyncio.sleep(seconds - looked)
