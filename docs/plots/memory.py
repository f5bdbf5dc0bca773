"""Draw docs/plots/memory.svg: the memory that long logs take, and the time of an event, by the length of the log.

python -m benchmarks memory --json measured.json
python docs/plots/memory.py measured.json      writes the file beside this one
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix(".svg")
COLORS = {"backup": "#c2452d", "restore": "#d99a2b", "replay": "#1f6fb2", "rebuild": "#5b9a68"}
_NAME = re.compile(r"(?P<operation>\w+) of (?P<events>[\d,]+)(?P<memory>: memory)?")

WIDTH, HEIGHT, TOP, BOTTOM = 860, 350, 60, 270
PLOTS = (70, 410), (500, 840)
"""Where the two plots begin and end."""

Lines = dict[str, dict[int, float]]
"""By operation: a value for each length of the log."""


def lines(measured: Mapping[str, Any]) -> tuple[Lines, Lines]:
    """MiB, and µs an event, in what `python -m benchmarks --json` has written."""
    memory: Lines = {o: {} for o in COLORS}
    time: Lines = {o: {} for o in COLORS}
    (rows,) = (section["rows"] for section in measured["sections"] if section["name"] == "memory")
    for row in rows:
        if name := _NAME.fullmatch(row["name"]):
            found = memory if name["memory"] else time
            found[name["operation"]][int(name["events"].replace(",", ""))] = row["median"]
    return memory, time


def text(x: float, y: float, words: str, anchor: str = "middle", size: int = 12) -> str:
    """One label."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="#333">{words}</text>'


def line(x1: float, y1: float, x2: float, y2: float, color: str = "#ddd") -> str:
    """One line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"/>'


def plot(ends: tuple[int, int], title: str, found: Lines, ticks: Sequence[int], limit: int | None) -> Iterator[str]:
    """One plot: a line for each operation, the length of the log in powers of ten."""
    start, end = ends
    lengths = sorted({n for values in found.values() for n in values})
    low, high = math.log10(lengths[0]), math.log10(lengths[-1])

    def place(n: int, value: float) -> tuple[float, float]:
        x = start + 20 + (end - start - 40) * (math.log10(n) - low) / ((high - low) or 1)
        return x, BOTTOM - value / ticks[-1] * (BOTTOM - TOP)

    yield text((start + end) / 2, TOP - 22, title, size=13)
    for tick in ticks:
        _, y = place(lengths[0], tick)
        yield line(start, y, end, y, "#c2452d" if tick == limit else "#ddd")
        yield text(start - 8, y + 4, f"{tick}", "end")
    for n in lengths:
        yield text(place(n, 0)[0], BOTTOM + 18, f"{n:,}")
    for operation, values in found.items():
        points = [place(n, value) for n, value in sorted(values.items())]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        yield f'<polyline points="{joined}" fill="none" stroke="{COLORS[operation]}" stroke-width="2"/>'
        yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{COLORS[operation]}"/>' for x, y in points)


def drawing(measured: Mapping[str, Any]) -> str:
    """The whole file."""
    memory, time = lines(measured)
    step = max(math.ceil(max(v for values in time.values() for v in values.values()) / 20) * 5, 5)
    parts = [*plot(PLOTS[0], "Most memory, MiB (300 is the limit)", memory, range(0, 301, 50), 300)]
    parts += plot(PLOTS[1], "Time of an event, µs", time, range(0, 4 * step + 1, step), None)
    parts.append(text(WIDTH / 2, BOTTOM + 38, "events in the log"))
    for n, (operation, color) in enumerate(COLORS.items()):
        x = 250 + n * 100
        parts += [
            f'<rect x="{x}" y="324" width="12" height="12" fill="{color}"/>',
            text(x + 17, 334, operation, "start"),
        ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="Helvetica, Arial, sans-serif">'
    )
    background = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    return "\n".join([head, background, *parts, "</svg>"]) + "\n"


def write(measured: Mapping[str, Any]) -> None:
    """Write the file."""
    FILE.write_text(drawing(measured), encoding="utf-8")


if __name__ == "__main__":
    write(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
