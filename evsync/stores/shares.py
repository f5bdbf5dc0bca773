"""Reading a log for one worker: what a store does to leave out the events of groups that others have."""

from __future__ import annotations

from collections.abc import Sequence

from evsync.ports import Share, Stretch
from evsync.records import OWN_STREAMS, StoredEvent

OWN_RANGE = (OWN_STREAMS, OWN_STREAMS[:-1] + chr(ord(OWN_STREAMS[-1]) + 1))
"""Between which the ids of evsync's own streams are, the second excluded, where texts are ordered by their bytes."""


class ReadsByShare:
    """Fetches the events of a share by one query, and counts the others by another. Implements ReadsShares."""

    async def read_share(self, after: int, limit: int, share: Share) -> Stretch:
        """See ReadsShares."""
        events = await self._of_share(after, max(limit, 1), share)
        if not events or events[-1].remaining:  # the end of that commit was trimmed
            return Stretch(())
        # Counted afterwards, and by what they are rather than as the rest: an event that a trim took away before it
        # was fetched, or that neither query has, makes the sum too small.
        end = events[-1].position
        others = await self._others(after, end, share)
        return Stretch(events, others, share) if len(events) + others == end - after else Stretch(())

    async def _of_share(self, after: int, limit: int, share: Share) -> Sequence[StoredEvent]:
        """The events of the share behind a position, up to the end of the commit `limit` positions on, or of the last
        one before an event of evsync's own; the event at that end too."""
        raise NotImplementedError

    async def _others(self, after: int, end: int, share: Share) -> int:
        """How many events between two positions are not of the share, neither place counted."""
        raise NotImplementedError
