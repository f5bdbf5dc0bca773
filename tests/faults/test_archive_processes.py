"""Backups, merges and restores that are killed between any two steps, and places that fail, are slow, or lie."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from evsync.archive import directory as directory_module
from evsync.archive.backup import Backups
from evsync.archive.copies import Copy
from evsync.archive.history import read_copies
from evsync.archive.targets import open_target
from evsync.archive.verification import verify_copy
from evsync.errors import StoreUnavailable, TargetUnavailable, WrongStore
from evsync.inspection import Inspectable
from evsync.jetstream import streams
from evsync.opening import open_store
from evsync.operations.store_check import check_store, reader
from evsync.records import StoredEvent
from evsync.stores.sqlite.store import SqliteStore
from tests.archive_process import Workers, workers
from tests.archiving import MemoryTarget, copy_of, fill, memory_store, read_all
from tests.relaying import connected, eventually
from tests.vault import BOXES, a_vault, archive, fill_vault, opened, trim

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def processes() -> Iterator[Workers]:
    """Where work is done that may be killed."""
    with workers() as found:
        yield found


async def bank(directory: Path, size: int) -> list[StoredEvent]:
    """A store in a directory, and its log."""
    os.makedirs(directory, exist_ok=True)
    store = await SqliteStore.open(directory / "bank.db", service="bank")
    events = await fill(store, size)
    await store.close()
    return events


async def check_archive(directory: Path, events: list[StoredEvent], *, complete: bool) -> None:
    """Every copy is whole as far as it reaches, and holds the beginning of the log."""
    for place in ("one", "two"):
        copy = Copy(open_target(str(directory / place)), "bank.main", events[0].incarnation)
        report = await verify_copy(copy)
        assert report.problems == [], place
        found = [e async for _, part in read_copies([copy]) for e in part]
        assert found == events[: report.last]
        assert report.end == report.last
        if complete:
            assert (report.last, report.leftovers) == (len(events), [])


def copied(original: Path, name: str) -> Path:
    """A directory to spoil."""
    return Path(shutil.copytree(original, original.parent / name))


@pytest.mark.parametrize("work", ["backup", "merge"])
async def test_a_backup_killed_at_any_step_leaves_whole_segments(work: str, tmp_path: Path, processes: Workers) -> None:
    """kill -9 before every step: what is there is whole; the next backup brings everything, and tidies up."""
    original = tmp_path / "original"
    events = await bank(original, 35)
    if work == "merge":
        assert processes.run(original, "backup") == 0
    step, code = 0, -9
    while code == -9:
        directory = copied(original, f"step {step}")
        code = processes.run(directory, work, step=step)
        await check_archive(directory, events, complete=code == 0)
        assert processes.run(directory, work) == 0
        await check_archive(directory, events, complete=True)
        shutil.rmtree(directory)
        step += 1 if step < 60 else 7
    assert code == 0
    assert step > 25


async def test_a_restore_killed_at_any_step_leaves_no_half_store(tmp_path: Path, processes: Workers) -> None:
    """kill -9 before every step: there is no store, or all of it; begun again, it comes to its end."""
    original = tmp_path / "original"
    events = await bank(original, 35)
    assert processes.run(original, "backup") == 0
    step, code = 0, -9
    while code == -9:
        directory = copied(original, f"step {step}")
        code = processes.run(directory, "restore", step=step)
        if not (directory / "restored.db").exists():
            with pytest.raises(StoreUnavailable):
                await open_store(f"sqlite:///{directory}/restored.db", service="bank", create=False)
            assert processes.run(directory, "restore") == 0
        store = await open_store(f"sqlite:///{directory}/restored.db", service="bank", create=False)
        assert (await read_all(store))[:-1] == events
        await store.close()
        assert not list(directory.glob("*.restoring*")) or code == -9
        shutil.rmtree(directory)
        step += 1
    assert code == 0
    assert step > 8


@pytest.mark.parametrize("kind", ["postgres", "nats"])
async def test_a_restore_into_a_server_killed_at_any_step_leaves_no_half_store(
    kind: str, tmp_path: Path, processes: Workers, request: pytest.FixtureRequest
) -> None:
    """kill -9 before whatever it asks of the server: nobody can open a part, and the next restore comes to its end."""
    events = await bank(tmp_path, 12)
    assert processes.run(tmp_path, "backup") == 0
    if kind == "postgres":
        url = request.getfixturevalue("postgres_url") + "&schema=killed_{step}"
    else:
        url = request.getfixturevalue("nats_server").url + "/?stream=killed"
    step, code = 0, -9
    while code == -9:
        to = url.format(step=step)
        code = processes.run(tmp_path, "restore", step=step, to=to)
        try:
            store = await open_store(to, service="bank", create=False)
        except (StoreUnavailable, WrongStore):
            assert code == -9
            await eventually(lambda to=to: processes.run(tmp_path, "restore", to=to) == 0, "it was not restored")  # type: ignore[misc]
            store = await open_store(to, service="bank", create=False)
        assert (await read_all(store))[: len(events) + 1][:-1] == events
        await store.close()
        if kind == "nats":
            async with connected(request.getfixturevalue("nats_server").url) as connection:
                await streams.delete(connection, "killed")
        step += 1
    assert code == 0
    assert step > 8


async def test_a_trim_killed_at_any_step_leaves_everything_readable(tmp_path: Path, processes: Workers) -> None:
    """kill -9 before every transaction and every commit: all answers are as before, and the next trim does the rest."""
    original = tmp_path / "original"
    original.mkdir()
    async with (vault := a_vault(original)).open():
        await fill_vault(vault)
        await archive(vault)
        log, boxes = await read_all(vault.runtime.store), [await opened(vault, n) for n in range(BOXES)]
    step, code = 0, -9
    dropped: list[int] = []
    while code == -9:
        directory = copied(original, f"step {step}")
        code = processes.run(directory, "trim", step=step)
        async with (spoilt := a_vault(directory)).open():
            store = spoilt.runtime.store
            assert await read_all(store) == log
            for n, box in enumerate(boxes):
                now = await opened(spoilt, n)
                assert (now and (now.version, now.things)) == (box and (box.version, box.things))
            assert isinstance(store, Inspectable)
            assert (await check_store(store, reader(spoilt.codec))).problems == []
            dropped.append(len(log) - (await store.facts()).events)
            rest = await trim(spoilt, len(log))
            assert rest.dropped + dropped[-1] == len(log) - (await store.facts()).events
        shutil.rmtree(directory)
        step += 1
    assert code == 0
    assert dropped[0] == 0
    assert len(set(dropped)) > 2
    assert rest.dropped == 0


@pytest.mark.parametrize("most_bytes", [0, 300, 500])
async def test_a_full_disk_fails_a_backup_and_nothing_else(most_bytes: int, tmp_path: Path, processes: Workers) -> None:
    """Nothing half-written has a name; with room again the next backup brings everything."""
    directory = tmp_path / "bank"
    events = await bank(directory, 60)
    shared = directory / "bank.db-shm"
    assert not shared.exists()
    assert processes.run(directory, "backup", most_bytes=max(most_bytes, 1)) != 0
    assert not [p for p in directory.rglob("*.segment") if p.stat().st_size > most_bytes]
    await check_archive(directory, events, complete=False)
    assert processes.run(directory, "backup") == 0
    await check_archive(directory, events, complete=True)


async def test_a_full_disk_fails_a_restore_and_leaves_nothing(tmp_path: Path, processes: Workers) -> None:
    """No store, and none of the room that it took."""
    directory = tmp_path / "bank"
    events = await bank(directory, 600)
    assert processes.run(directory, "backup") == 0
    assert processes.run(directory, "restore", most_bytes=50_000) == 1
    assert "restored" not in " ".join(p.name for p in directory.iterdir())
    assert processes.run(directory, "restore") == 0
    store = await open_store(f"sqlite:///{directory}/restored.db", service="bank", create=False)
    assert (await read_all(store))[:-1] == events
    await store.close()


async def test_a_place_that_lies_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read back is not what was written: an error, and nothing under the name."""
    write = directory_module._write
    target, store = open_target(str(tmp_path / "place")), memory_store()
    events = await fill(store, 30)
    for lie in (lambda c: c[:-1], lambda c: b"", lambda c: c[:5] + b"\0" + c[6:]):
        monkeypatch.setattr(directory_module, "_write", lambda file, content, lie=lie: write(file, lie(content)))
        report = await Backups(store, [target], copies=1).run()
        assert not report.ok
        assert "did not keep" in (report.targets[0].error or "")
        assert await target.list("") == []
    monkeypatch.setattr(directory_module, "_write", write)
    assert (await Backups(store, [target], copies=1).run()).ok
    found = [e async for _, part in read_copies([copy_of(target)]) for e in part]
    assert found == events


async def test_a_place_that_cannot_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its name and the system's words."""

    def fail(file: Path, content: bytes) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(directory_module, "_write", fail)
    with pytest.raises(TargetUnavailable, match=r"place: .*Input/output error"):
        await open_target(str(tmp_path / "place")).put("a/b", b"content")
    (tmp_path / "file").write_text("")
    with pytest.raises(TargetUnavailable, match="file"):
        await open_target(str(tmp_path / "file")).put("a/b", b"content")


async def test_a_slow_place_keeps_no_other_from_its_backup() -> None:
    """Each is written as fast as it takes it."""
    go_on = asyncio.Event()

    class Slow(MemoryTarget):
        async def put(self, name: str, content: bytes, *, replace: bool = False) -> bool:
            await go_on.wait()
            return await super().put(name, content, replace=replace)

    slow, quick, store = Slow("slow"), MemoryTarget("quick"), memory_store()
    events = await fill(store, 60)
    running = asyncio.create_task(Backups(store, [slow, quick], copies=2, segment_events=10).run())
    async with asyncio.timeout(10):
        while (await verify_copy(copy_of(quick))).last < len(events):
            await asyncio.sleep(0.005)
    assert not running.done()
    assert slow.kept == {}
    go_on.set()
    assert (await running).ok
    assert (await verify_copy(copy_of(slow))).last == len(events)
