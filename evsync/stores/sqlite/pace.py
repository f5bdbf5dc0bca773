"""Where an SQLite store makes its appends: on the event loop while that is quick, else in a thread."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evsync.records import Commit

COMMITS_AT_ONCE = 64
"""So many commits at a time are made on the event loop: a millisecond or two with a quick disk."""
EVENTS_AT_ONCE = 512
BYTES_AT_ONCE = 256 << 10
"""And no more than that in them: one save may hold 65,536 events, which take half a second."""
QUICK_S = 0.002
"""What an append may take there, smoothed over the last few."""
HICCUP_S = 0.004
"""For so long a slow one counts at most: four in a row are needed, the processor was merely elsewhere for one."""
SLOW_FOR_S = 1.0
"""For so long after that, all are made in the thread."""
STALL_S = 0.1
"""One append of this length is enough: the disk has stalled, and with it all that the event loop had to do."""
STALLED_AT_MOST_S = 60.0
"""Then they are made in the thread twice as long as after the stall before, if that is not long ago, up to this."""
APPENDS_BETWEEN_CHECKPOINTS = 1_000
BYTES_BETWEEN_CHECKPOINTS = 8 << 20
"""After so many, the write-ahead log is folded into the database in the thread: some 3,000 pages of it, 12 MB."""
_WEIGHT = 0.2


class Pace:
    """Watches how long appends on the event loop take. With `on_loop=False` there are none."""

    def __init__(self, *, on_loop: bool) -> None:
        self._not_before = 0.0 if on_loop else math.inf
        self._stalled_for_s = SLOW_FOR_S
        self._mean_s = 0.0
        self._allowed_bytes = self._appends = self._bytes = 0

    def allows(self, commits: Sequence[Commit], now: float) -> bool:
        """Whether these commits may be made on the event loop now. `now`, as all times here, is time.monotonic()."""
        if len(commits) > COMMITS_AT_ONCE or now < self._not_before:
            return False
        events = size_bytes = 0
        for commit in commits:
            for append in commit.appends:
                events += len(append.events)
                for event in append.events:
                    size_bytes += len(event.data)
        self._allowed_bytes = size_bytes
        return events <= EVENTS_AT_ONCE and size_bytes <= BYTES_AT_ONCE

    def took(self, began: float, ended: float) -> None:
        """The append that was allowed last was made there, and took that time."""
        self._appends += 1
        self._bytes += self._allowed_bytes
        seconds = ended - began
        self._mean_s += _WEIGHT * (min(seconds, HICCUP_S) - self._mean_s)
        if seconds > STALL_S:
            again = began < self._not_before + self._stalled_for_s
            self._stalled_for_s = min(2 * self._stalled_for_s, STALLED_AT_MOST_S) if again else SLOW_FOR_S
            self._mean_s, self._not_before = 0.0, ended + self._stalled_for_s
        elif self._mean_s > QUICK_S:
            self._mean_s, self._not_before = 0.0, ended + SLOW_FOR_S

    def checkpoint_due(self) -> bool:
        """Whether the write-ahead log should be folded into the database; says so once."""
        if self._appends < APPENDS_BETWEEN_CHECKPOINTS and self._bytes < BYTES_BETWEEN_CHECKPOINTS:
            return False
        self._appends = self._bytes = 0
        return True
