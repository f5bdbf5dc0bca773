"""The protocol of workers, explored: every interleaving of takes, batches, kills, releases, parking and retries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

MODEL = Path(__file__).parents[1] / "model" / "mc.py"
HOLDS = ("workers 3", "sharing 2, short")
PLANTED = (
    "fence_before_tx", "load_before_token", "position_per_worker",
    "retry_without_token", "parked_from_memory", "release_in_batch", "park_apart",
)  # fmt: skip


def test_the_protocol_of_workers_holds_in_every_interleaving_and_planted_bugs_are_found() -> None:
    """A small instance: each stream in its order, each event applied or parked once. Larger ones: `python mc.py`."""
    done = subprocess.run([sys.executable, MODEL, *HOLDS, *PLANTED], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert [line[:4] for line in lines] == ["OK  "] * (len(HOLDS) + len(PLANTED)), done.stdout + done.stderr
    assert done.returncode == 0
