"""evsync's own events in a log: their streams and types, and what the events of a reaction say of it."""

from __future__ import annotations

from evsync.errors import DecodingError
from evsync.records import Checkpoint

SLOTS_STREAM = "evsync/slots"
"""The stream of a log's SLOT_CLOSED and SLOT_OPENED events."""
SLOT_CLOSED, SLOT_OPENED = "evsync.SlotClosed", "evsync.SlotOpened"
"""What follows the service in the types of the events that say where a slot's events go on, and came from."""

FENCES_STREAM = "evsync/fences"
"""The stream of a log's SHARD_RESTORED events."""
SHARD_RESTORED = "evsync.ShardRestored"
"""What follows the service in the type of the event by which a shard says that another one was restored beside it."""

CHECKPOINTS_EVENT = "evsync.CheckpointsStored"
"""What follows the service in the type of the event by which a store that has nothing but events keeps checkpoints."""
RESTORED_EVENT = "evsync.LogRestored"
"""What follows the service in the type of the event with which a restored log goes on."""
OWN_STREAMS = "evsync/"
"""What the ids of evsync's own streams begin with; no aggregate has such an id."""
RESTORES_STREAM = "evsync/restores"
"""The stream of a log's RESTORED_EVENTs."""

REACTION_TAG = "reaction"
"""The tag of a reaction's events that says which reaction it was, and its checkpoint (see `reaction_tag`)."""


def reaction_tag(follower: str, checkpoint: Checkpoint) -> str:
    """A reaction's checkpoint as a tag of the events that are stored in one commit with it.

    So a log alone tells how far its reactions had come at any position, and a restore brings that back.
    """
    c = checkpoint
    return f"{follower} {c.log} {c.incarnation} {c.position} {c.count} {c.digest:x}"


def checkpoint_of(tag: str) -> tuple[str, Checkpoint]:
    """The follower and the checkpoint in a `reaction_tag`. Raises DecodingError."""
    try:
        follower, log, incarnation, position, count, digest = tag.split(" ")
        return follower, Checkpoint(log, 0, incarnation, int(position), int(count), int(digest, 16))
    except ValueError as e:
        raise DecodingError(f"{tag[:200]!r} is not the tag of a reaction's event") from e


def is_control(type: str) -> bool:
    """Whether an event of this type is evsync's own: it takes a position and means nothing to handlers."""
    return type.partition(".")[2].startswith("evsync.")
