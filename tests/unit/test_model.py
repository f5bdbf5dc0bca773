"""The protocols by which slots move and workers share, explored state by state."""

from __future__ import annotations

import subprocess
import sys

from tests.docs.pages import ROOT

CHECKS = ("truth, consumer", "truth, on", "swap+consumer", "workers 3")
BUGS = (
    "no_barrier",
    "no_fence",
    "reference_without_heads",
    "open_without_tail",
    "blind_import",
    "rollback_after_fence",
)


def test_the_model_of_a_move_holds_and_finds_what_is_planted() -> None:
    """Every interleaving of writers, late requests, two movers that die, and a consumer; in small.

    `python tests/model/mc.py` explores all of it, in some minutes. "truth" is the way of evsync.homes: an append that
    is refused looks at the rows of all shards, and sends the commit to the one where the slot is open.
    """
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "model" / "mc.py"), *CHECKS, *BUGS],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("OK ") == len(CHECKS) + len(BUGS), done.stdout
