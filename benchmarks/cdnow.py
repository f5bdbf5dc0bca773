"""A purchase file of the size of the full CDNOW set, made from the sample that ships with the example."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

CUSTOMERS, PURCHASES = 23_570, 69_659
"""Of the full set, which does not ship: the sample holds one customer in ten."""


def write_full_size(sample: Path, path: Path) -> None:
    """Write the layout of the full set (customer, date, CDs, dollars), the same file every time.

    Each of its customers buys what a customer of the sample bought, every one of those ten times over; what is missing
    to the number of purchases is drawn from the sample's.
    """
    by_customer: dict[str, list[str]] = defaultdict(list)
    for line in sample.read_text(encoding="utf-8").splitlines():
        customer, _, date, cds, dollars = line.split()
        by_customer[customer].append(f"{date} {cds:>2} {dollars:>7}")
    histories = list(by_customer.values())
    draw = random.Random(23_570)
    buyers = [list(histories[i % len(histories)]) for i in range(CUSTOMERS)]
    draw.shuffle(buyers)
    purchases = [p for history in histories for p in history]
    for _ in range(PURCHASES - sum(map(len, buyers))):
        draw.choice(buyers).append(draw.choice(purchases))
    lines = [f" {number:05} {p}\n" for number, bought in enumerate(buyers, 1) for p in sorted(bought)]
    path.write_text("".join(lines), encoding="utf-8")
