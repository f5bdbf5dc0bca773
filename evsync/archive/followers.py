"""How far a service's reactions had come at a place in its log, from what the log and its segments say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from evsync.archive.segments import FollowerCheckpoint
from evsync.codec.values import unpack
from evsync.control import CHECKPOINTS_EVENT, REACTION_TAG, checkpoint_of
from evsync.errors import DecodingError
from evsync.ports import EventStore
from evsync.records import Checkpoint, StoredEvent, decode_meta


class Followers:
    """Is told of events in the order of the log, and knows the checkpoints then."""

    def __init__(self) -> None:
        self._found: dict[str, dict[tuple[str, int], Checkpoint]] = defaultdict(dict)

    def at(self, checkpoints: Iterable[FollowerCheckpoint]) -> None:
        """So far they had come, as a segment or a mark says."""
        for kept in checkpoints:
            self._learn(kept)

    def see(self, event: StoredEvent) -> None:
        """The next event. Raises DecodingError for one that tells of a checkpoint and cannot be read."""
        for kept in checkpoints_in(event):
            self._learn(kept)

    def checkpoints(self) -> dict[str, list[Checkpoint]]:
        """By follower."""
        return {follower: list(kept.values()) for follower, kept in self._found.items()}

    def _learn(self, kept: FollowerCheckpoint) -> None:
        """Later in the log, or farther: what comes last counts, unless it is what a segment knew before its end."""
        checkpoint = kept.checkpoint
        known = self._found[kept.follower].get((checkpoint.log, checkpoint.group))
        if known is None or known.position <= checkpoint.position or known.incarnation != checkpoint.incarnation:
            self._found[kept.follower][checkpoint.log, checkpoint.group] = checkpoint


async def stored_checkpoints(store: EventStore, followers: Sequence[str]) -> list[FollowerCheckpoint]:
    """The checkpoints that a store keeps of these reactions."""
    return [FollowerCheckpoint(f, c) for f in followers for c in await store.checkpoints(f)]


def checkpoints_in(event: StoredEvent) -> list[FollowerCheckpoint]:
    """The checkpoints that were stored in one commit with the event, as far as it tells of them. Raises DecodingError.

    A reaction's answer has its checkpoint among its tags; a JetStream store keeps checkpoints in events (see
    evsync.jetstream.store.checkpoints).
    """
    if event.meta is not None and f'"{REACTION_TAG}":' in event.meta:
        try:
            return [FollowerCheckpoint(*checkpoint_of(decode_meta(event.meta).get(REACTION_TAG, "")))]
        except DecodingError:
            return []  # a tag of the user's own
    if event.type.endswith(CHECKPOINTS_EVENT):
        fields: dict[str, Any] = unpack(event.data)
        follower = event.stream.rpartition("/")[2]
        return [FollowerCheckpoint(follower, Checkpoint(**each)) for each in fields["checkpoints"]]
    return []
