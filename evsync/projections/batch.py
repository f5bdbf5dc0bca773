"""Applying a batch: from stored events through contracts and handlers to new checkpoints, in one tight loop."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from pydantic import ValidationError

from evsync.codec.values import unpack
from evsync.errors import DecodingError
from evsync.projections.contracts import explain
from evsync.projections.event import Event
from evsync.projections.failures import CannotApply, DatabaseAway
from evsync.projections.handlers import Handlers, Step
from evsync.records import Checkpoint, StoredEvent

Settle = Callable[[], None]
"""Brings what was gathered so far to the database, so that an error shows at the event it comes from."""

_DIGEST = 1 << 64
_copy = blake2b(digest_size=8).copy
"""A new hash: sooner made than by the constructor."""


def digest_of(event: StoredEvent) -> int:
    """An event's share in a checkpoint's digest: 8 bytes (big-endian) of BLAKE2b over id, type, a zero byte, and data.

    Shares are added modulo 2**64, so that a digest does not depend on the order of the events, nor on how they were
    divided among groups and workers. It finds omissions and mistakes; it is no proof against forgers.
    """
    return _share(event.id + _key(event.type) + event.data)


def _key(type: str) -> bytes:
    return type.encode() + b"\0"


def _share(content: bytes) -> int:
    digest = _copy()
    digest.update(content)
    return int.from_bytes(digest.digest(), "big")


def half_of(events: Sequence[StoredEvent], after: int) -> Sequence[StoredEvent]:
    """About the first half of what is behind position `after`, in whole commits; [] when that is one commit only."""
    # The event at a commit's end may have been left out: it has ended where the next event lies beyond it.
    beyond = [*(e.position for e in events[1:]), sys.maxsize]
    ends = [
        n
        for n, (e, later) in enumerate(zip(events, beyond, strict=True), 1)
        if after < e.position < later - e.remaining
    ]
    return events[: ends[(len(ends) - 1) // 2]] if len(ends) > 1 else []


def end_of(event: StoredEvent) -> StoredEvent:
    """What stands at the end of an event's commit, as far as a checkpoint needs it."""
    return event._replace(position=event.position + event.remaining, remaining=0) if event.remaining else event


def apply_batch(
    handlers: Handlers,
    log: str,
    events: Sequence[StoredEvent],
    checkpoints: Mapping[int, Checkpoint],
    groups: int,
    state: Any,
    settle: Settle | None = None,
    end: StoredEvent | None = None,
) -> list[Checkpoint]:
    """Hand each event that is past its group's checkpoint to its handlers; the checkpoints at the batch's end.

    `checkpoints` are those of this log, by group, for the groups that are held; events of other groups are skipped.
    With `settle`, what the handlers gathered is written after each event. `end` is the last event of the batch where
    some, perhaps it too, are not applied but parked. Raises CannotApply with the culprit.
    """
    positions = {g: c.position for g, c in checkpoints.items()}
    counts, digests = dict.fromkeys(positions, 0), dict.fromkeys(positions, 0)
    known: dict[str, tuple[Sequence[Step], bytes]] = {}
    make, passed = Event.of, positions.get
    stored = end = end or events[-1]
    beyond = end.position + 1
    try:
        for stored in events:
            position, _, _, slot, name, _, id, _, _, content, _ = stored
            if (found := known.get(name)) is None:
                found = known[name] = handlers.steps(name), _key(name)
            steps, key = found
            group = slot % groups
            if not steps or position <= passed(group, beyond):
                continue
            for decode, handle in steps:
                try:
                    data = decode(unpack(content))
                except ValidationError as e:
                    raise CannotApply(stored, f"it does not meet the contract: {explain(e)}") from e
                handle(make(stored, data, log), state)
            if settle is not None:
                settle()
            counts[group] += 1
            digests[group] += _share(id + key + content)
    except CannotApply:
        raise
    except DecodingError as e:
        raise CannotApply(stored, str(e)) from e
    except Exception as e:
        raise CannotApply(stored, f"{type(e).__name__}: {e}") from e
    return [
        replace(
            c,
            incarnation=end.incarnation if c.position < end.position else c.incarnation,
            position=max(c.position, end.position),
            count=c.count + counts[g],
            digest=(c.digest + digests[g]) % _DIGEST,
        )
        for g, c in checkpoints.items()
    ]


def blamed(
    events: Sequence[StoredEvent], checkpoints: Mapping[int, Checkpoint], handlers: Handlers, groups: int, reason: str
) -> Exception:
    """What to raise when a single commit is refused at its end, and none of its events was before."""
    for event in reversed(events):
        checkpoint = checkpoints.get(event.slot % groups)
        if checkpoint and event.position > checkpoint.position and handlers.steps(event.type):
            return CannotApply(event, reason)
    return DatabaseAway(reason)  # no handler had a part in it
