"""Draw docs/plots/sharding.svg: how many keys each way of sharding moves, and how evenly it spreads them.

    python docs/plots/sharding.py        writes the file beside this one

The same file on every machine: the keys are made from a counter, and nothing is drawn at random.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

from evsync.sharding import HashRing, RangeRouter, slot_of

FILE = Path(__file__).with_suffix(".svg")
P = 2**61 - 1
"""A prime, as the formulas need one."""
KEYS = 20_000
MOST = 8
"""Shards to which the services grow."""

Assign = Callable[[int], str]
"""The shard of a key."""


def random_keys() -> list[int]:
    """128-bit numbers like those of UUIDs."""
    return [int.from_bytes(blake2b(n.to_bytes(4, "big"), digest_size=16).digest(), "big") for n in range(KEYS)]


def counted_keys() -> list[int]:
    """Numbers that a database has counted: 1, 2, 3, …"""
    return list(range(1, KEYS + 1))


def modulo(shards: int) -> Assign:
    """The article's formula: (key mod p) mod m."""
    return lambda key: f"s{key % P % shards}"


def modulo_range(shards: int) -> Assign:
    """Its range variant: ⌊(key mod p) · m / p⌋."""
    return lambda key: f"s{key % P * shards // P}"


def ring(shards: int) -> Assign:
    """HashRing over shards that joined one after the other."""
    placement = HashRing([f"s{n}" for n in range(shards)]).placement
    return lambda key: placement[slot_of(str(key))]


def ranges(shards: int) -> Assign:
    """RangeRouter whose longest range was split in the middle, again and again."""
    router = RangeRouter({"s0": range(256)})
    for n in range(1, shards):
        cuts = [slot for slot, _ in router.splits] + [router.slots]
        length, start = max((after - slot, -slot) for slot, after in pairwise(cuts))
        router = router.split(-start + length // 2, to=f"s{n}")
    placement = router.placement
    return lambda key: placement[slot_of(str(key))]


WAYS: dict[str, tuple[str, Callable[[int], Assign]]] = {
    "(key mod p) mod m": ("#c2452d", modulo),
    "⌊(key mod p) · m / p⌋": ("#d99a2b", modulo_range),
    "HashRing": ("#1f6fb2", ring),
    "RangeRouter, split": ("#5b9a68", ranges),
}


def moved(way: Callable[[int], Assign], before: int, after: int, keys: Sequence[int]) -> float:
    """The share of keys that change their shard."""
    old, new = way(before), way(after)
    return sum(old(key) != new(key) for key in keys) / len(keys)


def fullest(way: Callable[[int], Assign], shards: int, keys: Sequence[int]) -> float:
    """The keys of the fullest shard, as a multiple of an equal share."""
    return max(Counter(map(way(shards), keys)).values()) * shards / len(keys)


# ---- drawing

WIDTH, HEIGHT, TOP, BOTTOM = 860, 380, 74, 320
LEFT, MIDDLE, RIGHT = (60, 420), (490, 640), (700, 850)
"""Where the three plots begin and end."""


def text(x: float, y: float, words: str, anchor: str = "middle", size: int = 12, color: str = "#333") -> str:
    """One label."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{color}">{words}</text>'


def line(x1: float, y1: float, x2: float, y2: float, color: str = "#ddd", width: float = 1) -> str:
    """One line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width}"/>'


def height(share: float) -> float:
    """Where a value between 0 and 1 stands."""
    return BOTTOM - share * (BOTTOM - TOP)


def moves(keys: Sequence[int]) -> Iterator[str]:
    """The plot on the left: the share of keys that move as shards join."""
    start, end = LEFT
    yield text((start + end) / 2, TOP - 16, "Share of keys that move when a shard joins", size=13)
    steps = [(n, start + 20 + (end - start - 40) * (n - 1) / (MOST - 2)) for n in range(1, MOST)]
    for percent in range(0, 101, 25):
        yield line(start, height(percent / 100), end, height(percent / 100))
        yield text(start - 8, height(percent / 100) + 4, f"{percent} %", "end")
    for n, x in steps:
        yield text(x, BOTTOM + 18, f"{n} → {n + 1}")
    ideal = " ".join(f"{x:.1f},{height(1 / (n + 1)):.1f}" for n, x in steps)
    yield f'<polyline points="{ideal}" fill="none" stroke="#bbb" stroke-width="9" stroke-linecap="round"/>'
    for color, way in WAYS.values():
        points = [(x, height(moved(way, n, n + 1, keys))) for n, x in steps]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        yield f'<polyline points="{joined}" fill="none" stroke="{color}" stroke-width="2"/>'
        yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in points)


def balance(plot: tuple[int, int], title: str, keys: Sequence[int]) -> Iterator[str]:
    """A plot of bars: the fullest of four shards."""
    start, end = plot
    yield text((start + end) / 2, TOP - 16, title, size=13)
    for multiple in range(5):
        yield line(start, height(multiple / 4), end, height(multiple / 4), "#999" if multiple == 1 else "#ddd")
        yield text(start - 6, height(multiple / 4) + 4, f"{multiple} ×", "end")
    for n, (color, way) in enumerate(WAYS.values()):
        value = fullest(way, 4, keys)
        x, y = start + 10 + n * (end - start - 12) / len(WAYS), height(value / 4)
        yield f'<rect x="{x:.1f}" y="{y:.1f}" width="26" height="{BOTTOM - y:.1f}" fill="{color}"/>'
        yield text(x + 13, y - 5, f"{value:.2f}", size=11)


def drawing() -> str:
    """The whole file."""
    parts = [*moves(random_keys())]
    parts += balance(MIDDLE, "Fullest of 4: random ids", random_keys())
    parts += balance(RIGHT, "Fullest of 4: counted ids", counted_keys())
    x = float(LEFT[0])
    for name, color in (("1 / (n + 1), for equal shares", "#bbb"), *((n, c) for n, (c, _) in WAYS.items())):
        parts += [
            f'<rect x="{x:.1f}" y="352" width="12" height="12" fill="{color}"/>',
            text(x + 17, 362, name, "start"),
        ]
        x += 32 + 6.6 * len(name)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="Helvetica, Arial, sans-serif">'
    )
    background = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    return "\n".join([head, background, *parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    FILE.write_text(drawing(), encoding="utf-8")
