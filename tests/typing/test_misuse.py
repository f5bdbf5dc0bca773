"""The public face refuses misuse before anything runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def test_a_type_checker_refuses_each_misuse_and_nothing_else() -> None:
    """mypy --strict reports exactly the lines that are marked as wrong."""
    source = (HERE / "misuse.py").read_text().splitlines()
    marked = {n for n, line in enumerate(source, 1) if "# wrong" in line}
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "tests/typing/misuse.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    lines = re.findall(r"misuse\.py:(\d+): error", done.stdout)
    found = {int(n) for n in lines}
    assert found == marked, f"missed {sorted(marked - found)}, too many {sorted(found - marked)}:\n{done.stdout}"
