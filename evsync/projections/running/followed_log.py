"""One log of a projection: its checkpoints as they are stored, and how the last attempts to go on went."""

from __future__ import annotations

import time
from collections.abc import Iterable

from evsync.ports import LogReader, Share, Stretch
from evsync.projections.models.claims import Holding
from evsync.projections.running.barrier import IsApplied, Reach
from evsync.projections.running.continuity import check_batch, check_history
from evsync.projections.running.feed import Feed
from evsync.records import Checkpoint, service_of

QUICK_S = 0.05
"""A batch that was full and took less is followed by a larger one. Where handlers take their time batches stay small,
so that others need not wait."""
NEARLY = 0.9
"""Where events are left out, a stretch may turn out a little shorter than it would be to be as full as the last one."""


class FollowedLog:
    """What a runner knows of one of its logs while it holds groups of the projection."""

    def __init__(self, reader: LogReader, batch: int, growth: int, groups: int) -> None:
        """`groups` is how many the projection has."""
        self.name, self.reader = reader.log, reader
        self.service = service_of(reader.log)
        self.feed = Feed(reader, batch, self.report)
        self._batch, self._growth, self._groups = batch, growth, groups
        self._began = 0.0
        """When the batch under way was begun."""
        self.checkpoints: dict[int, Checkpoint] = {}
        """By group, of the groups that are held."""
        self.reason: str | None = None
        """What stands in the way, if anything does."""
        self.failures = 0
        """In a row, of any kind: how long to pause."""
        self.attempts = 0
        """How often an event was to blame since the log last went past `culprit`. Counted across rebuilds of a model in
        memory, which goes through everything before the culprit again."""
        self.culprit = 0
        self.condemned: dict[int, str] = {}
        """Positions of events that have failed for the last time and are to be parked, with the reason. Kept for a
        model in memory, which meets them again when it begins anew."""
        self.rewound = False
        """Whether reading has to go on at an earlier place since this was last set to False: a group was taken."""
        self._certain: frozenset[int] = frozenset()
        """Groups whose checkpoints here are those of the last batch, or what was stored when they were taken."""

    @property
    def position(self) -> int:
        """The least of the checkpoints: where reading goes on."""
        return min((c.position for c in self.checkpoints.values()), default=0)

    @property
    def incarnation(self) -> str:
        """Of what was applied up to `position`; "" before anything was."""
        least = min(self.checkpoints.values(), key=lambda c: c.position, default=None)
        return least.incarnation if least is not None else ""

    def fits(self, after: int, stretch: Stretch) -> bool:
        """Whether what was read behind `after` is still what comes next: groups may have been taken since."""
        share = stretch.share
        return self.position == after and (share is None or self.checkpoints.keys() <= share.groups)

    def check(self, stretch: Stretch) -> None:
        """Raise unless a batch goes on where the groups are: see `check_batch`, for the one that is furthest behind.

        OtherIncarnation too for one that is farther than the log was restored to, though others are not.
        """
        self._began = time.monotonic()
        check_batch(self.name, self.position, self.incarnation, stretch.events, stretch.left_out)
        for c in self.checkpoints.values():
            check_history(self.reader, c.position, c.incarnation)

    def hold(self, holding: Holding) -> None:
        """From now on these groups are held.

        Checkpoints of groups that were taken since are those of the holding (none: at the beginning); of the others
        this object knows better, and of groups that are gone it forgets them.
        """
        before = self.position
        stored = {c.group: c for c in holding.checkpoints if c.log == self.name}
        self.checkpoints = {
            group: self.checkpoints[group]
            if group in self._certain
            else stored.get(group) or Checkpoint(self.name, group, "", 0)
            for group in holding.tokens
        }
        self._certain = held = frozenset(holding.tokens)
        self.feed.share = Share(held, self._groups) if len(held) < self._groups else None
        self.rewound = self.rewound or self.position < before

    def forget(self) -> None:
        """Of whatever is held from now on, this object knows nothing better than the holding."""
        self._certain = frozenset()

    async def next(self, applied: IsApplied, timeout_s: float) -> tuple[Stretch, Reach]:
        """What of the log can be applied next; nothing when none came in time, or a barrier stands before it."""
        return await self.feed.up_to_barrier(self.position, self.incarnation, applied, timeout_s, timeout_s)

    async def now(self, applied: IsApplied, limit: int | None) -> tuple[Stretch, Reach]:
        """The same, of what is there, and without reading ahead."""
        return await self.feed.now(self.position, self.incarnation, applied, limit)

    def moved(self, checkpoints: Iterable[Checkpoint], *, lasting: bool) -> None:
        """A batch was applied, and these are the checkpoints now. `lasting`: see ModelSession."""
        begin, self.checkpoints = self.position, {c.group: c for c in checkpoints}
        if lasting:
            self.condemned = self.due
        self.failures, self.reason = 0, None
        if time.monotonic() - self._began > QUICK_S:
            self.feed.limit = max(self.feed.limit // 2, self._batch)
        elif self.position - begin >= NEARLY * self.feed.span:
            self.feed.limit = min(self.feed.limit * 2, self._batch * self._growth)
        if self.position >= self.culprit:
            self.attempts = self.culprit = 0

    def failed(self, reason: str, culprit: int = 0) -> None:
        """An attempt failed; `culprit` is the position of the event that is to blame, if one is."""
        self.failures += 1
        self.reason = reason
        if culprit:
            self.attempts += 1
            self.culprit = max(self.culprit, culprit)

    @property
    def due(self) -> dict[int, str]:
        """Those of the condemned that are still ahead."""
        return {p: reason for p, reason in self.condemned.items() if p > self.position} if self.condemned else {}

    def condemn(self, position: int, reason: str) -> None:
        """This event will not be tried again."""
        self.condemned[position] = reason
        self.failures = self.attempts = self.culprit = 0

    def report(self, reason: str | None) -> None:
        """What stands in the way of reading."""
        self.reason = reason
