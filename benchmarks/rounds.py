"""Measuring in rounds: every subject once a round, so that what disturbs the machine disturbs all of them."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

Advance = Callable[[str], None]
"""Told what is measured next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a subject has to reach: `least` or `most`, of its value or of its ratio to its peer."""

    of: Literal["value", "ratio"]
    least: float | None = None
    most: float | None = None

    def met_by(self, number: float) -> bool:
        """Whether a median reaches it."""
        return (self.least is None or number >= self.least) and (self.most is None or number <= self.most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One thing to measure."""

    name: str
    run: Callable[[Path], float]
    """Does the work once, in an empty directory of its own, and returns the value. What it prepares is not timed."""
    unit: str = "events/s"
    peer: str | None = None
    """Name of the subject of the same round that it is compared with."""
    goal: Goal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What came out for one subject: a value a round, and a ratio a round to the peer of that very round."""

    name: str
    unit: str
    values: Sequence[float]
    peer: str | None = None
    ratios: Sequence[float] = ()
    goal: Goal | None = None

    @property
    def value(self) -> float:
        """The median of the rounds."""
        return median(self.values)

    @property
    def ratio(self) -> float | None:
        """The median of the rounds' ratios: of pairs that were measured within seconds of each other."""
        return median(self.ratios) if self.ratios else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without a goal."""
        if self.goal is None:
            return None
        number = self.value if self.goal.of == "value" else self.ratio
        return number is not None and self.goal.met_by(number)


def alternate(subjects: Sequence[Subject], rounds: int, advance: Advance) -> list[Row]:
    """Measure all subjects `rounds` times: A B C, C B A, A B C, …, each time in a fresh temporary directory."""
    values: dict[str, list[float]] = {s.name: [] for s in subjects}
    for number in range(rounds):
        for subject in subjects if number % 2 == 0 else reversed(subjects):
            advance(subject.name)
            with tempfile.TemporaryDirectory(prefix="evsync-bench-") as directory:
                gc.collect()
                values[subject.name].append(subject.run(Path(directory)))
    return [_row(subject, values) for subject in subjects]


def _row(subject: Subject, values: dict[str, list[float]]) -> Row:
    own = values[subject.name]
    ratios = [a / b for a, b in zip(own, values[subject.peer], strict=True)] if subject.peer else []
    return Row(name=subject.name, unit=subject.unit, values=own, peer=subject.peer, ratios=ratios, goal=subject.goal)


def check(what: str, found: object, expected: object) -> None:
    """Raise RuntimeError unless the work was done: a number for less would say nothing."""
    if found != expected:
        raise RuntimeError(f"{what}: {found!r} was found, not {expected!r}; this benchmark measures something else")
