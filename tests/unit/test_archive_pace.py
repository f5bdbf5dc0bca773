"""What works beside others leaves them their share of the time, and does not idle where nobody else works."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from evsync.archive.pace import Pace

pytestmark = pytest.mark.anyio

STEPS, STEP_S = 20, 0.004
"""What is done here: 20 steps of 4 ms."""


async def _work(pace: Pace) -> float:
    """Do all steps; the seconds that took."""

    async def step() -> None:
        time.sleep(STEP_S)  # noqa: ASYNC251  (work that has the interpreter to itself)

    began = time.monotonic()
    for _ in range(STEPS):
        await pace.step(step())
    return time.monotonic() - began


@contextlib.asynccontextmanager
async def _busy() -> AsyncIterator[None]:
    async def spin() -> None:
        while True:
            until = time.process_time() + 0.001
            while time.process_time() < until:
                pass
            await asyncio.sleep(0)

    task = asyncio.create_task(spin())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_beside_other_work_steps_take_no_more_than_their_share() -> None:
    """Law: with a share of a fifth, work of s seconds takes 5·s at least while the process has other work."""
    async with _busy():
        assert await _work(Pace(0.2)) > STEPS * STEP_S / 0.2 * 0.95


async def test_where_nobody_else_works_there_is_hardly_a_rest() -> None:
    """A share of a hundredth does not make steps of 80 ms take 8 s in a process that has nothing else to do."""
    assert await _work(Pace(0.01)) < 2


async def test_who_has_all_of_the_time_never_rests() -> None:
    """A share of 1 is all of the time: other work goes on between two steps only where a step waits."""
    async with _busy():
        assert await _work(Pace(1.0)) < 1
