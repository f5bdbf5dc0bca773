"""One save per stream at a time, in the order of arrival; whoever is cancelled stands in nobody's way."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from evsync.aggregates.stream_locks import StreamLocks

pytestmark = pytest.mark.anyio
DEADLINE_S = 10


async def test_each_stream_is_held_by_one_and_cancelled_waiters_stop_nobody() -> None:
    """Callers want one, two or three streams, and many are cancelled at any moment: all others get their turn."""
    chance, locks = random.Random(7), StreamLocks()
    held: set[str] = set()
    done: list[int] = []

    async def hold(number: int, streams: list[str]) -> None:
        if not locks.acquire_now(streams):
            await locks.acquire(streams)
        try:
            assert held.isdisjoint(streams)
            held.update(streams)
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            done.append(number)
        finally:
            held.difference_update(streams)
            locks.release(streams)

    async with asyncio.timeout(DEADLINE_S):
        tasks = []
        for number in range(600):
            streams = sorted(chance.sample(["a", "b", "c", "d"], chance.randint(1, 3)))
            tasks.append(asyncio.create_task(hold(number, streams)))
            if chance.random() < 0.4:
                chance.choice(tasks[-20:]).cancel()
            if chance.random() < 0.5:
                await asyncio.sleep(0)
        found = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(outcome) for outcome in found} == {type(None), asyncio.CancelledError}
    assert len(done) > 200
    assert locks.acquire_now(["a", "b", "c", "d"])


async def test_who_is_cancelled_as_its_turn_comes_passes_it_on() -> None:
    """Between the wake-up and the first step of the woken task."""
    locks = StreamLocks()
    assert locks.acquire_now(["a"])
    second, third = (asyncio.create_task(locks.acquire(["a"])) for _ in range(2))
    await asyncio.sleep(0)
    locks.release(["a"])
    second.cancel()
    async with asyncio.timeout(DEADLINE_S):
        with contextlib.suppress(asyncio.CancelledError):
            await second
        await third


async def test_who_is_cancelled_while_it_waits_for_a_second_stream_gives_the_first_back() -> None:
    """All of them, or none."""
    locks = StreamLocks()
    assert locks.acquire_now(["b"])
    waiting = asyncio.create_task(locks.acquire(["a", "b"]))
    await asyncio.sleep(0)
    assert not locks.acquire_now(["a"])
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    assert locks.acquire_now(["a"])
