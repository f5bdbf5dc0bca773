"""The plain records that travel between the parts: frozen, without behaviour that needs a technology.

What is made for every event or every save (`StoredEvent`, `NewEvent`, `Append`, `Commit`) is a NamedTuple rather than a
dataclass: a database row or a broker message becomes one in a quarter of the time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from os import urandom
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from evsync.errors import ConfigurationError, DecodingError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
STORE_FILE_ID = 0x65767379
"""'evsy' in the header of an SQLite file that is an event store: what `file store.db` shows, and how it is told from
other databases."""
MAX_STREAM_ID_BYTES = 512
"""Length limit of a stream id in UTF-8. Escaped for a subject it may triple, and a NATS protocol line ends at 4,096."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a log. Has no `<`: positions of two logs cannot be compared.

    `str()` and `parse()` carry it in an HTTP header.
    `number` counts from 1; 0 is the place before the first event.
    """

    log: str
    incarnation: str
    number: int

    def __str__(self) -> str:
        return f"{self.log}:{self.incarnation}:{self.number}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """The position that `str()` wrote. Raises ValueError, with the text, for anything else."""
        parts = text.strip().split(":")
        if len(parts) != 3 or not all(parts) or not (parts[2].isascii() and parts[2].isdigit()) or len(parts[2]) > 19:
            raise ValueError(f"{text[:200]!r} is not a position; one looks like 'users.main:3f9a2b1c7d5e:42'")
        return cls(parts[0], parts[1], int(parts[2]))


class StoredEvent(NamedTuple):
    """An event as a log holds it, data still encoded. The same whether it was read from a store or from JetStream."""

    position: int
    """Place in the log: 1, 2, 3, …"""
    stream: str
    """Id of the aggregate, as text."""
    version: int
    """Place in the stream: 1, 2, 3, …"""
    slot: int
    """Hash partition of the stream id (see evsync.sharding.slots)."""
    type: str
    """`service.Aggregate.Event`."""
    time_us: int
    """Microseconds since 1970-01-01 UTC, by the clock of the process that decided."""
    id: bytes
    """16 bytes: the commit's command id with the event's index in the low 16 bits."""
    remaining: int
    """How many events of the same commit follow: 0 at the commit's end."""
    incarnation: str
    """Of the log, when the event was appended."""
    data: bytes
    """msgpack map of field names to values."""
    meta: str | None
    """JSON object of text tags in ASCII, or None: correlation_id, causation_id, actor, schema, …"""


as_stored_event: Callable[[Sequence[Any]], StoredEvent] = partial(tuple.__new__, StoredEvent)
"""`StoredEvent._make` without its check of the length, in three quarters of its time: for rows of eleven columns."""

Change = tuple[int, int, str, int, bytes, str | None]
"""What a fold needs of an event: its position, version, type, time_us, data and meta (see StoredEvent).

A plain tuple, as a database gives it: replay reads hundreds of thousands of these a second, and a StoredEvent has twice
as many columns.
"""


def change_of(e: StoredEvent) -> Change:
    """What a fold needs of an event."""
    return e.position, e.version, e.type, e.time_us, e.data, e.meta


class NewEvent(NamedTuple):
    """An event on its way into a store: what the store does not decide itself."""

    type: str
    time_us: int
    data: bytes
    meta: str | None


class Append(NamedTuple):
    """New events of one stream. `expected_version` is the version they were decided at, 0 for a new stream.

    With `versions`, one for each event, these are their places in the stream: 0 or more, in any order, gaps or not.
    Then nothing is expected of the stream: a version that is taken is the only Conflict, and `expected_version` is what
    that error says was expected. It is how other libraries' recorders write; a commit names a stream in one way only.
    """

    stream: str
    slot: int
    expected_version: int
    events: Sequence[NewEvent]
    versions: Sequence[int] | None = None

    @property
    def places(self) -> Sequence[int]:
        """The version of each event."""
        if self.versions is not None:
            return self.versions
        return range(self.expected_version + 1, self.expected_version + 1 + len(self.events))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far one follower (a projection, a reaction) has come in one log, for one group of slots.

    `count` and `digest` are the number and the additive hash (mod 2**64) of the events that were applied.
    """

    log: str
    group: int
    incarnation: str
    position: int
    count: int = 0
    digest: int = 0


class Commit(NamedTuple):
    """What one save appends: all of its events, and its checkpoint if it has one, or nothing.

    `command` is 16 bytes whose last two are zero (see `new_command`). A reaction's `checkpoint` is stored under
    `follower` in the same transaction; a commit may consist of a checkpoint alone. `after` is the position that the
    stored checkpoint must have for the commit to be accepted (else Conflict): two processes cannot react twice.
    """

    command: bytes
    appends: Sequence[Append]
    follower: str | None = None
    checkpoint: Checkpoint | None = None
    after: int | None = None

    @property
    def size(self) -> int:
        """How many events the commit holds."""
        appends = self.appends
        return len(appends[0].events) if len(appends) == 1 else sum(len(a.events) for a in appends)


class Snapshot(NamedTuple):
    """The state of one aggregate after some of its events, kept to read the others only."""

    stream: str
    version: int
    """Of the aggregate: the events up to here are in it."""
    type: str
    """`service.Aggregate`."""
    shape: str
    """Of the aggregate's class when it was taken: void when the class has another by now."""
    latest_us: int
    """The latest time of any event in it, as StoredEvent.time_us."""
    commands: bytes
    """Ids of the last commands in it, 16 bytes each, oldest first."""
    state: bytes
    """The aggregate's attributes (see evsync.codec.state)."""


class Ancestor(NamedTuple):
    """An earlier incarnation of a restored log, and the last position that the log has of it."""

    incarnation: str
    last: int


@dataclass(frozen=True, slots=True)
class LogIdentity:
    """Which log this is. The name is `service.shard`; the incarnation changes when a log is restored from a backup."""

    service: str
    shard: str
    incarnation: str
    slots: int = 256
    ancestry: tuple[Ancestor, ...] = ()
    """Where it was restored from, oldest first. Empty for a log that never was."""

    @property
    def name(self) -> str:
        return f"{self.service}.{self.shard}"

    def at(self, number: int) -> Position:
        """The position `number` of this log."""
        return Position(self.name, self.incarnation_at(number), number)

    def incarnation_at(self, number: int) -> str:
        """The incarnation that the event at a position was appended in."""
        return incarnation_at(self.incarnation, self.ancestry, number)

    def restored(self, at: int, incarnation: str) -> LogIdentity:
        """The log that is made when this one is restored to a position."""
        ancestry = [*self.ancestry, Ancestor(self.incarnation, at)]
        return replace(
            self, incarnation=incarnation, ancestry=tuple(Ancestor(a, min(last, at)) for a, last in ancestry)
        )


def service_of(name: str) -> str:
    """Whose log, or type of events, that is: their names begin with the service's."""
    return name.partition(".")[0]


def incarnation_at(incarnation: str, ancestry: Sequence[Ancestor], number: int) -> str:
    """The incarnation that the event at a position of a log with this ancestry was appended in."""
    return next((a.incarnation for a in ancestry if number <= a.last), incarnation) if ancestry else incarnation


def new_command() -> bytes:
    """A fresh command id: 112 random bits, and two zero bytes for the event's index."""
    return urandom(14) + b"\0\0"


def new_incarnation() -> str:
    """A fresh identity of a log: 12 hexadecimal digits."""
    return uuid4().hex[:12]


def event_id(command: bytes, index: int) -> bytes:
    """The id of event `index` (0, 1, …, at most 65,535) of the commit of `command`."""
    return command[:14] + index.to_bytes(2, "big")


def command_of(id: bytes) -> bytes:
    """The id of the command whose commit the event belongs to."""
    return id[:14] + b"\0\0"


def before_commit(event: StoredEvent) -> int:
    """The position before the event's commit: where its log would end without it."""
    return event.position - int.from_bytes(event.id[14:]) - 1


def event_uuid(id: bytes) -> UUID:
    """The event id as people and other languages see it."""
    return UUID(bytes=id)


def to_datetime(time_us: int) -> datetime:
    """The aware UTC datetime of a stored time."""
    return EPOCH + timedelta(microseconds=time_us)


def to_time_us(time: datetime) -> int:
    """A stored time of an aware datetime. Exact: no float is involved."""
    delta = time - EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def encode_meta(tags: Mapping[str, str] | None) -> str | None:
    """Tags as they are stored: a JSON object in ASCII with sorted keys, or None for none."""
    return json.dumps(dict(tags), separators=(",", ":"), sort_keys=True) if tags else None


def decode_meta(meta: str | None) -> dict[str, str]:
    """The tags that `encode_meta` wrote. Raises DecodingError for anything else."""
    if not meta:
        return {}
    try:
        tags = json.loads(meta)
    except (ValueError, RecursionError) as e:
        raise DecodingError(f"{meta[:200]!r} are not an event's tags: {e}") from e
    if not isinstance(tags, dict):
        raise DecodingError(f"{meta[:200]!r} are not an event's tags: a JSON object was expected")
    return tags


class History(NamedTuple):
    """What a store has of a slot's events, own and imported: how many, and the sum of their `id_sum`."""

    length: int = 0
    digest: int = 0

    def with_ids(self, ids: Iterable[bytes]) -> History:
        """The history with these events behind it."""
        length, digest = self
        for id in ids:
            length, digest = length + 1, digest + int.from_bytes(id) % _ID_SUM
        return History(length, digest % _ID_SUM)

    def behind(self, earlier: History) -> History:
        """What of it came behind an earlier state of it."""
        return History(self.length - earlier.length, (self.digest - earlier.digest) % _ID_SUM)


_ID_SUM = 2**61 - 1


class SlotState(NamedTuple):
    """What a store says of a slot that is, or was, open in it. The truth about who may append to the slot's streams."""

    epoch: int
    """Counts the owners of the slot."""
    to: str | None = None
    """The shard that the slot was closed for; None while it is open here."""
    position: int = 0
    """Of the SlotClosed in this log."""
    history: History = History()
    """All of the slot's events when it was closed."""


class SlotRows(NamedTuple):
    """All that a store says of slots, those aside that are open in a first shard because none has ever moved."""

    states: Mapping[int, SlotState]
    """See SlotStore.slot_states."""
    arrived: Mapping[int, History]
    """Of the slots that were open here and are not: all that they had then."""


class Opening(NamedTuple):
    """What opens a slot in its new shard."""

    epoch: int
    source: str
    """Log that it comes from."""
    incarnation: str
    position: int
    """Of the SlotClosed in that log."""
    history: History


def check_name(kind: str, name: str) -> str:
    """`name`, if it can name a service, shard, projection or reaction: it becomes part of subjects and tables.

    Raises ConfigurationError otherwise.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} cannot be the name of a {kind}: use 1 to 63 of the characters a-z, 0-9, '-' and '_', "
            "beginning with a letter"
        )
    return name
