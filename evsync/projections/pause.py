"""How long to wait before the next attempt."""

from __future__ import annotations

import random

_MOST_S = 5.0


def pause_s(failures: int) -> float:
    """Seconds to wait after this many failures in a row (from 1): doubling from 50 ms, and never twice the same.

    The jitter keeps followers that failed together from coming back together.
    """
    return min(_MOST_S, 0.05 * 2.0 ** min(failures - 1, 20)) * random.uniform(0.5, 1.0)
