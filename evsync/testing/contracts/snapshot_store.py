"""The laws of SnapshotStore, as tests."""

from __future__ import annotations

import asyncio

import pytest

from evsync.errors import StoreError
from evsync.records import Snapshot
from evsync.testing.contracts import samples
from evsync.testing.contracts.case import StoreCase


def snapshot(stream: str = "ada", version: int = 3, *, shape: str = "0123456789abcdef", state: bytes = b"") -> Snapshot:
    """A snapshot with some content."""
    commands = b"".join(bytes([n]) * 14 + b"\0\0" for n in range(version))
    return Snapshot(stream, version, "users.User", shape, 1_700_000_000_000_000 + version, commands, state or b"\x80")


class SnapshotStoreContract(StoreCase):
    """What every SnapshotStore promises; the suites of stores have it beside EventStore and EventLog."""

    async def test_a_snapshot_is_read_as_it_was_put(self) -> None:
        """Every field comes back; a stream without one has none, and the log knows nothing of it."""
        async with self.opened() as store:
            assert await store.snapshot("ada") is None
            put = snapshot(state=b"\0\xff" * 50_000)
            await store.put_snapshot(put)
            found = await store.snapshot("ada")
            assert found == put
            assert type(found) is Snapshot
            assert await store.head() == 0
            assert await store.read_stream("ada") == []

    async def test_the_latest_snapshot_of_a_stream_is_kept(self) -> None:
        """A newer one takes the place of an older one; an older one, or another of the same version, is ignored."""
        async with self.opened() as store:
            for version, kept in [(3, 3), (7, 7), (5, 7), (8, 8)]:
                await store.put_snapshot(snapshot(version=version))
                assert await store.snapshot("ada") == snapshot(version=kept)
            await store.put_snapshot(snapshot(version=8, state=b"\x90"))
            assert await store.snapshot("ada") == snapshot(version=8)

    async def test_a_snapshot_of_another_shape_takes_the_place(self) -> None:
        """Also of a newer one: that is void for whoever has this shape."""
        async with self.opened() as store:
            await store.put_snapshot(snapshot(version=9))
            await store.put_snapshot(snapshot(version=4, shape="fedcba9876543210"))
            assert await store.snapshot("ada") == snapshot(version=4, shape="fedcba9876543210")

    async def test_snapshots_put_at_once_leave_the_latest(self) -> None:
        """In whatever order they arrive."""
        async with self.opened() as store:
            await asyncio.gather(*(store.put_snapshot(snapshot(version=v)) for v in (4, 9, 2, 12, 7, 11)))
            assert await store.snapshot("ada") == snapshot(version=12)

    async def test_snapshots_of_hostile_names_are_kept_apart(self) -> None:
        """A stream id is any text here too."""
        async with self.opened() as store:
            for version, name in enumerate(samples.HOSTILE, 1):
                await store.put_snapshot(snapshot(name, version))
            for version, name in enumerate(samples.HOSTILE, 1):
                assert await store.snapshot(name) == snapshot(name, version)

    async def test_snapshots_survive_where_events_do(self) -> None:
        """Losing one would cost time only; a durable store need not lose any when it is closed."""
        store = await self.new_store()
        try:
            self.require(store, "durable")
            await store.put_snapshot(snapshot())
        finally:
            await store.close()
        again = await self.reopen(store)
        try:
            assert await again.snapshot("ada") == snapshot()
        finally:
            await again.close()

    async def test_a_closed_store_has_no_snapshots(self) -> None:
        """It says that it is closed, as it does to everybody else."""
        store = await self.new_store()
        await store.close()
        with pytest.raises(StoreError, match="closed"):
            await store.put_snapshot(snapshot())
        with pytest.raises(StoreError, match="closed"):
            await store.snapshot("ada")
