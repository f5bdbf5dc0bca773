"""What the difference of two sums tells about the events behind them.

A checkpoint keeps the count of the events that were applied, and the sum of their shares (see `digest_of`). That is
enough to notice any difference, and to name its events in the cases that happen: then the difference of the sums is the
sum of a few shares, and shares are 64 bits, so that a chance match among n events has a probability of about n / 2**64
for one event or a run, n**2 / 2**64 for two. What was applied and is not in the log any more has left nothing but its
share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

_MODULUS = 1 << 64

Kind = Literal["missing", "doubled", "exchanged", "moved", "count", "unknown", "altered", "unexplained"]


@dataclass(frozen=True, slots=True)
class Difference:
    """How a checkpoint differs from the log, for one group. Indexes count the group's events in the log: 0, 1, …"""

    kind: Kind
    """
    missing     `events` were not applied
    doubled     `events` were applied twice
    exchanged   the first of `events` was applied twice, the second not at all
    moved       what was applied are the first `count` events, wherever the checkpoint says that it is
    count       the digest is right, the count is not
    unknown     one event was applied that the log does not have (any more)
    altered     as many events as there should be, with another digest: the log or the checkpoint was changed since
    unexplained more than one of these at once
    """
    events: Sequence[int] = ()
    count: int = 0


def difference(shares: Sequence[int], due: int, count: int, digest: int) -> Difference | None:
    """Compare what a checkpoint says with the first `due` events of its group; None if it is exactly these, once.

    `shares` are those of all the group's events in the log, in order, also behind the checkpoint.
    """
    too_many = count - due
    delta = (digest - sum(shares[:due])) % _MODULUS
    if delta == 0:
        return Difference("count", count=count) if too_many else None
    if too_many and 0 <= count <= len(shares) and sum(shares[:count]) % _MODULUS == digest:
        return Difference("moved", count=count)
    applied = shares[:due]
    if too_many:
        kind: Kind = "missing" if too_many < 0 else "doubled"
        wanted = delta if too_many > 0 else -delta % _MODULUS
        size = abs(too_many)
        if (start := _run(applied, size, wanted)) is not None:
            return Difference(kind, range(start, start + size))
        if size == 2 and (pair := _pair(applied, wanted)):
            return Difference(kind, pair)
        return Difference("unknown" if too_many == 1 else "unexplained")
    if exchanged := _exchanged(applied, delta):
        return Difference("exchanged", exchanged)
    return Difference("altered")


def _run(shares: Sequence[int], size: int, wanted: int) -> int | None:
    """Where `size` neighbours begin whose shares have this sum."""
    sums = list(accumulate(shares, lambda a, b: (a + b) % _MODULUS, initial=0))
    return next((i for i in range(len(shares) - size + 1) if (sums[i + size] - sums[i]) % _MODULUS == wanted), None)


def _pair(shares: Sequence[int], wanted: int) -> tuple[int, int] | None:
    """Two of them whose shares have this sum."""
    seen: dict[int, int] = {}
    for i, share in enumerate(shares):
        if (other := seen.get((wanted - share) % _MODULUS)) is not None:
            return other, i
        seen[share] = i
    return None


def _exchanged(shares: Sequence[int], delta: int) -> tuple[int, int] | None:
    """One to add and one to take away, so that the sum changes by `delta`."""
    at = {share: i for i, share in enumerate(shares)}
    for i, share in enumerate(shares):
        if (taken := at.get((share - delta) % _MODULUS)) is not None and taken != i:
            return i, taken
    return None
