"""Aggregates kept in memory, so that only what was stored behind them has to be read and folded.

An entry is the frozen state of a fold, never an object that somebody else holds: each load gets an aggregate of its
own, and what is done to it cannot come back. The store is asked for later events at every load, so that what other
processes write is seen. As with snapshots, state that would not come back as it is is not kept.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import NamedTuple

from evsync.codec.state import freeze_aggregate, thaw_aggregate
from evsync.domain import AnyAggregate
from evsync.errors import ConfigurationError

logger = logging.getLogger("evsync")

WORTH_EVENTS = 32
"""How many versions an aggregate must have come past its entry, or past nothing, before it is kept (again).

To keep a small aggregate costs as much as folding fifteen events, to take it out again as much as two. State that grows
with every event costs as much to keep as all of its events to fold. So short streams are left alone, and an aggregate
that each load finds one version further is kept anew by one load of 32 only.
"""


class _Entry(NamedTuple):
    cls: type[AnyAggregate]
    version: int
    state: bytes


class AggregateCache:
    """The aggregates that were loaded last, at most `size` of them."""

    def __init__(self, size: int, *, worth_events: int = WORTH_EVENTS) -> None:
        if size < 1:
            raise ConfigurationError(f"AggregateCache({size}): it must hold 1 aggregate or more")
        self._size, self._worth_events = size, worth_events
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._refused: set[type[AnyAggregate]] = set()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, stream: str, version: int | None = None) -> AnyAggregate | None:
        """A new object of the aggregate as it was kept, unless that is later than the version asked for."""
        entry = self._entries.get(stream)
        if entry is None or (version is not None and version < entry.version):
            return None
        self._entries.move_to_end(stream)
        return thaw_aggregate(entry.cls, entry.state)

    def put(self, stream: str, aggregate: AnyAggregate) -> None:
        """Keep an aggregate that was just folded and that nobody has touched yet, if that is worth it."""
        cls, entry = type(aggregate), self._entries.get(stream)
        gained = aggregate.version - (entry.version if entry is not None else 0)
        if gained < self._worth_events or cls in self._refused:
            return
        try:
            state = freeze_aggregate(aggregate)
        except Exception as e:  # comparing state runs users' code; whatever is wrong with it, the load has succeeded
            # Most often it is the class that has such state: trying at each load would double what the load costs.
            self._refused.add(cls)
            logger.warning("no more aggregates of %s are cached, whose state cannot be kept: %s", cls.__qualname__, e)
            return
        self._entries[stream] = _Entry(cls, aggregate.version, state)
        self._entries.move_to_end(stream)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)
