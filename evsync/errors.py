"""Everything that evsync raises on purpose.

    EvsyncError
    ├── Conflict                    another writer was first: load again, decide again (execute() does)
    │   └── SlotMoved               the stream's slot is open in another shard's store
    ├── AcrossShards                one save for streams of several shards: nothing was stored
    ├── NotFound                    no such aggregate, or not yet at that version or time
    ├── OutcomeUnknown              stored or not? look for the command's id before doing anything else
    ├── NotVisible  (TimeoutError)  a projection did not reach a position in time
    ├── Halted                      a projection or reaction stopped at an event
    ├── Parked                      a projection set an event aside, with all later ones of its stream
    ├── ConfigurationError          a wrong URL, setting, name or class: nothing was touched
    ├── CodecError
    │   ├── EncodingError           a value that cannot be written: refused before anything is stored
    │   └── DecodingError           stored bytes that cannot be read: nothing moves past them
    ├── EventTooLarge               refused at save: it would not fit into a broker's message
    ├── StoreError
    │   ├── StoreUnavailable        the database does not answer; nothing was stored
    │   ├── StoreFull               the disk or the database is full; nothing was stored
    │   └── WrongStore              a store of another service, or written by a newer evsync
    ├── BrokerError
    │   ├── BrokerUnavailable (TimeoutError)  not connected, or no answer in time: what was asked may or may not be done
    │   ├── BrokerRefused           the broker answered that it will not: its code and its words
    │   └── ServerFailed            the embedded nats-server did not start
    ├── ArchiveError
    │   ├── ArchiveDamaged          a segment that is not what was written, is missing, or in another's place
    │   ├── ArchiveIncomplete       the archive does not hold, or not in enough copies, what is asked for
    │   └── TargetUnavailable       a place for backups does not answer, or did not keep what was written
    └── RelayError                  a JetStream stream that does not, or cannot, mirror its log
        ├── StreamMisconfigured, StreamHole, StreamDiverged, StreamAhead, StreamInconsistent
        ├── StreamUnreadable, StreamFull, StreamGone, LawBroken
        └── HistoryGone, ForeignMessage, OtherIncarnation      found by a consumer

A conflict is ordinary, an unknown outcome is not a failure: they are different types on purpose. Values are attributes,
not only text. What a driver raised is kept as `__cause__`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

BEGIN_ANEW = (
    "Have what followed it begin anew: `evsync reset module:service NAME`, with the name of the projection or reaction."
)
"""What mends a follower that is ahead of a restored log."""


_LOGIN = re.compile(r"(?<=://)(?!/)([^\s:@]*:)?\S*(?=@)")
_PASSWORD = re.compile(r"((?:password|passwd|token|secret)=)[^&\s'\"]*", re.IGNORECASE)


def redacted(text: str) -> str:
    """Text without the passwords and tokens of its URLs."""
    return _PASSWORD.sub(r"\1***", _LOGIN.sub(r"\1***", text))


class EvsyncError(Exception):
    """The root of everything that evsync raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (type(self), self.args), vars(self)


def _made(kind: type[EvsyncError], args: tuple[Any, ...]) -> EvsyncError:
    """An error that comes from another process: of text and values, not of what its constructor takes."""
    error = kind.__new__(kind)
    error.args = args
    return error


class Conflict(EvsyncError):
    """Another writer was first. Load the aggregate again and decide again; `execute()` does both."""

    def __init__(self, stream: str, expected: int, actual: int) -> None:
        self.stream, self.expected, self.actual = stream, expected, actual
        super().__init__(
            f"stream {stream!r} is at version {actual}, not at version {expected} as this save expected: "
            "another writer was first. Load the aggregate and decide again, or use execute(), which does."
        )


class SlotMoved(Conflict):
    """The store does not own the stream's slot (any longer). A service that has all shards open follows by itself."""

    def __init__(self, stream: str, slot: int, to: str | None) -> None:
        self.slot, self.to = slot, to
        super().__init__(stream, 0, 0)
        self.args = (
            f"slot {slot}, that of stream {stream!r}, is not open in this store"
            + (f": it was moved to shard {to!r}" if to else "")
            + ". Nothing was stored. Open the service with the stores of all of its shards: store={…}.",
        )


class AcrossShards(EvsyncError):
    """One save for streams of several shards. Nothing was stored: a commit is all or none, and a shard is a store."""

    def __init__(self, shards: Mapping[str, str]) -> None:
        self.shards = dict(shards)
        first = next(iter(shards))
        where = ", ".join(f"{stream!r} on {shard!r}" for stream, shard in shards.items())
        tagged = ", ".join(repr(f"{{{first}}}.{stream}") for stream in list(shards)[1:])
        super().__init__(
            f"these streams cannot be saved in one commit, because their shards differ: {where}. Nothing was stored. "
            "Save them one after the other, or give what belongs together ids with the same tag in braces, which alone "
            f"decides the shard, such as {tagged} beside {f'{{{first}}}'!r}."
        )


class NotFound(EvsyncError):
    """No such aggregate, or not yet at that version or time."""


class OutcomeUnknown(EvsyncError):
    """The append may or may not be stored: the reply was lost. `execute()` looks for its command before it retries."""


class NotVisible(EvsyncError, TimeoutError):
    """A projection did not reach the position in time. The write itself is durable."""


class _NotApplied(EvsyncError):
    """A follower could not apply an event; `reason` is why."""

    def __init__(
        self, *, follower: str, log: str, position: int, event_type: str, stream: str, version: int, reason: str | None
    ) -> None:
        self.follower, self.log, self.position = follower, log, position
        self.event_type, self.stream, self.version, self.reason = event_type, stream, version, reason
        super().__init__(self._text((reason or "").removesuffix(".")))

    def _text(self, why: str) -> str:
        raise NotImplementedError


class Halted(_NotApplied):
    """A projection or reaction stopped at an event; nothing of that event's batch was applied."""

    def _text(self, why: str) -> str:
        return (
            f"{self.follower!r} halted at position {self.position} of log {self.log!r}: {self.event_type} (version "
            f"{self.version} of stream {self.stream!r}) could not be applied: {why}. Nothing of its batch was "
            "applied. Mend the handler (or the event's contract) and start the process again: it resumes at this event."
        )


class Parked(_NotApplied):
    """An event is set aside: it, or one before it in its stream, could not be applied. The write itself is durable.

    `reason` is None for an event that only stands behind another one.
    """

    def _text(self, why: str) -> str:
        failed = f"it could not be applied: {why}" if why else "an earlier event of the stream could not be applied"
        return (
            f"{self.follower!r} has parked stream {self.stream!r}, and with it {self.event_type} (version "
            f"{self.version}) at position {self.position} of log {self.log!r}: {failed}. What was written is durable, "
            "and other streams go on. Mend the handler (or the event's contract), then `evsync parked retry`; "
            "`evsync parked list` shows what is parked."
        )


class ConfigurationError(EvsyncError):
    """A wrong URL, setting, name or class. Raised before anything is touched. Holds no password of a URL."""

    def __init__(self, text: str) -> None:
        super().__init__(redacted(text))


class CodecError(EvsyncError):
    """A value that cannot be written, or bytes that cannot be read."""


class EncodingError(CodecError):
    """A field whose value cannot be written. Raised when the service is made or at save, with the field's name."""


class DecodingError(CodecError):
    """Stored bytes that cannot be read, or an event of a type nobody knows. The stream is not touched."""


class EventTooLarge(EvsyncError):
    """The event does not fit into a message of the broker.

    Refused at save, where nothing was stored (`position` is None); found by the relay only when the broker's limit was
    lowered, or not known, when the event was saved (`position` is its place in the log).
    """

    def __init__(
        self, event_type: str, stream: str, size_bytes: int, limit_bytes: int, position: int | None = None
    ) -> None:
        self.event_type, self.stream, self.position = event_type, stream, position
        self.size_bytes, self.limit_bytes = size_bytes, limit_bytes
        text = (
            f"{event_type} of stream {stream!r} takes {size_bytes:,} bytes as a message, and the broker takes "
            f"{limit_bytes:,}. "
        )
        if position is None:
            text += (
                "Nothing was stored. Keep large content elsewhere and put a reference into the event, "
                "or raise max_payload on every nats-server."
            )
        else:
            text += (
                f"It is stored at position {position} and cannot be published. Raise max_payload on every nats-server; "
                "the relay then goes on by itself."
            )
        super().__init__(text)


class StoreError(EvsyncError):
    """An event store refused or could not do what was asked. Nothing was stored."""


class StoreUnavailable(StoreError):
    """The store's database does not answer. Nothing was stored; try again."""


class StoreFull(StoreError):
    """The disk, or the database's own limit, is full. Nothing was stored; the store can still be read."""


class WrongStore(StoreError):
    """A store that belongs to another service or shard, or was written by a newer evsync. Nothing was touched."""


class BrokerError(EvsyncError):
    """What was asked of the NATS server was not done, or not known to be done."""


class BrokerUnavailable(BrokerError, TimeoutError):
    """Not connected, or no answer in time. A request that had been sent may or may not have been carried out."""


class BrokerRefused(BrokerError):
    """The broker answered with an error. `err_code` is JetStream's own number (0 if there is none)."""

    def __init__(self, asked: str, code: int, err_code: int, description: str) -> None:
        self.asked, self.code, self.err_code, self.description = asked, code, err_code, description
        number = f"{code}, err_code {err_code}" if err_code else f"{code}"
        super().__init__(f"the NATS server refused {asked}: {description} ({number})")


class ServerFailed(BrokerError):
    """The embedded nats-server did not start. The error holds the end of its log."""


class ArchiveError(EvsyncError):
    """A backup that could not be made, or not be read. The log itself is not affected."""


class ArchiveDamaged(ArchiveError):
    """A segment is not what was written, is missing, or stands in another's place. `name` is where it is kept."""

    def __init__(self, target: str, name: str, what: str) -> None:
        self.target, self.name, self.what = target, name, what
        super().__init__(f"{name} in {target}: {what}")


class ArchiveIncomplete(ArchiveError):
    """The archive does not hold what is asked for, or not in enough copies."""


class TargetUnavailable(ArchiveError):
    """A place for backups does not answer, refuses, or did not keep what was written to it."""


class RelayError(EvsyncError):
    """A JetStream stream that does not, or cannot, mirror its log. The log itself is not affected.

    `values` holds what the text says, by name: `stream`, `position`, …
    """

    def __init__(self, text: str, **values: object) -> None:
        self.values = values
        super().__init__(text)


class StreamMisconfigured(RelayError):
    """The stream has settings under which a stream sequence is not a log position."""


class StreamHole(RelayError):
    """Messages are missing in the middle of the stream."""


class StreamDiverged(RelayError):
    """A message in the stream is not the event at that position of the log."""


class StreamAhead(RelayError):
    """The stream holds positions that the log does not have: the store was put back to an earlier state."""


class StreamInconsistent(RelayError):
    """The server's accounts of the stream contradict each other."""


class StreamUnreadable(RelayError):
    """The server counts messages that it cannot deliver: its files are damaged."""


class StreamFull(RelayError):
    """The stream reached its limits. The relay goes on by itself when there is room."""


class StreamGone(RelayError):
    """The stream that was followed no longer exists."""


class LawBroken(RelayError):
    """The server stored an event at another sequence than its position: the one thing that must not happen."""


class HistoryGone(RelayError):
    """The stream no longer holds the events that a consumer needs next."""


class ForeignMessage(RelayError):
    """A message in the stream was not published by the log's relay, or not at its position."""


class OtherIncarnation(RelayError):
    """The log was restored from a backup, and what was consumed so far is not part of its history."""
