"""The whole way from command to read model with real processes: starting, hurting and comparing them.

The services are those of tests.spine_services. Whatever happened to the processes, `Spine.in_step()` then asks of the
files alone: does the log hold every acknowledged save, whole, once, in order; does the stream mirror the log; do the
read models equal a fold over it; did the reaction answer each event once.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

from evsync.codec.values import unpack
from evsync.config import Deployment
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.settings import NatsSettings
from evsync.jetstream.rebuild import rebuild_stream
from evsync.jetstream.verification import check_stream
from evsync.records import StoredEvent
from evsync.stores.sqlite.store import SqliteStore
from tests.relaying import eventually
from tests.spine_services import TRAIL, is_noted

ROOT = Path(__file__).parents[1]
_APPLIED = "SELECT min(position) FROM evsync_checkpoints WHERE projection = ? AND log = ?"
LONG_S = 30.0
"""Deadline of what takes a second or two: the machine may be busy."""


class ServiceProcess:
    """One process of tests.spine_services, and what it wrote down."""

    def __init__(self, role: str, process: Process, errors: Path) -> None:
        self.role, self.process, self._errors = role, process, errors
        self.lines: list[str] = []
        self.acknowledged: dict[str, int] = {}
        """Token → position."""
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, role: str, tag: str, env: dict[str, str], errors: Path) -> ServiceProcess:
        """A process that has begun; it need not be open yet. What it writes to stderr is added to a file."""
        with errors.open("ab") as stderr:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.spine_services", role, tag,
                cwd=ROOT, env=os.environ | env, stdin=PIPE, stdout=PIPE, stderr=stderr,
            )  # fmt: skip
        return cls(role, process, errors)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            words = line.decode().rstrip("\n").split(" ")
            if words[0] == "ok":
                self.acknowledged[words[1]] = int(words[2])
            else:
                self.lines.append(" ".join(words))

    async def says(self, word: str, timeout_s: float = LONG_S) -> str:
        """The first line that begins with this word."""

        def found() -> str | None:
            assert word == "ended" or self.process.returncode is None, f"ended with {self.process.returncode}: {self}"
            return next((line for line in self.lines if line.split(" ", 1)[0] == word), None)

        return str(await eventually(found, lambda: f"{word!r} of {self}", timeout_s))

    async def saves(self, count: int) -> None:
        """Wait for so many more acknowledged saves."""
        enough = len(self.acknowledged) + count

        def saved() -> bool:
            assert self.lives, f"ended with {self.process.returncode}: {self}"
            return len(self.acknowledged) >= enough

        await eventually(saved, lambda: f"{enough} saves of {self}", LONG_S)

    async def be_quiet(self) -> None:
        """End the load, and wait until everything in flight was answered."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"quiet\n")
        await self.says("quiet")

    def pause(self) -> None:
        """Let it stand still (SIGSTOP); returns when all of its threads do."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let it go on (SIGCONT)."""
        self.process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        """SIGKILL; returns when all that it wrote was read. A second time does nothing."""
        with suppress(ProcessLookupError):
            self.process.kill()
        await self._over()

    async def terminate(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        await self._over()
        return self._code()

    async def ends(self) -> str:
        """Wait until it ends by itself; the error of which it died, as "TYPE TEXT"."""
        said = await self.says("ended")
        await self._over()
        assert self._code() == 1
        return said.partition(" ")[2]

    async def _over(self) -> None:
        async with asyncio.timeout(LONG_S):
            await self.process.wait()
            await self._reading

    def _code(self) -> int:
        assert self.process.returncode is not None
        return self.process.returncode

    async def pause_outside_of_transactions(self, *files: Path) -> None:
        """Let it stand still, but not while it holds the write lock of one of these SQLite files: SQLite gives nobody
        else a lock that a paused process holds, and the others could only wait with it."""

        def paused() -> bool:
            self.pause()
            if all(map(_can_be_written, files)):
                return True
            self.resume()
            return False

        await eventually(paused, f"a pause outside of transactions on {files}", LONG_S)

    @property
    def lives(self) -> bool:
        """Whether it has not ended."""
        return self.process.returncode is None

    def __str__(self) -> str:
        errors = self._errors.read_text(errors="replace")[-3000:]
        return f"a process with {len(self.acknowledged)} saves that said {self.lines[-5:]} and wrote {errors}"


class Fold(NamedTuple):
    """The read models as they must be."""

    accounts: dict[str, tuple[Any, ...]]
    """id → owner, balance, moves, notes, version."""
    trails: dict[str, int]
    applied: Counter[tuple[str, str]]
    """How many events each projection applied of each log."""


def fold(bank: Sequence[StoredEvent], desk: Sequence[StoredEvent]) -> Fold:
    """Replay the logs by hand, with nothing of evsync but the decoding of values."""
    rows: dict[str, list[Any]] = {}
    trails: dict[str, int] = {}
    applied: Counter[tuple[str, str]] = Counter()
    for e in (*bank, *desk):
        data = unpack(e.data)
        match e.type:
            case "bank.Account.Opened":
                rows[e.stream] = [data["owner"], None, None, None, e.version]
                applied["accounts", "bank.main"] += 1
            case "bank.Account.Moved":
                row = rows[e.stream]
                row[1:3], row[4] = [(row[1] or 0) + data["amount"], (row[2] or 0) + 1], e.version
                trails[e.stream] = (trails.get(e.stream, 0) * 31 + data["amount"] + 100) % TRAIL
                applied.update({("accounts", "bank.main"): 1, ("trails", "bank.main"): 1})
            case "desk.Note.Taken":
                rows[data["account"]][3] = (rows[data["account"]][3] or 0) + 1
                applied["accounts", "desk.main"] += 1
    return Fold({id: tuple(row) for id, row in rows.items()}, trails, applied)


class Spine:
    """A bank and a desk in one directory, with their processes."""

    def __init__(self, directory: Path, url: str, stack: AsyncExitStack) -> None:
        self.url = url
        self.bank_db, self.desk_db = directory / "bank.db", directory / "desk.db"
        self.views_db = directory / "views.db"
        self._views_uri = f"{self.views_db.as_uri()}?mode=ro"
        self.processes: list[ServiceProcess] = []
        self._directory, self._stack = directory, stack
        self._banks = self._desks = self._looks = 0

    @classmethod
    @asynccontextmanager
    async def at(cls, directory: Path, url: str) -> AsyncIterator[Self]:
        """Every process that is started is killed at the end."""
        async with AsyncExitStack() as stack:
            spine = cls(directory, url, stack)
            watching = asyncio.create_task(spine._watch())
            stack.callback(watching.cancel)
            yield spine
            if watching.done():
                watching.result()

    @property
    def settings(self) -> Deployment:
        """How to open the desk in the test's own process, to look on."""
        where: Deployment = {"store": f"sqlite:///{self.desk_db}", "views": f"sqlite:///{self.views_db}"}
        return {**where, "nats": self.url, "run": "none"}

    @property
    def environment(self) -> dict[str, str]:
        """The same, for processes."""
        return {
            "EVSYNC_NATS": self.url,
            "EVSYNC_BANK_STORE": f"sqlite:///{self.bank_db}",
            "EVSYNC_DESK_STORE": f"sqlite:///{self.desk_db}",
            "EVSYNC_DESK_VIEWS": f"sqlite:///{self.views_db}",
        }

    async def bank(self) -> ServiceProcess:
        """A bank that is open, and under load."""
        self._banks += 1
        return await self._start("bank", f"p{self._banks}")

    async def desk(self, **env: str) -> ServiceProcess:
        """A desk that is open."""
        self._desks += 1
        return await self._start("desk", "", **env)

    async def _start(self, role: str, tag: str, **env: str) -> ServiceProcess:
        process = await ServiceProcess.start(role, tag, self.environment | env, self._directory / f"{role}.err")
        self._stack.push_async_callback(process.kill)
        self.processes.append(process)
        await process.says("open")
        return process

    @property
    def acknowledged(self) -> dict[str, int]:
        """Every save of which any bank heard that it is durable: token → position."""
        return {token: position for p in self.processes for token, position in p.acknowledged.items()}

    async def _watch(self) -> None:
        """What a reader of the read model may never see: the model going back, or, while one process works on all
        groups, half a commit."""
        before = 0
        while True:
            await asyncio.sleep(0.02)
            with suppress(sqlite3.OperationalError), closing(sqlite3.connect(self._views_uri, uri=True)) as c:
                c.execute("BEGIN")
                [(total,)] = c.execute("SELECT sum(balance) FROM accounts")
                [(position,)] = c.execute(_APPLIED, ("accounts", "bank.main"))
                assert self._desks > 1 or not total, f"at position {position} the balances add up to {total}"
                assert (position or 0) >= before, f"the read model went back from position {before} to {position}"
                before = position or 0
                self._looks += 1

    # ---- looking

    def applied_up_to(self, projection: str = "accounts", log: str = "bank.main") -> int:
        """The position up to which the read model in the file shows a log."""
        with closing(sqlite3.connect(self.views_db, timeout=10)) as c, suppress(sqlite3.OperationalError):
            return int(c.execute(_APPLIED, (projection, log)).fetchone()[0] or 0)
        return 0  # no such table yet

    async def applies(self, count: int) -> None:
        """Wait until the read model shows so many more events."""
        enough = self.applied_up_to() + count
        await eventually(lambda: self.applied_up_to() >= enough, lambda: f"position {enough} applied", LONG_S)

    @asynccontextmanager
    async def store(self, service: str) -> AsyncIterator[SqliteStore]:
        """A service's store, opened beside it."""
        path = self.bank_db if service == "bank" else self.desk_db
        store = await SqliteStore.open(path, service=service, create=False)
        try:
            yield store
        finally:
            await store.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection of the test's own."""
        async with await Connection.open(NatsSettings(self.url), "test") as conn:
            await conn.ready(LONG_S)
            yield conn

    async def rebuild(self) -> None:
        """What `evsync stream rebuild` does for the bank."""
        async with self.store("bank") as log, self.connection() as conn:
            assert (await rebuild_stream(log, conn)).ok

    # ---- comparing

    async def in_step(self) -> None:
        """End the load; everything that lives catches up; then nothing is lost, doubled, torn or reordered.

        A bank or a desk that is needed for that and does not live is started. No save ever failed: none of these tests
        does anything to a store.
        """
        for bank in self._living("bank") or [await self.bank()]:
            await bank.be_quiet()
        if not self._living("desk"):
            await self.desk()
        async with self.store("bank") as bank_log, self.store("desk") as desk_log, self.connection() as conn:
            await self._caught_up(bank_log, desk_log)
            events = await whole(bank_log)
            answers = await whole(desk_log)
            self._check_log(events)
            self._check_notes(events, answers)
            self._check_views(fold(events, answers))
            for log in (bank_log, desk_log):
                await eventually(partial(_mirrors, log, conn), f"a stream that mirrors {log.identity}", LONG_S)

        assert [line for p in self.processes for line in p.lines if line.startswith("failed ")] == []
        assert self._looks > 0

    def _living(self, role: str) -> list[ServiceProcess]:
        return [p for p in self.processes if p.lives and p.role == role]

    async def _caught_up(self, bank: SqliteStore, desk: SqliteStore) -> None:
        end = await bank.head()

        async def answered() -> bool:
            return any(c.position >= end for c in await desk.checkpoints("notes"))

        await eventually(answered, lambda: f"bank.main answered up to {end}; {self}", LONG_S)
        ends = {
            ("accounts", "bank.main"): end,
            ("trails", "bank.main"): end,
            ("accounts", "desk.main"): await desk.head(),
        }

        def behind() -> list[str]:
            found = {of: self.applied_up_to(*of) for of in ends}
            return [f"{of} up to {found[of]} of {position}" for of, position in ends.items() if found[of] < position]

        await eventually(lambda: not behind(), lambda: f"everything applied: {behind()}; {self}", LONG_S)

    def _check_log(self, events: Sequence[StoredEvent]) -> None:
        """Every acknowledged save is there; every save that is there is whole, once; nobody's saves changed places."""
        assert [e.position for e in events] == list(range(1, len(events) + 1))
        assert len({e.id for e in events}) == len(events)
        versions: Counter[str] = Counter()
        found: dict[str, list[int]] = {}
        for e in events:
            versions[e.stream] += 1
            assert e.version == versions[e.stream]
            if e.type == "bank.Account.Moved":
                found.setdefault(unpack(e.data)["token"], []).append(e.position)
        assert {t: p[-1] for t, p in found.items() if t in self.acknowledged} == self.acknowledged
        latest: dict[str, int] = {}  # `found` is in the order of the log
        for token, positions in found.items():
            assert positions == [positions[0], positions[0] + 1], f"the commit of {token} at {positions}"
            worker, _, n = token.rpartition("-")
            assert int(n) > latest.get(worker, 0), f"{token} after {worker}-{latest[worker]}"
            latest[worker] = int(n)

    @staticmethod
    def _check_notes(events: Sequence[StoredEvent], answers: Sequence[StoredEvent]) -> None:
        """Each event that calls for a note has one, in the order of the log, and says what caused it."""
        moves = [(e, unpack(e.data)) for e in events if e.type == "bank.Account.Moved"]
        due = [(e.id, e.stream, data["token"]) for e, data in moves if is_noted(data["amount"])]
        taken = [(json.loads(a.meta or "{}")["causation_id"], unpack(a.data)) for a in answers]
        assert [(bytes.fromhex(c.replace("-", "")), d["account"], d["token"]) for c, d in taken] == due

    def _check_views(self, expected: Fold) -> None:
        with closing(sqlite3.connect(self.views_db)) as c:
            rows = c.execute("SELECT id, owner, balance, moves, notes, version FROM accounts").fetchall()
            assert {row[0]: tuple(row[1:]) for row in rows} == expected.accounts
            assert dict(c.execute("SELECT id, trail FROM trails").fetchall()) == expected.trails
            counts = c.execute("SELECT projection, log, sum(count) FROM evsync_checkpoints GROUP BY 1, 2").fetchall()
            assert {(p, log): n for p, log, n in counts if n} == expected.applied

    def __str__(self) -> str:
        return "\n".join(map(str, self.processes))


async def whole(log: SqliteStore) -> list[StoredEvent]:
    """All events of a log."""
    events: list[StoredEvent] = []
    while more := await log.read(len(events), 10_000):
        events += more
    return events


async def _mirrors(log: SqliteStore, conn: Connection) -> bool:
    report = await check_stream(log, conn)
    assert report.problems == []
    return (report.first, report.last) == (1, report.head)


def _can_be_written(file: Path) -> bool:
    with closing(sqlite3.connect(file, timeout=1.0, isolation_level=None)) as c:
        try:
            c.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        c.execute("ROLLBACK")
        return True
