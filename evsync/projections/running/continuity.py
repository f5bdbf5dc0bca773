"""Whether what is read of a log continues what was applied of it: without a gap, and in the same history."""

from __future__ import annotations

from collections.abc import Sequence

from evsync.control import RESTORED_EVENT
from evsync.errors import BEGIN_ANEW, OtherIncarnation, StreamHole
from evsync.ports import LogReader
from evsync.records import Ancestor, StoredEvent, incarnation_at
from evsync.restores import Restored


def check_batch(log: str, after: int, incarnation: str, events: Sequence[StoredEvent], left_out: int = 0) -> None:
    """Raise unless a batch continues a log behind position `after`: without a gap, and in the same history.

    Of other groups so many were `left_out`. If none, it may begin earlier: what is known already is skipped. It may
    pass a restore of the log, if that was to a position that was not passed yet: then the next event says so (see
    evsync.restores). Raises StreamHole, OtherIncarnation.
    """
    first, last = events[0].position, events[-1].position
    begin = after + 1 if left_out else first
    if begin > after + 1 or last - begin + 1 != len(events) + left_out:
        raise StreamHole(
            f"log {log!r} was to go on behind position {after}, and its source gave {len(events) + left_out} events at "
            f"{begin}..{last}: at least one event is missing, so nothing was applied. If it is read from JetStream, "
            "check the stream with `evsync stream check`."
        )
    known = incarnation or events[0].incarnation
    for event in events:
        if event.incarnation != known and event.position > after:
            if event.type.endswith(RESTORED_EVENT) and Restored.of(event).follows(known):
                known = event.incarnation
                continue
            raise other_incarnation(log, after, known, event.incarnation)


def check_history(reader: LogReader, position: int, incarnation: str) -> None:
    """Raise OtherIncarnation unless what was applied up to a position is part of the log as it is now.

    That is: of its incarnation, or of an ancestor's part that it has kept. A batch would not tell where the log has
    grown beyond that position again. `incarnation` is "" where nothing was applied.
    """
    if incarnation and incarnation_of(reader, position) not in (None, incarnation):
        raise other_incarnation(reader.log, position, incarnation, reader.incarnation or "", reader.ancestry)


def other_incarnation(
    log: str, position: int, known: str, found: str, ancestry: Sequence[Ancestor] = ()
) -> OtherIncarnation:
    """What to say of a log that is now `found`, and is not, or not that far, what was applied up to a position."""
    last = next((a.last for a in ancestry if a.incarnation == known), None)
    what = (
        "it is another log, or was put back to an older copy"
        if last is None
        else f"it was restored from a backup, up to position {last}"
    )
    return OtherIncarnation(
        f"log {log!r} is now incarnation {found}, and what was applied up to position {position} came from incarnation "
        f"{known}: {what}. Nothing was applied since. {BEGIN_ANEW}",
        log=log,
        position=position,
        incarnation=known,
        other_incarnation=found,
        other_position=last,
        restored=last is not None,
    )


def incarnation_of(reader: LogReader, number: int) -> str | None:
    """That a position of the log as it is now has, or will have; None where that is not known."""
    return None if reader.incarnation is None else incarnation_at(reader.incarnation, reader.ancestry, number)
