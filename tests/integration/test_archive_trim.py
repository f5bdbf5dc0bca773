"""Stores that are trimmed from the front: what leaves is archived, and whoever asks gets the same answers as before."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evsync import Contract, Event, Projection, Service, SqlModel, Tables
from evsync.archive.backup import Backups
from evsync.archive.targets import open_target, opened_targets
from evsync.archive.verification import verify_copy
from evsync.errors import (
    ArchiveDamaged,
    ArchiveIncomplete,
    ConfigurationError,
    Conflict,
    HistoryGone,
    NotFound,
)
from evsync.inspection import Inspectable
from evsync.jetstream.server import EmbeddedServer
from evsync.jetstream.verification import check_stream
from evsync.opening import open_store
from evsync.operations.recovery import drill
from evsync.operations.store_check import check_store, reader
from evsync.operations.verification import verify
from evsync.ports import Share
from evsync.records import StoredEvent
from evsync.sharding.handover import bring_about
from evsync.stores import trimmed
from evsync.stores.trimmed import Trimmed
from evsync.testing.contracts.samples import check_stretch
from tests.archiving import copy_of, read_all
from tests.integration.test_archive_stream import relayed
from tests.relaying import connected, eventually
from tests.vault import BOXES, Box, a_vault, archive, everything, fill_vault, opened, trim

pytestmark = pytest.mark.anyio


@pytest.fixture
async def vault(tmp_path: Path) -> AsyncIterator[Service]:
    """A vault that is open, filled, and archived up to its head."""
    service = a_vault(tmp_path)
    async with service.open():
        await fill_vault(service)
        await archive(service)
        yield service


@pytest.fixture(params=["sqlite", "postgres"])
async def any_vault(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Service]:
    """The same, in any database that can be trimmed."""
    schema = f"&schema=vault_{uuid4().hex}"
    store = request.getfixturevalue("postgres_url") + schema if request.param == "postgres" else ""
    service = a_vault(tmp_path, store)
    async with service.open():
        await fill_vault(service)
        await archive(service)
        yield service


async def left_in(service: Service) -> dict[str, int]:
    """How many events of each stream are in its store still."""
    store = service.store
    assert isinstance(store, Inspectable)
    found = await store.scan(0, 10_000)
    return Counter(e.stream for e in found if isinstance(e, StoredEvent))


SHARES = [Share(frozenset(groups), of) for groups, of in [([0], 2), ([1], 2), ([0, 2], 3), ([1], 5), ([0, 1, 2, 4], 5)]]


async def head_of(service: Service) -> int:
    """The last position of its log."""
    assert service.store is not None
    return await service.store.head()


async def test_a_trimmed_store_gives_the_answers_that_it_gave_before(any_vault: Service) -> None:
    """Of every stream, at every version, and of the log; what snapshots hold and what was burnt has left the file."""
    before, head = await everything(any_vault), await head_of(any_vault)
    report = await trim(any_vault, head)
    long, burnt = 4, 4
    assert (report.position, report.streams, report.kept) == (head, long + burnt, BOXES - long - burnt)
    left = await left_in(any_vault)
    assert sum(left.values()) == head - report.dropped
    assert {left[f"box-{n}"] for n in range(8, BOXES)} == {1}
    assert {left[f"box-{n}"] for n in range(4, 8)} == {7}
    assert max(left[f"box-{n}"] for n in range(4)) <= 10
    assert await everything(any_vault) == before
    assert (await trim(any_vault, head)).dropped == 0


async def test_a_trimmed_store_goes_on(any_vault: Service) -> None:
    """Saves, conflicts and later trims know of the versions that are gone; a burnt box cannot be opened again."""
    await trim(any_vault, await head_of(any_vault))
    for n in range(8):
        await any_vault.execute(Box, f"box-{n}", Box.put, 77)
    with pytest.raises(Conflict):
        await any_vault.save(Box("box-9"))
    with pytest.raises(NotFound, match="discarded"):
        await any_vault.get(Box, "box-9")
    with pytest.raises(NotFound, match="no version 99"):
        await any_vault.get(Box, "box-1", version=99)
    with pytest.raises(NotFound):
        await any_vault.get(Box, "box-99")
    before = await everything(any_vault)
    await archive(any_vault)
    assert (await trim(any_vault, await head_of(any_vault) - 3)).position == await head_of(any_vault) - 3
    assert await everything(any_vault) == before


async def test_a_snapshot_that_is_lost_costs_time_and_no_data(vault: Service, tmp_path: Path) -> None:
    """The aggregate is folded from the archive."""
    before = await everything(vault)
    await trim(vault, await head_of(vault))
    with sqlite3.connect(tmp_path / "vault.db") as c:
        c.execute("DELETE FROM snapshots")
    assert await everything(vault) == before


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_every_read_of_a_trimmed_log_is_whole(vault: Service, data: st.DataObject) -> None:
    """From anywhere, of any length, after trims to anywhere: what the log held there, and whole commits."""
    store = vault.store
    assert isinstance(store, Trimmed)
    log = await read_all(store)  # type: ignore[arg-type]
    ends = [e.position for e in log if not e.remaining]
    await trim(vault, data.draw(st.sampled_from(ends)))
    after, limit = data.draw(st.sampled_from([0, *ends])), data.draw(st.integers(1, 60))
    found = await store.read(after, limit)  # type: ignore[attr-defined]
    assert found == log[after : after + len(found)]
    assert bool(found) == (after < len(log))
    assert not found or found[-1].remaining == 0
    share = data.draw(st.sampled_from(SHARES))
    check_stretch(log, after, share, await store.read_share(after, limit, share))  # type: ignore[attr-defined]
    stream = f"box-{data.draw(st.integers(0, BOXES))}"
    first, last = data.draw(st.integers(0, 30)), data.draw(st.none() | st.integers(0, 30))
    expected = [e for e in log if e.stream == stream and first < e.version <= (last if last is not None else 99)]
    assert await store.read_stream(stream, after_version=first, to_version=last) == expected  # type: ignore[attr-defined]
    changes = store.read_changes(stream, after_version=first, to_version=last)  # type: ignore[attr-defined]
    assert [c[1] async for part in changes for c in part] == [e.version for e in expected]


async def test_readers_go_on_while_a_store_is_trimmed(any_vault: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two of its steps."""
    monkeypatch.setattr(trimmed, "ROWS_PER_TRANSACTION", 3)
    assert any_vault.store is not None
    log, boxes = await read_all(any_vault.store), [await opened(any_vault, n) for n in range(BOXES)]
    trimming = asyncio.create_task(trim(any_vault, len(log)))
    rounds = 0
    while not trimming.done():
        assert await read_all(any_vault.store) == log
        now = [await opened(any_vault, n) for n in range(BOXES)]
        assert [box and (box.version, box.things) for box in now] == [
            box and (box.version, box.things) for box in boxes
        ]
        rounds += 1
        await asyncio.sleep(0.001)
    assert (await trimming).dropped > 0
    assert rounds > 3


# ---- who has no archive


async def test_without_an_archive_what_is_gone_is_an_error_and_the_rest_is_there(
    vault: Service, tmp_path: Path
) -> None:
    """HistoryGone, which says what to give the service; snapshots serve as before."""
    before = await everything(vault)
    await trim(vault, await head_of(vault))
    bare = Service("vault", aggregates=[Box], snapshots=vault.snapshots, store=f"sqlite:///{tmp_path}/vault.db", run=())
    async with bare.open():
        for n in range(8):
            box = await opened(bare, n)
            assert box is not None
            assert (box.version, box.things) == before[f"now {n}"]
        with pytest.raises(HistoryGone, match=r"versions 1 to .* of stream 'box-0' were trimmed .* BackupPolicy"):
            await bare.history(Box, "box-0")
        with pytest.raises(HistoryGone, match="positions 1 to"):
            await read_all(bare.store)  # type: ignore[arg-type]
    async with bare.open(archives={"vault": [str(tmp_path / "two")]}):
        assert await everything(bare) == before
    shutil.rmtree(tmp_path / "one")
    shutil.rmtree(tmp_path / "two")
    with pytest.raises(ArchiveIncomplete, match="no archive"):
        await vault.history(Box, "box-0")


async def test_an_archive_that_lost_its_end_gives_no_history_with_a_hole(vault: Service, tmp_path: Path) -> None:
    """What it has is read, and where that ends there is an error: for streams, for the log, for the next backup."""
    log, head = await read_all(vault.store), await head_of(vault)  # type: ignore[arg-type]
    await trim(vault, head)
    for place in ("one", "two"):
        for lost in sorted((tmp_path / place).rglob("*.segment"))[4:]:
            lost.unlink()
    with pytest.raises(ArchiveIncomplete, match=r"of stream 'box-0' were trimmed .* ends at position \d+ in .*one, "):
        await vault.history(Box, "box-0")
    assert (await vault.store.read(0, 10))[:10] == log[:10]  # type: ignore[union-attr]
    with pytest.raises(HistoryGone, match="the archive does not have them"):
        await read_all(vault.store)  # type: ignore[arg-type]
    async with opened_targets([str(tmp_path / place) for place in ("one", "two")]) as targets:
        report = await Backups(vault.store, targets, copies=2).run()  # type: ignore[arg-type]
    assert [result.end for result in report.targets] == [report.backed_up] * 2
    assert all(error is not None and "were trimmed" in error for error in (t.error for t in report.targets))


# ---- who follows


class AnyBox(Contract, type="vault.Box.*"):
    """What happens to boxes."""


def an_office(directory: Path, **settings: Any) -> tuple[Service, Projection[Any], sa.Table]:
    """A service that counts the vault's events by type."""
    tables = sa.MetaData()
    columns = (sa.Column("what", sa.String, primary_key=True), sa.Column("n", sa.Integer))
    counted = sa.Table("counted", tables, *columns)
    view = Projection("counts", model=SqlModel(tables))

    @view.on(AnyBox)
    def count(e: Event[AnyBox], db: Tables) -> None:
        db.increment(counted, what=e.type, n=1)

    directory.mkdir()
    return Service("office", projections=[view], store=f"sqlite:///{directory}/office.db", **settings), view, counted


async def test_a_new_projection_of_a_trimmed_log_reads_the_archive_first(vault: Service, tmp_path: Path) -> None:
    """In the service's process by itself, elsewhere with archives=; without, it stops."""
    log = await read_all(vault.store)  # type: ignore[arg-type]
    await trim(vault, len(log))
    position = await vault.save(Box("late"))
    url = f"sqlite:///{tmp_path}/vault.db"
    places = {"vault": [str(tmp_path / "one")]}
    for source, archives in ((vault, {}), (url, places)):
        office, view, counted = an_office(
            tmp_path / type(source).__name__, sources={"vault": source}, archives=archives
        )
        async with office.open():
            await office.wait(position)
            rows = await office.query(sa.select(sa.func.sum(counted.c.n)))
            assert rows.scalar_one() == len(log) + 1
            assert (await verify(office.runtime, view)).ok
    office, _, _ = an_office(tmp_path / "lost", sources={"vault": url})
    async with office.open():
        [part] = office.runtime.projections.values()
        await eventually(lambda: part.halted, "nothing halted")
        assert isinstance(part.halted, HistoryGone)


async def test_a_stream_is_filled_from_a_trimmed_store(
    vault: Service, tmp_path: Path, nats_server: EmbeddedServer
) -> None:
    """A new stream begins at position 1, out of the archive, and is what the log was."""
    head = await head_of(vault)
    await trim(vault, head)
    other = a_vault(tmp_path)
    async with other.open(nats=nats_server.url, run=["relay"]):
        await relayed(other)
        async with connected(nats_server.url) as connection:
            report = await check_stream(other.runtime.store, connection)
        assert (report.problems, report.first, report.last) == ([], 1, head)


# ---- the archive, from then on


async def test_a_copy_that_is_lost_after_a_trim_is_made_again_from_another(vault: Service, tmp_path: Path) -> None:
    """And a drill restores everything: nothing rests on what the store does not have any more."""
    log = await read_all(vault.store)  # type: ignore[arg-type]
    await trim(vault, len(log))
    shutil.rmtree(tmp_path / "one")
    await vault.save(Box("late"))
    assert await archive(vault) == len(log) + 1
    assert vault.store is not None
    targets = [open_target(str(tmp_path / name)) for name in ("one", "two")]
    copy = copy_of(targets[0], vault.store.identity)
    report = await verify_copy(copy)
    assert (report.problems, report.last) == ([], len(log) + 1)
    (drilled,) = await drill(vault.stores, targets, vault.codec)
    assert (drilled.ok, drilled.position, drilled.aggregates) == (True, len(log) + 1, BOXES + 1)


async def test_a_trimmed_store_passes_its_check_and_a_hole_behind_does_not(vault: Service, tmp_path: Path) -> None:
    """What a trim took is no problem; what is missing behind it is."""
    head = await head_of(vault)
    await trim(vault, head - 20)
    store = vault.store
    assert isinstance(store, Inspectable)
    assert (await check_store(store, reader(vault.codec))).problems == []
    with sqlite3.connect(tmp_path / "vault.db") as c:
        c.execute("DELETE FROM events WHERE position = ?", (head - 10,))
    problems = (await check_store(store, reader(vault.codec))).problems
    assert (problems[0].position, problems[0].law) == (head - 10, "positions")


# ---- what is refused


async def test_what_is_not_archived_in_enough_whole_copies_does_not_leave(vault: Service, tmp_path: Path) -> None:
    """Behind the archive's end, with a damaged copy, and where a copy holds another history."""
    before, head = await everything(vault), await head_of(vault)
    await vault.save(Box("late"))
    with pytest.raises(ArchiveIncomplete, match=r"whole in 0 places .* needs 2; nothing was trimmed"):
        await trim(vault, head + 1)
    file = sorted((tmp_path / "two").rglob("*.segment"))[2]
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(ArchiveIncomplete, match="whole in 1 places"):
        await trim(vault, head)
    file.write_bytes(content)
    with sqlite3.connect(tmp_path / "vault.db") as c:
        c.execute("UPDATE events SET time_us = time_us + 1 WHERE position = 3")
    with pytest.raises(ArchiveDamaged, match="another event behind position 0 than the store"):
        await trim(vault, head)
    with sqlite3.connect(tmp_path / "vault.db") as c:
        c.execute("UPDATE events SET time_us = time_us - 1 WHERE position = 3")
    with pytest.raises(ConfigurationError, match=r"is within a commit .* which ends at 3"):
        await trim(vault, 2)
    with pytest.raises((ConfigurationError, ArchiveIncomplete)):
        await trim(vault, head + 9)
    store = vault.store
    assert isinstance(store, Trimmed)
    assert await store.trimmed() == 0
    assert {k: v for k, v in (await everything(vault)).items() if k != "log"} == {
        k: v for k, v in before.items() if k != "log"
    }


async def test_shards_are_not_trimmed_and_slots_do_not_leave_a_trimmed_store(vault: Service, tmp_path: Path) -> None:
    """A slot takes its whole history along."""
    await trim(vault, await head_of(vault))
    main = vault.store
    assert main is not None
    other = await open_store(f"sqlite:///{tmp_path}/b.db", service="vault", shard="b", owns_slots=False)
    try:
        with pytest.raises(ConfigurationError, match="was trimmed, and slots cannot be moved"):
            await bring_about({"main": main, "b": other}, ["b"] * main.identity.slots)
        shards = a_vault(tmp_path)
        async with shards.open(store={"main": f"sqlite:///{tmp_path}/vault.db", "b": f"sqlite:///{tmp_path}/b.db"}):
            events = [e async for e in shards.log()]
            assert len(await shards.history(Box, "box-0")) == len([e for e in events if e.stream_id == "box-0"]) > 20
        assert isinstance(other, Trimmed)
        with pytest.raises(ConfigurationError, match="cannot be trimmed"):
            await other.begin_trim(1)
    finally:
        await other.close()
