"""What stops a reader of a stream, as errors that say where it is and what mends it."""

from __future__ import annotations

from evsync.errors import BEGIN_ANEW, ForeignMessage, HistoryGone, OtherIncarnation, StreamHole, StreamUnreadable

_REBUILD = "`evsync stream rebuild` makes the stream anew from the log; this reader then goes on where it is"


def hole(stream: str, due: int, found: int) -> StreamHole:
    """Messages from `due` to before `found` are missing."""
    return StreamHole(
        f"stream {stream} has no message {due}: {found - due} messages up to {found - 1} are missing. Nothing beyond "
        f"was read. {_REBUILD}.",
        stream=stream,
        position=due,
        found=found,
    )


def history_gone(stream: str, due: int, first: int) -> HistoryGone:
    """The stream begins behind what is due."""
    return HistoryGone(
        f"stream {stream} begins at position {first}, and the next one needed is {due}: its limits, or a person, have "
        f"removed what was before. Read positions {due} to {first - 1} from the archive: name its places in the "
        f"setting archives= of the service that reads. Where there is no archive, fill the stream again: {_REBUILD}.",
        stream=stream,
        position=due,
        first=first,
    )


def foreign(stream: str, sequence: int, what: str) -> ForeignMessage:
    """A message is none of the log's relay; `what` says why."""
    return ForeignMessage(
        f"message {sequence} of stream {stream} is not the event at that position: {what}. Nothing from there on was "
        "read. Something other than the log's relay publishes to the stream's subjects: take that permission away, "
        f"then rebuild: {_REBUILD}.",
        stream=stream,
        position=sequence,
    )


def unreadable(stream: str, due: int, end: int) -> StreamUnreadable:
    """The server has messages up to before `end`, and delivers none from `due` on."""
    return StreamUnreadable(
        f"the server counts messages up to {end - 1} in stream {stream} and does not deliver message {due}: its files "
        f"are damaged. Nothing beyond was read. Look at the server's disk and log; {_REBUILD}.",
        stream=stream,
        position=due,
        last=end - 1,
    )


def other_incarnation(
    log: str, own: str | None, consumed: int, other: str, last: int, common: int | None = None
) -> OtherIncarnation:
    """Another log took this one's place: `last` is a position of it.

    `common`, if it is a restore, is up to where the two have the same events.
    """
    what, restored = "the log was replaced by another, or put back to an older copy", {}
    if common is not None:
        what, restored = f"the log was restored from a backup, up to position {common}", {"restored": True}
    return OtherIncarnation(
        f"log {log} is now of incarnation {other} (position {last}), and this reader follows incarnation {own}, up to "
        f"position {consumed} so far: {what}. {BEGIN_ANEW} Or put the old log back.",
        log=log,
        incarnation=own,
        position=consumed,
        other_incarnation=other,
        other_position=last if common is None else common,
        **restored,
    )
