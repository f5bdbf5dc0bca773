"""Where an SQLite store makes its appends: on the event loop while that is quick, else in a thread."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from evsync.records import Commit

COMMITS_AT_ONCE = 64
"""So many commits at a time are made on the event loop: a millisecond or two with a quick disk."""
EVENTS_AT_ONCE = 512
BYTES_AT_ONCE = 256 << 10
"""And no more than that in them: one save may hold 65,536 events, which take half a second."""
QUICK_S = 0.002
"""What an append may take there, smoothed over the last few: a single hiccup of the disk changes nothing."""
SLOW_FOR_S = 1.0
"""For so long after that, all are made in the thread."""
COMMITS_BETWEEN_CHECKPOINTS = 1_000
BYTES_BETWEEN_CHECKPOINTS = 8 << 20
"""After so many, the write-ahead log is folded into the database in the thread: some 3,000 pages of it, 12 MB."""
_WEIGHT = 0.2


class Pace:
    """Watches how long appends on the event loop take. With `on_loop=False` there are none."""

    def __init__(self, *, on_loop: bool) -> None:
        self._not_before = 0.0 if on_loop else math.inf
        self._mean_s = 0.0
        self._commits = self._bytes = 0

    def allows(self, commits: Sequence[Commit]) -> bool:
        """Whether these commits may be made on the event loop now."""
        if len(commits) > COMMITS_AT_ONCE or time.monotonic() < self._not_before:
            return False
        events, size_bytes = size_of(commits)
        return events <= EVENTS_AT_ONCE and size_bytes <= BYTES_AT_ONCE

    def took(self, seconds: float, commits: Sequence[Commit]) -> None:
        """An append of these commits was made there and took so long."""
        self._commits += len(commits)
        self._bytes += size_of(commits)[1]
        self._mean_s += _WEIGHT * (seconds - self._mean_s)
        if self._mean_s > QUICK_S:
            self._mean_s, self._not_before = 0.0, time.monotonic() + SLOW_FOR_S

    def checkpoint_due(self) -> bool:
        """Whether the write-ahead log should be folded into the database; says so once."""
        if self._commits < COMMITS_BETWEEN_CHECKPOINTS and self._bytes < BYTES_BETWEEN_CHECKPOINTS:
            return False
        self._commits = self._bytes = 0
        return True


def size_of(commits: Sequence[Commit]) -> tuple[int, int]:
    """How many events, and how many bytes of event data, are in commits."""
    events = size_bytes = 0
    for commit in commits:
        for append in commit.appends:
            events += len(append.events)
            for event in append.events:
                size_bytes += len(event.data)
    return events, size_bytes
