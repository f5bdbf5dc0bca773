"""Real processes that project one log into one file: killed, doubled, paused. Nothing is lost, doubled or moved."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from evsync.projections.batch import digest_of
from tests.projection_logs import Ledger, bank_events, fold_bank

EVENTS, SEED, GROUPS = 6_000, 20_260_101, 16
LOG = bank_events(EVENTS, SEED)
ROOT = Path(__file__).parents[2]


class Workers:
    """The processes of one test, and the file they work on."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, *, batch: int = 10, lease_ms: int = 400) -> subprocess.Popen[bytes]:
        """One more process. Small batches make it take some seconds, so that there is time to do it harm."""
        sizes = {"--events": EVENTS, "--seed": SEED, "--batch": batch, "--lease-ms": lease_ms}
        command = [sys.executable, "-m", "tests.projection_worker", str(self.file)]
        for option, value in sizes.items():
            command += [option, str(value)]
        output = self.file.with_name(f"worker-{len(self._processes)}.log").open("wb")
        with output:
            process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        self._processes.append(process)
        return process

    def said(self, process: subprocess.Popen[bytes]) -> str:
        """What the process has written so far."""
        return self.file.with_name(f"worker-{self._processes.index(process)}.log").read_text()

    def position(self) -> int:
        """The least of the stored checkpoints: 0 before there are any."""
        try:
            with closing(sqlite3.connect(self.file, timeout=10)) as connection:
                found = connection.execute("SELECT min(position) FROM evsync_checkpoints").fetchone()[0]
        except sqlite3.OperationalError:
            return 0
        return int(found or 0)

    def owner(self) -> str:
        """Who holds the groups, or held them last."""
        with closing(sqlite3.connect(self.file, timeout=10)) as connection:
            owners = connection.execute("SELECT DISTINCT owner FROM evsync_leases").fetchall()
        assert len(owners) == 1
        return str(owners[0][0])

    def end(self) -> None:
        """Leave no process behind."""
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    """A file, and nobody at work on it yet."""
    found = Workers(tmp_path / "views.db")
    yield found
    found.end()


def until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    """Return when the condition holds; fail when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.002)


def assert_is_a_fold_over_the_log(file: Path) -> int:
    """The tables hold what the events up to the checkpoints make, and the checkpoints count them; where they are."""
    engine = sa.create_engine(f"sqlite:///{file}")
    with engine.begin() as connection:
        rows = Ledger().rows(connection)
        checkpoints = connection.execute(sa.text('SELECT * FROM evsync_checkpoints ORDER BY "group"')).mappings().all()
    engine.dispose()
    assert [c["group"] for c in checkpoints] == list(range(GROUPS))
    (position,) = {c["position"] for c in checkpoints}
    assert rows == fold_bank(LOG[:position])
    handled = [e for e in LOG[:position] if not e.type.endswith("Audited")]
    for c in checkpoints:
        own = [e for e in handled if e.slot % GROUPS == c["group"]]
        assert c["count"] == len(own)
        assert int(c["digest"], 16) == sum(map(digest_of, own)) % 2**64
    return int(position)


def test_a_process_killed_again_and_again_while_it_catches_up_applies_each_event_once(workers: Workers) -> None:
    """Whatever the moment, the file holds whole batches and their checkpoints, and the next process goes on there."""
    chance = random.Random(1)
    reached = 0
    for _ in range(5):
        process = workers.start()
        goal = reached + chance.randrange(1, EVENTS // 7)
        until(lambda goal=goal: workers.position() >= goal)  # type: ignore[misc]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        before, reached = reached, assert_is_a_fold_over_the_log(workers.file)
        assert reached >= goal > before
    workers.start(batch=1_000)
    until(lambda: workers.position() == EVENTS)
    assert assert_is_a_fold_over_the_log(workers.file) == EVENTS


def test_a_projection_started_twice_is_applied_once_and_survives_the_one_that_worked(workers: Workers) -> None:
    """Both begin on an empty directory at the same moment; when the worker is killed, the other takes over."""
    both = [workers.start(), workers.start()]
    until(lambda: workers.position() > EVENTS // 10)
    first = workers.owner()
    # Whichever holds the groups: the first kill hits it, or the other, which then does not matter.
    both[0].kill()
    both[0].wait()
    until(lambda: workers.position() > EVENTS // 4)
    both.append(workers.start())
    both[1].kill()
    both[1].wait()
    until(lambda: workers.position() == EVENTS)
    assert workers.owner() != first
    assert assert_is_a_fold_over_the_log(workers.file) == EVENTS


def test_a_process_that_was_paused_and_taken_over_from_applies_nothing_when_it_wakes(workers: Workers) -> None:
    """It still believes that it holds the groups, and has a batch in its hands; its token says otherwise."""
    sleeper = workers.start()
    until(lambda: workers.position() > EVENTS // 20)
    first = workers.owner()
    heir = workers.start()
    while workers.owner() == first:
        # Paused in the middle of a transaction it would hold SQLite's lock, and nobody could take over: once more then.
        os.kill(sleeper.pid, signal.SIGCONT)
        time.sleep(random.uniform(0, 0.005))
        os.kill(sleeper.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 1.5
        while workers.owner() == first and time.monotonic() < deadline:
            time.sleep(0.01)
        assert workers.position() < EVENTS, "the log was too short to pause it in time"
    assert heir.poll() is None
    os.kill(sleeper.pid, signal.SIGCONT)
    until(lambda: "another worker has taken over; standing by" in workers.said(sleeper))
    assert workers.owner() != first
    until(lambda: workers.position() == EVENTS)
    assert assert_is_a_fold_over_the_log(workers.file) == EVENTS
    assert sleeper.poll() is None
    heir.kill()
    heir.wait()
    until(lambda: workers.owner() == first)  # it stood by, and is of use again
