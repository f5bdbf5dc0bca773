"""Why a follower halted: as an error, and as a note that other processes can read."""

from __future__ import annotations

import json
from typing import Any

from evsync import errors
from evsync.errors import EvsyncError, Halted, Parked
from evsync.projections.parking import ParkedEvent
from evsync.records import StoredEvent


def halted_at(event: StoredEvent, *, follower: str, log: str, reason: str, cause: BaseException | None) -> Halted:
    """What a follower is halted by when this event could not be applied."""
    halted = Halted(follower=follower, log=log, reason=reason, **_which(event))
    halted.__cause__ = cause
    return halted


def parked_at(parked: ParkedEvent, *, follower: str) -> Parked:
    """What to tell whoever waits for an event that is parked."""
    return Parked(follower=follower, log=parked.log, reason=parked.reason, **_which(parked.event))


def _which(event: StoredEvent) -> dict[str, Any]:
    return {
        "position": event.position,
        "event_type": event.type,
        "stream": event.stream,
        "version": event.version,
    }


def write_note(error: EvsyncError) -> str:
    """The error as JSON text."""
    note: dict[str, Any] = {"error": type(error).__name__, "text": str(error)}
    if isinstance(error, Halted):
        note["halted"] = {name: value for name, value in vars(error).items() if not name.startswith("_")}
    return json.dumps(note)


def read_note(note: str) -> EvsyncError:
    """The error that `write_note` wrote, of the same type where that can be made from a text alone."""
    try:
        found = json.loads(note)
        if "halted" in found:
            return Halted(**found["halted"])
        cls = getattr(errors, found["error"], EvsyncError)
        error = cls(found["text"])
    except (ValueError, TypeError, KeyError):  # written by another version of evsync
        return EvsyncError(note)
    return error if isinstance(error, EvsyncError) else EvsyncError(note)
