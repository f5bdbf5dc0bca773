"""How often, where to, and in how many copies a log is archived: decided here, done elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from fractions import Fraction

from evsync.errors import ConfigurationError

MOST_COPIES = 64


def copies_for(importance: float, loss: float = 0.5) -> int:
    """The least number of copies of which at least one is kept with probability `importance`.

    Each copy is lost with probability `loss`, whatever becomes of the others; so n of them are all lost with
    probability loss ** n, and that may be 1 - importance at most: n = ⌈log(1 - importance) / log(loss)⌉, which for a
    loss of ½ is ⌈-log2(1 - importance)⌉. Exact: 0.75 is two copies, whatever a float makes of it.

    Raises ConfigurationError for probabilities that are none.
    """
    if not 0 <= importance < 1 or not 0 < loss < 1:
        raise ConfigurationError(
            f"importance={importance!r} with loss={loss!r}: the probability to keep the data is at least 0 and below 1 "
            "(1 would take endless copies), that to lose one copy between 0 and 1"
        )
    each, allowed = Fraction(repr(float(loss))), 1 - Fraction(repr(float(importance)))
    all_lost = each
    for copies in range(1, MOST_COPIES + 1):
        if all_lost <= allowed:
            return copies
        all_lost *= each
    raise ConfigurationError(
        f"importance={importance!r} takes more than {MOST_COPIES} copies when each is lost with probability {loss!r}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """How long the archive stays fine-grained. No event ever leaves it: old segments are merged into longer ones.

    Segments of the last `hourly` are left as they were made; those before become one an hour until `daily` ago, one a
    day until `weekly` ago, and one a week before that.
    """

    hourly: timedelta = timedelta(days=1)
    daily: timedelta = timedelta(days=7)
    weekly: timedelta = timedelta(days=60)

    def __post_init__(self) -> None:
        if not timedelta(0) <= self.hourly <= self.daily <= self.weekly:
            raise ConfigurationError(
                f"Keep(hourly={self.hourly}, daily={self.daily}, weekly={self.weekly}): each begins where the one "
                "before ends, so they must grow"
            )

    def period_of(self, made_us: int, now_us: int) -> tuple[int, int] | None:
        """Segments made in the same period become one: its length in hours, and its number. None: not yet."""
        age = timedelta(microseconds=now_us - made_us)
        if age < self.hourly:
            return None
        hours = 1 if age < self.daily else 24 if age < self.weekly else 24 * 7
        return hours, made_us // (hours * 3_600_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupPolicy:
    """`Service(…, backups=BackupPolicy(targets=[…]))`: archive the log every `interval`, to every target.

    `importance` is the probability with which the data shall survive, `loss` that of losing one copy: together they say
    how many copies count as enough (see `copies`). Each copy is on a target of its own. Raises ConfigurationError where
    the targets are fewer.
    """

    targets: Sequence[str]
    importance: float = 0.99
    interval: timedelta = timedelta(minutes=15)
    loss: float = 0.5
    keep: Keep = field(default_factory=Keep)

    def __post_init__(self) -> None:
        if isinstance(self.targets, str) or not self.targets or not all(isinstance(t, str) for t in self.targets):
            raise ConfigurationError(f"targets={self.targets!r}: a list of URLs is needed, one at least")
        if len({t.rstrip("/") for t in self.targets}) < len(self.targets):
            raise ConfigurationError(f"targets={list(self.targets)!r}: the same place twice is one copy, not two")
        if self.interval <= timedelta(0):
            raise ConfigurationError(f"interval={self.interval!r}: the time between two backups is more than none")
        if len(self.targets) < self.copies:
            raise ConfigurationError(
                f"importance={self.importance} with loss={self.loss} takes {self.copies} copies, each in a place of "
                f"its own, and there are {len(self.targets)} targets. Give more targets; or state with loss= how "
                "likely one of yours is lost before it can be replaced, if that is less; or lower the importance."
            )

    @property
    def copies(self) -> int:
        """How many targets must hold a position for it to count as backed up: see `copies_for`.

        Every target gets everything; those beyond this number are spares, and a backup succeeds without them.
        """
        return copies_for(self.importance, self.loss)
