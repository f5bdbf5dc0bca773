"""Ending tasks of asyncio."""

from __future__ import annotations

import asyncio
from typing import Any


async def end_task(task: asyncio.Future[Any]) -> None:
    """Cancel a task and return once it has ended. What it raises is of no interest any more."""
    task.cancel()
    # Not `await task`: its cancellation could not be told from that of whoever waits here.
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # seen: asyncio need not report it
