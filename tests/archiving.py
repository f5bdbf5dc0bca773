"""What the tests of the archive share: logs to archive, a place in memory that can fail, an S3 server."""

from __future__ import annotations

import random
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evsync.archive.backup import Backups
from evsync.archive.copies import Copy
from evsync.codec.values import pack
from evsync.errors import TargetUnavailable
from evsync.ports import BackupTarget, Store
from evsync.records import Append, Commit, LogIdentity, NewEvent, StoredEvent, new_command
from evsync.sharding.slots import slot_of
from evsync.stores.memory import MemoryStore

IDENTITY = LogIdentity("bank", "main", "3f9a2b1c7d5e")
START_US = 1_700_000_000_000_000


class MemoryTarget:
    """A BackupTarget in this process. `fail` is asked before everything it does, and may raise."""

    def __init__(self, url: str = "memory://backups", fail: Callable[[str, str], None] | None = None) -> None:
        self.url, self.kept = url, dict[str, bytes]()
        self.fail = fail or (lambda _what, _name: None)

    async def put(self, name: str, content: bytes, *, replace: bool = False) -> bool:
        self.fail("put", name)
        if name in self.kept and not replace:
            return False
        self.kept[name] = content
        return True

    async def get(self, name: str, *, most: int | None = None) -> bytes | None:
        self.fail("get", name)
        content = self.kept.get(name)
        return content if content is None else content[:most]

    async def list(self, prefix: str) -> Sequence[str]:
        self.fail("list", prefix)
        return sorted(n for n in self.kept if n.startswith(prefix))

    async def delete(self, name: str) -> None:
        self.fail("delete", name)
        self.kept.pop(name, None)

    async def close(self) -> None:
        pass


def away(*_: str) -> None:
    """For `MemoryTarget.fail`: a place that does not answer."""
    raise TargetUnavailable("the place is away")


async def fill(store: Store, size: int, seed: int = 0) -> list[StoredEvent]:
    """Append about so many events in commits of one to four, to new streams and old ones; all events of the log."""
    chance = random.Random(f"{seed} {await store.head()}")
    head = await store.head()
    versions: dict[str, int] = {}
    for event in await read_all(store):
        versions[event.stream] = max(versions.get(event.stream, 0), event.version)
    target = head + size
    commits: list[Commit] = []
    while head < target:
        appends = []
        for account in chance.sample(range(40), chance.choice((1, 1, 1, 2))):
            stream = f"account-{account}"
            n = chance.choice((1, 1, 2))
            new = [
                NewEvent(
                    "bank.Account.Paid", START_US + 1_000 * (head + i), pack({"amount": chance.randrange(999)}), None
                )
                for i in range(n)
            ]
            appends.append(Append(stream, slot_of(stream), versions.get(stream, 0), new))
            versions[stream] = versions.get(stream, 0) + n
            head += n
        commits.append(Commit(new_command(), appends))
    outcomes = await store.append(commits)
    assert all(isinstance(outcome, int) for outcome in outcomes)
    return await read_all(store)


def _paid(time_us: int, amount: int) -> NewEvent:
    return NewEvent("bank.Account.Paid", time_us, pack({"amount": amount}), None)


async def read_all(store: Store) -> list[StoredEvent]:
    """Every event of a log."""
    events: list[StoredEvent] = []
    while part := await store.read(len(events), 5_000):
        events += part
    return events


def memory_store() -> MemoryStore:
    """An empty log."""
    return MemoryStore(IDENTITY)


async def archived(
    size: int, *targets: BackupTarget, segment_events: int = 10
) -> tuple[MemoryStore, list[StoredEvent]]:
    """A log of so many events, backed up in small segments."""
    store = memory_store()
    events = await fill(store, size)
    report = await Backups(store, targets, copies=len(targets), segment_events=segment_events).run()
    assert report.ok, report
    return store, events


def copy_of(target: BackupTarget, identity: LogIdentity = IDENTITY) -> Copy:
    """The copy of a log in a target: the bank's, if none is named."""
    return Copy(target, identity.name, identity.incarnation)


@contextmanager
def s3_server(directory: Path) -> Iterator[str]:
    """The endpoint of an S3 server of its own (moto's), which forgets everything at the end."""
    program = (
        "from moto.moto_server.threaded_moto_server import ThreadedMotoServer\n"
        "import sys, threading\n"
        "server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)\n"
        "server.start()\n"
        "print(server.get_host_and_port()[1], flush=True)\n"
        "sys.stdin.read()\n"
    )
    environment: Any = {"PATH": "/usr/bin:/bin", "HOME": str(directory)}
    with (directory / "s3.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment
        )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()


def make_bucket(endpoint: str, name: str) -> None:
    """On such a server."""
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT")).close()
