"""Shards are archived under load while slots move and backups are killed, and all of them are lost."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from evsync.archive.restore import Until
from evsync.archive.targets import open_target
from evsync.operations.recovery import archives_of, digest_of, restore_logs
from evsync.operations.verification import verify
from evsync.sharding import HashRing
from tests.faults.test_shard_moves import PATIENCE_S, finished, goes_on, move, process, writing
from tests.integration.test_shards import Counted, check_order, counts, move_all, opened

pytestmark = pytest.mark.anyio
PLACES = ["disk-a", "disk-b"]


def backup(directory: Path, stores: Mapping[str, str], die_after: int = 0) -> int:
    """Run a backup of all shards to its end, of whichever kind."""
    with process("backup", str(directory), json.dumps(stores), json.dumps(PLACES), str(die_after)) as backing_up:
        return backing_up.wait(PATIENCE_S)


async def test_shards_lost_under_load_come_back_in_other_stores(tmp_path: Path, postgres_url: str) -> None:
    """With the digests of the originals' beginnings; every stream is a beginning of what it was, and goes on; the read
    model is a fold over all logs; and slots move on."""
    ids = [f"stream-{n}" for n in range(10)]
    ring = HashRing(["a", "b"])
    stores = {"a": f"sqlite:///{tmp_path}/a.db", "b": f"{postgres_url}&schema=lost"}
    async with opened(tmp_path, stores=stores, router=ring, run="none") as service:
        for id in ids:
            await service.save(Counted(id=id))
    with writing(tmp_path, stores, ids[::2], ids[1::2]) as writers:
        for target, die_after in ((ring.without("a"), 3), (ring, 2)):
            assert backup(tmp_path, stores, die_after) == -signal.SIGKILL
            assert move(tmp_path, stores, target, 0) == 0
            goes_on(tmp_path, writers[0])
        assert backup(tmp_path, stores) == 0
        goes_on(tmp_path, writers[1])
        done = finished(writers)
    to = {"a": f"{postgres_url}&schema=found", "b": f"sqlite:///{tmp_path}/b.db"}
    targets = [open_target(str(tmp_path / place)) for place in PLACES]
    archives = await archives_of(targets, "counts", dict.fromkeys(to))
    reports = await restore_logs({shard: (archive, None) for shard, archive in archives.items()}, to, Until())
    service = counts(ring)
    async with (
        opened(tmp_path, stores=stores, run="none") as before,
        service.open(store=to, views=f"sqlite:///{tmp_path}/found-views.db"),
    ):
        for shard, store in service.stores.items():
            end = reports[shard].position
            assert await digest_of(store, end) == await digest_of(before.stores[shard], end)
        found = Counter({id: (await service.get(Counted, id)).n for id in ids})
        assert all(0 < found[id] <= done[id] for id in ids)
        for target in (ring.without("b"), ring.without("a"), ring):
            await move_all(service, target)
            for id in ids:
                await service.execute(Counted, id, Counted.add, 1)
                found[id] += 1
        await check_order(service, found)
        assert (await verify(service.runtime, *service.projections)).ok
