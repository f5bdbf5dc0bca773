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


ALONE = (
    "late",
    "late, elsewhere",
    "begun again",
    "one slot",
    "two movers",
    "two movers, elsewhere",
    "three shards",
    "three shards, elsewhere",
)
PLANTED = (
    "no_fence",
    "import_not_fenced",
    "ask_before_fence",
    "first_fence_counts",
    "no_own_fence",
    "no_rescue",
    "no_closed",
    "closed_elsewhere",
    "no_opened",
    "no_imports",
    "any_open",
    "no_refusal",
    "split_commit",
    "barrier_by_position",
    "ahead_unnoticed",
    "ahead_passes",
    "stale_view",
    "stale_again",
)


def run(model: str, *names: str) -> None:
    """All of these checks hold, and all of these bugs are found."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "model" / model), *names],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("OK ") == len(names), done.stdout


def test_the_model_of_a_move_holds_and_finds_what_is_planted() -> None:
    """Every interleaving of writers, late requests, two movers that die, and a consumer; in small.

    `python tests/model/mc.py` explores all of it, in some minutes. "truth" is the way of evsync.homes: an append that
    is refused looks at the rows of all shards, and sends the commit to the one where the slot is open.
    """
    run("mc.py", *CHECKS, *BUGS)


def test_the_model_of_a_shard_restored_alone_holds_and_finds_what_is_planted() -> None:
    """Every interleaving of appends, movers that die or hang, a restore beside two or three shards, processes that
    still have the lost store, and followers of any of it; in small. `python tests/model/alone.py` explores more."""
    run("alone.py", *ALONE, *PLANTED)
