"""The plot of long logs shows what was measured."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks import memory
from benchmarks.report import Section, as_json
from benchmarks.rounds import Row

DRAW = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "plots" / "memory.py"))["drawing"]


def test_every_operation_has_a_point_for_every_length_in_both_plots() -> None:
    """Of the JSON that `python -m benchmarks memory --json` writes; twice the memory is half as far from the top."""
    rows = [
        Row(name=f"{operation} of {events:,}{kind}", unit="", values=[150.0 if kind else 3.0])
        for operation in memory.OPERATIONS
        for events in memory.SIZES
        for kind in ("", ": memory")
    ]
    measured: dict[str, Any] = json.loads(json.dumps(as_json([Section("memory", "", "", rows)])))
    drawn = ElementTree.fromstring(DRAW(measured))
    circles = drawn.findall("{*}circle")
    assert len(circles) == 2 * len(memory.OPERATIONS) * len(memory.SIZES)
    assert {c.get("cy") for c in circles if float(c.get("cx", "")) < 450} == {"165.0"}  # half of 300 MiB
