"""Real processes that project one log into one file: killed, doubled, paused. Nothing is lost, doubled or moved."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.projection_processes import Workers, until

EVENTS = 6_000


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    """A file, and nobody at work on it yet."""
    found = Workers(f"sqlite:///{tmp_path}/views.db", tmp_path, EVENTS)
    yield found
    found.end()


def test_a_process_killed_again_and_again_while_it_catches_up_applies_each_event_once(workers: Workers) -> None:
    """Whatever the moment, the file holds whole batches and their checkpoints, and the next process goes on there."""
    chance = random.Random(1)
    reached = 0
    for _ in range(5):
        process = workers.start(pace_ms=8)
        goal = reached + chance.randrange(1, (EVENTS - reached) // 7)
        workers.until(lambda goal=goal: workers.position() >= goal)  # type: ignore[misc]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        before, reached = reached, workers.assert_is_a_fold_over_the_log()
        assert reached >= goal > before
    workers.start(batch=1_000)
    workers.until(lambda: workers.position() == EVENTS)
    assert workers.assert_is_a_fold_over_the_log() == EVENTS


def test_a_projection_started_twice_is_applied_once_and_survives_the_one_that_is_killed(workers: Workers) -> None:
    """Both begin on an empty directory at the same moment and share the work; who is left takes the rest over."""
    both = [workers.start(pace_ms=8), workers.start(pace_ms=8)]
    until(lambda: sorted(workers.shares().values()) == [8, 8] and workers.position() > EVENTS // 50)
    both[0].kill()
    both[0].wait()
    until(lambda: workers.shares() == {str(both[1].pid): 16}, 5)
    assert workers.position() < EVENTS, "the log was too short to see it taken over"
    third = workers.start()
    until(lambda: len(workers.shares()) == 2)
    both[1].kill()
    until(lambda: workers.position() == EVENTS)
    until(lambda: workers.shares() == {str(third.pid): 16}, 5)
    assert workers.assert_is_a_fold_over_the_log() == EVENTS


def test_a_process_that_was_paused_and_taken_over_from_applies_nothing_when_it_wakes(workers: Workers) -> None:
    """It still believes that it holds the groups, and has a batch in its hands; its token says otherwise."""
    sleeper = workers.start(pace_ms=40)
    until(lambda: workers.position() > 0)
    heir = workers.start(pace_ms=40)
    until(lambda: len(workers.shares()) == 2)
    while len(workers.shares()) == 2:
        # Paused in the middle of a transaction it would hold SQLite's lock, and nobody could take over: once more then.
        os.kill(sleeper.pid, signal.SIGCONT)
        time.sleep(random.uniform(0, 0.005))
        os.kill(sleeper.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 1.5
        while len(workers.shares()) == 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert workers.position() < EVENTS, "the log was too short to pause it in time"
    assert workers.shares() == {str(heir.pid): 16}
    os.kill(sleeper.pid, signal.SIGCONT)
    until(lambda: "standing by" in workers.said(sleeper))
    until(lambda: workers.position() == EVENTS)
    assert workers.assert_is_a_fold_over_the_log() == EVENTS
    assert sleeper.poll() is heir.poll() is None
    until(lambda: sorted(workers.shares().values()) == [8, 8])  # and it is of use again
