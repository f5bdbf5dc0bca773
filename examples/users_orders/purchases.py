"""Reads the CDNOW purchase files, in both of their layouts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal, InvalidOperation

_COLUMNS = (4, 5)  # without and with the customer's id in the sample


@dataclass(frozen=True, slots=True)
class Purchase:
    """One line of the file."""

    customer: str
    on: date
    cds: int
    price_cents: int


@dataclass(frozen=True, slots=True)
class Malformed:
    """A line that could not be read, and why."""

    line: int
    text: str
    reason: str


def read(lines: Iterable[str]) -> Iterator[Purchase | Malformed]:
    """Each purchase, or what is wrong with its line (counted from 1). Blank lines and a header line are passed over."""
    first = True
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        if first and not any(re.fullmatch(r"[\d.]+", word) for word in words):
            first = False
            continue
        first = False
        try:
            yield _purchase(words)
        except ValueError as e:
            yield Malformed(number, line.rstrip("\r\n"), str(e))


def _purchase(words: list[str]) -> Purchase:
    if len(words) not in _COLUMNS:
        raise ValueError(f"{len(words)} columns; a purchase has 4 or 5: customer, (sample id,) date, CDs, dollars")
    customer, on, cds, dollars = words[0], *words[-3:]
    if not customer.isascii() or not customer.isdigit() or (len(words) == 5 and not words[1].isdigit()):
        raise ValueError(f"{' '.join(words[:-3])!r} is not a customer's number")
    if not re.fullmatch(r"\d{8}", on, re.ASCII):
        raise ValueError(f"{on!r} is not a date as YYYYMMDD")
    try:
        day = datetime.strptime(on, "%Y%m%d").date()
    except ValueError:
        raise ValueError(f"{on!r} is not a day of the calendar") from None
    if not re.fullmatch(r"\d{1,6}", cds, re.ASCII):
        raise ValueError(f"{cds!r} is not a number of CDs")
    return Purchase(customer, day, int(cds), _cents(dollars))


def _cents(dollars: str) -> int:
    try:
        cents = Decimal(dollars) * 100
    except InvalidOperation:
        raise ValueError(f"{dollars!r} is not an amount in dollars") from None
    if not cents.is_finite() or cents != cents.to_integral_value() or not 0 <= cents <= 10**9:
        raise ValueError(f"{dollars!r} is not an amount in dollars and whole cents")
    return int(cents)
