"""How long to wait before the next attempt, and trying until what passes has passed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
Errors = tuple[type[Exception], ...]

_MOST_S = 5.0


def pause_s(failures: int) -> float:
    """Seconds to wait after this many failures in a row (from 1): doubling from 50 ms, and never twice the same.

    The jitter keeps followers that failed together from coming back together.
    """
    return min(_MOST_S, 0.05 * 2.0 ** min(failures - 1, 20)) * random.uniform(0.5, 1.0)


async def patiently(
    work: Callable[[], Awaitable[T]],
    tell: Callable[[Exception | None], None] = lambda error: None,
    *,
    passing: Errors,
    but: Errors = (),
) -> T:
    """What the work returns, once it raises nothing more that is `passing`; what is `but` is raised at once.

    `tell` hears each error that is waited out, and None when that is over.
    """
    failures = 0
    while True:
        try:
            done = await work()
        except but:
            raise
        except passing as e:
            failures += 1
            tell(e)
            await asyncio.sleep(pause_s(failures))
        else:
            if failures:
                tell(None)
            return done
