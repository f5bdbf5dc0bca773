"""What can befall a message on its way into the stream, and what there is to do about it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum

from evsync.errors import (
    BrokerRefused,
    BrokerUnavailable,
    EvsyncError,
    LawBroken,
    RelayError,
    StoreError,
    StreamFull,
    StreamInconsistent,
)
from evsync.jetstream.client.refusals import FORBIDDEN, UNAVAILABLE, Refused
from evsync.jetstream.stream_settings import StreamState


class Kind(Enum):
    """What went wrong, by what there is to do about it."""

    CONFLICT = "another message has the sequence"
    FULL = "there is no room"
    AWAY = "the broker does not answer"
    GAP = "an acknowledgement is missing"
    DENIED = "permissions forbid it"
    LAW = "the law is broken"
    REFUSED = "the broker refuses"


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a flight ended. `position` is the event's that it befell, 0 if none."""

    kind: Kind
    text: str
    position: int = 0


def fault_of(position: int, refused: Refused) -> Fault:
    """What it means that the server refused the event of a position."""
    kind = Kind.REFUSED
    if refused.is_conflict:
        kind = Kind.CONFLICT
    elif refused.is_full:
        kind = Kind.FULL
    elif refused.code == UNAVAILABLE:
        kind = Kind.AWAY
    return Fault(kind, f"position {position} was refused: {refused.text} (err_code {refused.err_code})", position)


class Doubt:
    """Whether the server contradicts itself: it refuses a sequence that, as it says itself, is the next."""

    def __init__(self) -> None:
        self._refused_after: int | None = None
        self._text = ""
        self._since: float | None = None

    def refused(self, fault: Fault) -> None:
        """A publish was refused that expected the sequence before its position to be the last."""
        self._refused_after, self._text = fault.position - 1, fault.text

    def check(self, stream: StreamState, longest_s: float) -> None:
        """Raise StreamInconsistent if that is what the stream's last sequence still is, after `longest_s`.

        For a moment it may be so: a replicated stream refuses by what it has proposed and reports what it has applied.
        """
        if self._refused_after is None:
            return
        now = asyncio.get_running_loop().time()
        if stream.last != self._refused_after:
            self._since = None
        elif self._since is None:
            self._since = now
        elif now - self._since >= longest_s:
            raise StreamInconsistent(
                f"stream {stream.name} says that its last sequence is {stream.last}, and refuses the one after it "
                f"({self._text}). Have the stream made anew from the log: `evsync stream rebuild`",
                stream=stream.name,
                last=stream.last,
            )
        self._refused_after = None


def passes(error: Exception) -> bool:
    """Whether an error passes by itself, or when somebody mends something that is not the stream."""
    if isinstance(error, BrokerRefused):
        refused = Refused(error.code, error.err_code, error.description)
        return refused.passes or refused.is_full or refused.code == FORBIDDEN  # somebody may change the permissions
    return isinstance(error, (BrokerUnavailable, StoreError, StreamFull))


def error_of(fault: Fault, stream: str) -> EvsyncError:
    """The error to raise for a fault that no state answers."""
    match fault.kind:
        case Kind.AWAY:
            return BrokerUnavailable(fault.text)
        case Kind.DENIED:
            return BrokerRefused("the relay's messages", FORBIDDEN, 0, fault.text)
        case Kind.FULL:
            return StreamFull(
                f"stream {stream} is full: {fault.text}. The events wait in the log; raise the stream's limits "
                f"(`nats stream edit {stream}`), or the account's or server's, and the relay goes on by itself",
                stream=stream,
                position=fault.position,
            )
        case Kind.LAW:
            return LawBroken(
                f"{fault.text}. Nothing more is published: find out what stands between this process and the server, "
                "then have the stream made anew: `evsync stream rebuild`",
                stream=stream,
                position=fault.position,
            )
        case _:
            return RelayError(f"stream {stream}: {fault.text}", stream=stream, position=fault.position)
