"""One shard is lost under load, while its slots move, and restored beside the others by processes that are killed."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from evsync.operations.verification import verify
from evsync.sharding import HashRing
from tests.faults.test_shard_moves import PATIENCE_S, finished, goes_on, move, process, writing
from tests.faults.test_shards_restored import backup
from tests.integration.test_shard_restored_alone import check_whole
from tests.integration.test_shards import Counted, check_order, counts, move_all, opened

pytestmark = pytest.mark.anyio


def restore(directory: Path, stores: Mapping[str, str], lost: str, to: str, die_after: int) -> int:
    """Run a restore of one shard to its end, of whichever kind."""
    argument = json.dumps([lost, to, "disk-a"])
    with process("restore", str(directory), json.dumps(stores), argument, str(die_after)) as restoring:
        return restoring.wait(PATIENCE_S)


def lose(file: Path) -> None:
    """Delete an SQLite store."""
    for each in file.parent.glob(f"{file.name}*"):
        each.unlink()


async def test_a_shard_lost_under_load_comes_back_beside_the_others(tmp_path: Path, postgres_url: str) -> None:
    """Whoever restores it is killed before each of its steps, and begins again. Writers notice nothing where the slots
    had left the lost shard; they have all that they had, and move on; the read model is a fold over all logs."""
    ids = [f"stream-{n}" for n in range(10)]
    ring = HashRing(["a", "b", "c"])
    stores = {"a": f"sqlite:///{tmp_path}/a.db", "b": f"{postgres_url}&schema=b", "c": f"sqlite:///{tmp_path}/c.db"}
    async with opened(tmp_path, stores=stores, router=ring, run="none") as service:
        for id in ids:
            await service.save(Counted(id=id))
    assert backup(tmp_path, stores) == 0
    with writing(tmp_path, stores, ids[::2], ids[1::2]) as writers:
        for writer in writers:
            goes_on(tmp_path, writer)
        assert move(tmp_path, stores, ring.without("a"), 2) == -signal.SIGKILL  # some are closed, and open nowhere
        assert move(tmp_path, stores, ring.without("a"), 0) == 0
        lose(tmp_path / "a.db")
        to = f"sqlite:///{tmp_path}/a2.db"
        killed = 0
        for die_after in range(1, 20):  # two fences, what the archive has, what the others have, its completion
            if (code := restore(tmp_path, stores, "a", to, die_after)) == 0:
                break
            assert code == -signal.SIGKILL
            killed += 1
            assert not (tmp_path / "a2.db").exists()
        assert killed >= 5
        for writer in writers:
            goes_on(tmp_path, writer)
        done = finished(writers)
    stores["a"] = to
    service = counts(ring)
    async with service.open(store=stores, views=f"sqlite:///{tmp_path}/found-views.db"):
        await check_whole(service)
        found = Counter({id: (await service.get(Counted, id)).n for id in ids})
        assert found == done, "all had left the shard that was lost"
        for target in (ring, ring.without("b"), ring):
            await move_all(service, target)
            for id in ids:
                await service.execute(Counted, id, Counted.add, 1)
                found[id] += 1
        await check_order(service, found)
        assert (await verify(service.runtime, *service.projections)).ok
