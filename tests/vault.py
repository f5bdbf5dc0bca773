"""A service whose store is trimmed: boxes with long histories and snapshots, short ones without, and burnt ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evsync import BackupPolicy, NamedAggregate, Service, SnapshotPolicy, event
from evsync.archive.backup import Backups
from evsync.archive.copies import Copy
from evsync.archive.targets import opened_targets
from evsync.errors import NotFound
from evsync.operations.trimming import TrimReport, trim_store, verified_copies
from evsync.records import StoredEvent
from tests.archiving import read_all

BOXES = 12
SEGMENT_EVENTS = 25


class Box(NamedAggregate):
    """What is put into a box stays there, until it is burnt."""

    class Burnt(NamedAggregate.Event):
        """There is no aggregate after it."""

        def mutate(self, aggregate: Any) -> Any:
            """The library's way to discard."""
            super().mutate(aggregate)

    @event("Opened")
    def __init__(self, id: str) -> None:
        self.things: list[int] = []

    @event("Put")
    def put(self, thing: int) -> None:
        """One thing more."""
        self.things.append(thing)

    def burn(self) -> None:
        """The end."""
        self.trigger_event(self.Burnt)


def a_vault(directory: Path, store: str = "") -> Service:
    """Archived in two places of a directory; its store a file there, if no other is named."""
    return Service(
        "vault",
        aggregates=[Box],
        snapshots=SnapshotPolicy(every_events=10),
        backups=BackupPolicy(targets=[str(directory / name) for name in ("one", "two")], loss=0.1),
        store=store or f"sqlite:///{directory}/vault.db",
        run="none",
    )


async def fill_vault(vault: Service) -> None:
    """Boxes 0 to 3 are put into often, 4 to 7 a few times, the others burnt. The service is open."""
    for turn in range(14):
        for n in range(BOXES):
            box = Box(f"box-{n}") if turn == 0 else await opened(vault, n)
            if box is None or (n >= 4 and turn >= 3):
                continue
            box.put(turn)
            box.put(-turn)
            if n >= 8 and turn == 2:
                box.burn()
            await vault.save(box)
    await vault.runtime.snapshots.close()  # type: ignore[union-attr]  # it has some


async def opened(vault: Service, n: int) -> Box | None:
    """A box; None for one that was burnt."""
    try:
        return await vault.get(Box, f"box-{n}")
    except NotFound:
        return None


async def archive(vault: Service) -> int:
    """Bring the log to its places, in short segments; how far."""
    policy, store = vault.backups, vault.store
    assert policy is not None
    assert store is not None
    async with opened_targets(policy.targets) as targets:
        report = await Backups(store, targets, copies=policy.copies, segment_events=SEGMENT_EVENTS).run()
    assert report.ok, report
    return report.head


async def trim(vault: Service, position: int) -> TrimReport:
    """Trim the open service's store, as the command does."""
    policy, store = vault.backups, vault.store
    assert policy is not None
    assert store is not None
    async with opened_targets(policy.targets) as targets:
        copies: list[Copy] = await verified_copies(
            store, targets, policy.copies, position, lambda _: lambda done, total: None
        )
        return await trim_store(store, copies, position, vault.codec, vault.runtime.snapshots)


async def everything(vault: Service) -> dict[str, Any]:
    """Whatever can be asked of the vault, and its answers."""
    answers: dict[str, Any] = {}
    store = vault.store
    assert store is not None
    log: list[StoredEvent] = await read_all(store)
    answers["log"] = log
    for n in range(BOXES):
        box, stream = await opened(vault, n), f"box-{n}"
        answers[f"now {n}"] = box and (box.version, box.things)
        answers[f"events {n}"] = await store.read_stream(stream)
        assert answers[f"events {n}"] == [e for e in log if e.stream == stream]
        for version in range(1, len(answers[f"events {n}"]) + 1):
            try:
                then = await vault.get(Box, stream, version=version)
                answers[f"then {n} {version}"] = then.things
            except NotFound as e:
                answers[f"then {n} {version}"] = str(e)
    return answers
