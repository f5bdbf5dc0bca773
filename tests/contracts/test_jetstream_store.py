"""The JetStream store keeps the laws, on a real server."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from evsync.jetstream import streams
from evsync.jetstream.client import quick_session
from evsync.jetstream.server import EmbeddedServer
from evsync.jetstream.store.store import JetStreamStore
from evsync.ports import Store
from evsync.stores.sqlite.store import SqliteStore
from evsync.testing.contracts import EventLogContract, EventStoreContract, SlotStoreContract, SnapshotStoreContract
from tests.relaying import connected

numbers = itertools.count()


class TestJetStreamStore(EventStoreContract, EventLogContract, SnapshotStoreContract):
    opener = "evsync.opening:open_store"
    numbers = itertools.count()

    @pytest.fixture(autouse=True)
    def _server(self, nats_server: EmbeddedServer) -> None:
        self.server = nats_server

    async def new_store(self) -> Store:
        # A shard of its own: two streams cannot have the same subjects.
        return await JetStreamStore.open(self.server.url, service="users", shard=f"shard{next(self.numbers)}")

    async def reopen(self, store: Store) -> Store:
        identity = store.identity
        return await JetStreamStore.open(self.server.url, service="users", shard=identity.shard, create=False)

    def url_of(self, store: Store) -> str:
        assert isinstance(store, JetStreamStore)
        return f"{self.server.url}/?stream={store.stream}"


@pytest.mark.usefixtures("another_nats_py")
class TestJetStreamStoreByNatsPysOwnCalls(TestJetStreamStore):
    """As with a version of nats-py that nobody has tried."""

    # The processes that it starts would use the one that is installed.
    test_several_processes_append_to_one_log = None
    # It takes half a minute; the tests of relay and consumer run by both ways.
    test_a_reader_that_follows_misses_nothing = None

    @pytest.fixture
    def another_nats_py(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(quick_session, "INSTALLED", "2.99.0")


class TestJetStreamShard(SlotStoreContract):
    """As the shard that slots are moved to: from a JetStream stream that holds events they do not leave."""

    @pytest.fixture(autouse=True)
    def _places(self, nats_server: EmbeddedServer, tmp_path: Path) -> None:
        self.server, self.directory = nats_server, tmp_path

    async def new_shard(self, shard: str, *, owns_slots: bool) -> Store:
        if shard == "a":
            path = self.directory / f"{next(numbers)}.db"
            return await SqliteStore.open(path, service="users", shard=shard, owns_slots=owns_slots)
        async with connected(self.server.url) as conn:
            for kind in ("log", "imports"):
                await streams.delete(conn, f"evsync_users_{shard}_{kind}")
        return await JetStreamStore.open(self.server.url, service="users", shard=shard, owns_slots=owns_slots)

    async def reopen(self, store: Store) -> Store:
        if isinstance(store, SqliteStore):
            return await SqliteStore.open(store.path, service="users", shard="a", create=False)
        return await JetStreamStore.open(self.server.url, service="users", shard="b", create=False)
