"""Segments: immutable stretches of a log, each a file that says what it is and where in the chain it belongs.

    8 bytes    EVSYNCS1
    4 bytes    length of the header, big-endian
    header     a msgpack map, see Header
    body       the events as columns (evsync.archive.columns), one zstd frame
    32 bytes   SHA-256 of all bytes before it: the segment's own

Each names its predecessor by that predecessor's SHA-256, so a segment that is missing, doubled, or in another's place
shows. Segments may be merged (see Header.stands_for), and the chain holds. docs/archive-format.md has every byte.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from hashlib import sha256
from typing import Any

import msgpack

from evsync.archive.columns import EventColumns, unpack_events
from evsync.archive.compression import compress, decompress
from evsync.errors import DecodingError
from evsync.records import Ancestor, Checkpoint, LogIdentity, StoredEvent

MAGIC = b"EVSYNCS1"
HASH_BYTES = 32
_FIXED_BYTES = len(MAGIC) + 4
MAX_HEADER_BYTES = 1 << 20
HEAD_BYTES = 16 << 10
"""So many bytes of a file hold its header nearly always."""
SUFFIX = ".segment"
_NAME = re.compile(r"(?P<log>[a-z0-9_.-]+)/(?P<incarnation>[A-Za-z0-9_-]+)/(?P<first>[0-9]{15})\.segment", re.ASCII)


@dataclass(frozen=True, slots=True)
class FollowerCheckpoint:
    """How far a reaction of the service had come when the segment was made."""

    follower: str
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class Header:
    """What a segment says of itself."""

    identity: LogIdentity
    """Of the log that it was made from."""
    first: int
    """Position of its first event."""
    count: int
    """How many events it holds: at the positions from `first` on, ending at the end of a commit."""
    previous: bytes
    """SHA-256 of the segment before it; empty for the first."""
    stands_for: tuple[bytes, ...]
    """Where it was merged from others, or written anew in the place of a lost one: the SHA-256 that its successor may
    name in place of its own."""
    earliest_us: int
    latest_us: int
    """The least and the greatest time of an event in it."""
    made_us: int
    """When it was made, by the clock of the process that made it."""
    checkpoints: tuple[FollowerCheckpoint, ...] = ()
    """Of the service's reactions: at or before the last event, never beyond."""

    @property
    def last(self) -> int:
        """Position of its last event."""
        return self.first + self.count - 1

    @property
    def name(self) -> str:
        """Where it is kept."""
        return segment_name(self.identity, self.first)


@dataclass(frozen=True, slots=True)
class Segment:
    """A whole segment, verified: its header, its own SHA-256, and its body, still packed."""

    header: Header
    sha256: bytes
    body: bytes

    def events(self) -> list[StoredEvent]:
        """Its events. Raises DecodingError for a body that is not what the header says, whatever its hash."""
        header = self.header
        found = unpack_events(decompress(self.body), header.first, header.count)
        if found[-1].remaining:
            raise DecodingError(f"the last event of {header.name} is not the last of its commit")
        return found

    def precedes(self, header: Header) -> bool:
        """Whether that one is its successor: the next position, and named as such."""
        return header.first == self.header.last + 1 and header.previous in (self.sha256, *self.header.stands_for)


def folder(log: str, incarnation: str) -> str:
    """Where the segments of a log's incarnation are: all of them, from position 1 on."""
    return f"{log}/{incarnation}/"


def segment_name(identity: LogIdentity, first: int) -> str:
    """Where the segment that begins at a position is kept. Names sort as positions do."""
    return f"{folder(identity.name, identity.incarnation)}{first:015d}{SUFFIX}"


def first_of(name: str) -> int | None:
    """The position at which a segment begins, by its name; None for what is no segment's name."""
    found = _NAME.fullmatch(name)
    return int(found["first"]) if found else None


def incarnation_of(name: str) -> str | None:
    """The incarnation that a segment belongs to, by its name; None for what is no segment's name."""
    found = _NAME.fullmatch(name)
    return found["incarnation"] if found else None


def encode_segment(
    identity: LogIdentity,
    events: EventColumns,
    previous: bytes,
    *,
    made_us: int,
    stands_for: Sequence[bytes] = (),
    checkpoints: Sequence[FollowerCheckpoint] = (),
) -> bytes:
    """The bytes of a segment of these events, which stand at consecutive positions and end at the end of a commit."""
    header = {
        "log": identity.name,
        "slots": identity.slots,
        "incarnation": identity.incarnation,
        "ancestry": [[a.incarnation, a.last] for a in identity.ancestry],
        "first": events.first,
        "last": events.last,
        "count": events.count,
        "previous": previous,
        "stands_for": list(stands_for),
        "earliest_us": events.earliest_us,
        "latest_us": events.latest_us,
        "made_us": made_us,
        "checkpoints": [[kept.follower, *astuple(kept.checkpoint)] for kept in checkpoints],
    }
    packed: bytes = msgpack.packb(header)
    content = b"".join([MAGIC, len(packed).to_bytes(4, "big"), packed, compress(events.pack())])
    return content + sha256(content).digest()


def decode_segment(name: str, content: bytes) -> Segment:
    """The segment kept under a name. Raises DecodingError that says what is wrong, if any bit of it is."""
    if len(content) < _FIXED_BYTES + HASH_BYTES or not content.startswith(MAGIC):
        raise DecodingError(
            f"it is no segment: {len(content):,} bytes that begin with {content[: len(MAGIC)]!r}"
            if content
            else "it is empty"
        )
    own = content[-HASH_BYTES:]
    view = memoryview(content)
    if sha256(view[:-HASH_BYTES]).digest() != own:
        raise DecodingError(f"its {len(content):,} bytes do not have the SHA-256 that they end with")
    header, end = _header(name, content)
    return Segment(header, own, bytes(view[end:-HASH_BYTES]))


def decode_header(name: str, head: bytes) -> Header:
    """The header alone, from the first HEAD_BYTES or more of a file; nothing says that the rest is whole.

    Raises DecodingError.
    """
    return _header(name, head)[0]


def _header(name: str, content: bytes) -> tuple[Header, int]:
    """The header, and where the body begins. Raises DecodingError, also for that of another segment."""
    size = int.from_bytes(content[len(MAGIC) : _FIXED_BYTES], "big")
    end = _FIXED_BYTES + size
    if not content.startswith(MAGIC) or size > MAX_HEADER_BYTES or len(content) < end:
        raise DecodingError("it does not begin as a segment does")
    try:
        header = _read_header(msgpack.unpackb(content[_FIXED_BYTES:end]))
    except Exception as e:
        raise DecodingError(f"its header cannot be read: {type(e).__name__}: {e}") from e
    if header.name != name:
        raise DecodingError(f"it is the segment that belongs at {header.name}")
    return header, end


def _read_header(fields: Mapping[str, Any]) -> Header:
    service, _, shard = fields["log"].partition(".")
    ancestry = tuple(Ancestor(incarnation, last) for incarnation, last in fields["ancestry"])
    header = Header(
        LogIdentity(service, shard, fields["incarnation"], fields["slots"], ancestry),
        fields["first"],
        fields["count"],
        fields["previous"],
        tuple(fields["stands_for"]),
        fields["earliest_us"],
        fields["latest_us"],
        fields["made_us"],
        tuple(FollowerCheckpoint(follower, Checkpoint(*rest)) for follower, *rest in fields["checkpoints"]),
    )
    if header.count < 1 or header.first < 1 or header.last != fields["last"]:
        raise ValueError(f"{header.count} events at {header.first} to {fields['last']}")
    return header
