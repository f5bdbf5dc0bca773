"""Checkpoints of reactions in a stream that is the store: events of a stream of their own.

JetStream has no row to update beside a message, and nothing but messages of one stream is stored together. So a commit
with a checkpoint has one event more, its last: in the follower's own stream, holding all checkpoints of that follower.
Everything else follows from what events have anyway: it is stored with its commit or not at all, of two processes that
go on from the same checkpoint one conflicts, the latest is found like the end of any stream, and backups hold it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from time import time_ns

from evsync.codec.values import pack, unpack
from evsync.control import CHECKPOINTS_EVENT, OWN_STREAMS
from evsync.errors import DecodingError
from evsync.records import Append, Checkpoint, Commit, LogIdentity, NewEvent, StoredEvent, event_id
from evsync.sharding.slots import slot_of

PREFIX = f"{OWN_STREAMS}checkpoints/"
"""What the ids of their streams begin with."""

_NAMES = tuple(field.name for field in fields(Checkpoint))

Checkpoints = Mapping[tuple[str, int], Checkpoint]
"""All checkpoints of one follower, by log and group."""


def stream_of(follower: str) -> str:
    """The id of the stream that holds the follower's checkpoints."""
    return PREFIX + follower


def is_reserved(stream: str) -> bool:
    """Whether an id is kept for checkpoints."""
    return stream.startswith(PREFIX)


def with_checkpoint(commit: Commit, stored: Checkpoints, version: int, service: str, slots: int) -> Commit:
    """The commit with its checkpoint as a last event, at the end of the follower's stream, which is at `version`."""
    assert commit.follower is not None
    assert commit.checkpoint is not None
    stream, c = stream_of(commit.follower), commit.checkpoint
    data = pack({"checkpoints": [_fields(each) for each in ({**stored, (c.log, c.group): c}).values()]})
    event = NewEvent(f"{service}.{CHECKPOINTS_EVENT}", time_ns() // 1000, data, None)
    return commit._replace(appends=(*commit.appends, Append(stream, slot_of(stream, slots), version, [event])))


def event_of(
    follower: str, kept: Iterable[Checkpoint], identity: LogIdentity, position: int, version: int, command: bytes
) -> StoredEvent:
    """The event that holds all checkpoints of a follower, as a commit of its own."""
    stream = stream_of(follower)
    return StoredEvent(
        position=position,
        stream=stream,
        version=version,
        slot=slot_of(stream, identity.slots),
        type=f"{identity.service}.{CHECKPOINTS_EVENT}",
        time_us=time_ns() // 1000,
        id=event_id(command, 0),
        remaining=0,
        incarnation=identity.incarnation,
        data=pack({"checkpoints": [_fields(c) for c in kept]}),
        meta=None,
    )


def read(event: StoredEvent) -> Checkpoints:
    """The checkpoints in the last event of a follower's stream."""
    try:
        found = [Checkpoint(**fields) for fields in unpack(event.data)["checkpoints"]]
    except (KeyError, TypeError) as e:
        raise DecodingError(f"the event at position {event.position} does not hold checkpoints: {e}") from e
    return {(c.log, c.group): c for c in found}


def _fields(c: Checkpoint) -> dict[str, str | int]:
    return {name: getattr(c, name) for name in _NAMES}
