"""Where an SQLite store makes its appends: on the event loop while that is quick, else in a thread."""

from __future__ import annotations

import math
import time

COMMITS_AT_ONCE = 64
"""So many commits at a time are made on the event loop: a millisecond or two with a quick disk."""
QUICK_S = 0.002
"""What an append may take there, smoothed over the last few: a single hiccup of the disk changes nothing."""
SLOW_FOR_S = 1.0
"""For so long after that, all are made in the thread."""
COMMITS_BETWEEN_CHECKPOINTS = 1_000
"""After so many, the write-ahead log is folded into the database in the thread: some 3,000 pages of it, 12 MB."""
_WEIGHT = 0.2


class Pace:
    """Watches how long appends on the event loop take. With `on_loop=False` there are none."""

    def __init__(self, *, on_loop: bool) -> None:
        self._not_before = 0.0 if on_loop else math.inf
        self._mean_s = 0.0
        self._commits = 0

    def allows(self, commits: int) -> bool:
        """Whether so many commits may be made on the event loop now."""
        return commits <= COMMITS_AT_ONCE and time.monotonic() >= self._not_before

    def took(self, seconds: float, commits: int) -> None:
        """An append of so many commits was made there and took so long."""
        self._commits += commits
        self._mean_s += _WEIGHT * (seconds - self._mean_s)
        if self._mean_s > QUICK_S:
            self._mean_s, self._not_before = 0.0, time.monotonic() + SLOW_FOR_S

    def checkpoint_due(self) -> bool:
        """Whether the write-ahead log should be folded into the database; says so once."""
        if self._commits < COMMITS_BETWEEN_CHECKPOINTS:
            return False
        self._commits = 0
        return True
