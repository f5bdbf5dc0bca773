"""Real processes that project one log into one database: started, ended and looked at by fault tests."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from evsync.projections.batch import digest_of
from evsync.projections.models.engines import ViewsPlace
from evsync.records import StoredEvent
from tests.projection_logs import Ledger, bank_events, fold_bank

SEED, GROUPS = 20_260_101, 16
ROOT = Path(__file__).parents[1]


class Workers:
    """The processes of one test, and the database they work on."""

    def __init__(self, url: str, directory: Path, events: int, bad: Collection[int] = ()) -> None:
        """`bad` are positions of payments that no handler accepts: their streams are parked."""
        self.events, self.bad = events, set(bad)
        self.log = bank_events(events, SEED)
        self.processes: list[subprocess.Popen[bytes]] = []
        self._url, self._directory = url, directory

    def start(self, *more: str, batch: int = 10, lease_ms: int = 400, pace_ms: int = 0) -> subprocess.Popen[bytes]:
        """One more process. Small batches, or pauses between them, leave time to do it harm."""
        options = {"events": self.events, "seed": SEED, "batch": batch, "lease-ms": lease_ms, "pace-ms": pace_ms}
        command = [sys.executable, "-m", "tests.projection_worker", self._url]
        for option, value in options.items():
            command += [f"--{option}", str(value)]
        command += [*more, "--bad", *map(str, sorted(self.bad))]
        with (self._directory / f"worker-{len(self.processes)}.log").open("wb") as output:
            process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        self.processes.append(process)
        return process

    def said(self, process: subprocess.Popen[bytes]) -> str:
        """What the process has written so far."""
        return (self._directory / f"worker-{self.processes.index(process)}.log").read_text()

    def until(self, condition: Callable[[], bool], timeout_s: float = 30) -> None:
        """As `until`, and what everybody said and has where it does not come to that."""
        try:
            until(condition, timeout_s)
        except AssertionError as e:
            said = "\n".join(f"{p.pid} ({p.poll()}): {self.said(p)[-2_000:]}" for p in self.processes)
            rows = [row for t in ("leases", "workers", "checkpoints") for row in self.read(f"SELECT * FROM evsync_{t}")]
            raise AssertionError(f"{e}\n{said}\n" + "\n".join(map(str, rows))) from e

    def position(self) -> int:
        """The least of the stored checkpoints: 0 before there are any."""
        found = self.read('SELECT min(position) AS least, count(DISTINCT "group") AS n FROM evsync_checkpoints')
        return int(found[0]["least"] or 0) if found and found[0]["n"] == GROUPS else 0

    def shares(self) -> dict[str, int]:
        """How many groups each process has, by its id. Leases are believed whether they run or not."""
        rows = self.read("SELECT owner, count(*) AS n FROM evsync_leases WHERE expires > 0 GROUP BY owner")
        return {row["owner"].split(":")[1]: row["n"] for row in rows}

    def present(self) -> set[str]:
        """The ids of the processes that are there to work, or have lately been."""
        return {row["owner"].split(":")[1] for row in self.read("SELECT owner FROM evsync_workers")}

    def read(self, select: str) -> list[dict[str, Any]]:
        """The rows of a select; none while the tables or the database are not there."""
        engine = ViewsPlace.of(self._url).engine(readers=1)
        try:
            with engine.connect() as connection:
                return [dict(row) for row in connection.execute(sa.text(select)).mappings()]
        except (sa.exc.OperationalError, sa.exc.ProgrammingError):
            return []
        finally:
            engine.dispose()

    def assert_is_a_fold_over_the_log(self) -> int:
        """The tables hold what the events up to the checkpoints make, and these count them; the least of these.

        Before there are tables that is nothing.
        """
        engine = ViewsPlace.of(self._url).engine(readers=1)
        with engine.connect() as connection:
            # One snapshot of it all: workers may be at work.
            if connection.dialect.name == "postgresql":
                connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            if not sa.inspect(connection).has_table("accounts"):
                return 0
            rows = Ledger().rows(connection)
            found = connection.execute(sa.text('SELECT * FROM evsync_checkpoints ORDER BY "group"')).mappings().all()
            parked = connection.execute(sa.text("SELECT position FROM evsync_parked ORDER BY position")).scalars().all()
        engine.dispose()
        checkpoints = {c["group"]: c for c in found}
        reached = {group: int(checkpoints[group]["position"]) if group in checkpoints else 0 for group in range(GROUPS)}
        passed = [e for e in self.log if e.position <= reached[e.slot % GROUPS]]
        applied, aside = divided(passed, self.bad)
        assert [e.position for e in aside] == parked
        assert rows == fold_bank(applied)
        for group, c in checkpoints.items():
            own = [e for e in applied if e.slot % GROUPS == group and not e.type.endswith("Audited")]
            assert c["count"] == len(own)
            assert int(c["digest"], 16) == sum(map(digest_of, own)) % 2**64
        return min(reached.values())

    def end(self) -> None:
        """Leave no process behind."""
        for process in self.processes:
            process.kill()
            process.wait()


def divided(events: Iterable[StoredEvent], bad: Collection[int]) -> tuple[list[StoredEvent], list[StoredEvent]]:
    """What is applied and what is parked where the payments at some positions are bad: worked out with a set alone."""
    applied, parked, streams = [], [], set()
    for e in events:
        if e.type.endswith("Paid") and e.position in bad:
            streams.add(e.stream)
        (parked if e.stream in streams and not e.type.endswith("Audited") else applied).append(e)
    return applied, parked


def until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    """Return when the condition holds; fail when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.005)
