"""Restores of a log that others follow over NATS: the stream follows the log, and consumers follow the stream."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from evsync.archive.backup import Backups
from evsync.archive.copies import Archive
from evsync.archive.restore import Until
from evsync.archive.targets import open_target
from evsync.errors import ArchiveIncomplete, HistoryGone, OtherIncarnation
from evsync.jetstream import streams
from evsync.jetstream.consumer import JetStreamReader
from evsync.jetstream.rebuild import rebuild_stream
from evsync.jetstream.server import EmbeddedServer
from evsync.jetstream.stream_settings import stream_name
from evsync.operations.recovery import restore_log
from evsync.records import StoredEvent
from evsync.service import Service
from tests.integration.test_archive_restore import Post, a_bank, pay
from tests.relaying import connected, eventually

pytestmark = pytest.mark.anyio


async def archive_of(bank: Service, directory: Path) -> Archive:
    """The bank's log up to now, in a directory."""
    target = open_target(str(directory / "backups"))
    assert bank.store is not None
    assert (await Backups(bank.store, [target], copies=1).run()).ok
    return await Archive.find([target], "bank.main")


async def relayed(bank: Service) -> None:
    """Everything is in the stream."""
    relay = bank.runtime.relay
    assert relay is not None
    head = await bank.runtime.store.head()
    await eventually(lambda: relay.confirmed >= head and relay.state == "pump", lambda: str(relay.status()))


class Follower(Post):
    """The post office, which reads from NATS."""

    def __init__(self, directory: Path, nats: str) -> None:
        super().__init__(directory, a_bank())
        self.nats = nats

    def opened(self):  # type: ignore[no-untyped-def]
        """Follow the bank's stream."""
        return self.service.open(store=self.store, nats=self.nats)


async def test_consumers_follow_a_restored_log_to_its_new_stream(tmp_path: Path, nats_server: EmbeddedServer) -> None:
    """The relay replaces the stream, whose last event is part of the log; who reads it goes on without a restart."""
    bank, post = a_bank(), Follower(tmp_path, nats_server.url)
    async with post.opened():
        async with bank.open(store=f"sqlite:///{tmp_path}/bank.db", nats=nats_server.url):
            await pay(bank, 1, 2, 3)
            await post.until(3)
            archive = await archive_of(bank, tmp_path)
        url = f"sqlite:///{tmp_path}/restored.db"
        await restore_log(archive, url, Until())
        async with bank.open(store=url, nats=nats_server.url):
            await pay(bank, 40)
            await post.until(4)
            await post.service.wait(bank.runtime.store.identity.at(await bank.runtime.store.head()))
            assert await post.total() == 46


async def test_what_the_stream_still_holds_is_not_lost(tmp_path: Path, nats_server: EmbeddedServer) -> None:
    """The store is gone and its archive is old: the restored log goes on with what the stream has, and so do others."""
    bank, post = a_bank(), Follower(tmp_path, nats_server.url)
    async with post.opened():
        async with bank.open(store=f"sqlite:///{tmp_path}/bank.db", nats=nats_server.url):
            await pay(bank, 1, 2)
            archive = await archive_of(bank, tmp_path)
            await pay(bank, 3, 4)
            await post.until(4)
            await relayed(bank)
        url = f"sqlite:///{tmp_path}/restored.db"
        async with connected(nats_server.url) as connection:
            report = await restore_log(archive, url, Until(), connection=connection)
        assert (report.position, report.from_stream) == (8, 4)
        async with bank.open(store=url, nats=nats_server.url):
            await pay(bank, 50)
            await post.until(5)
            await post.service.wait(bank.runtime.store.identity.at(await bank.runtime.store.head()))
            assert await post.total() == 60


@pytest.mark.parametrize("silent", ["head", "read"])
async def test_a_stream_that_does_not_answer_is_no_empty_one(
    silent: str, tmp_path: Path, nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server goes away in the middle of a restore: an error, and no store that lacks what the stream has."""
    bank, url = a_bank(), f"sqlite:///{tmp_path}/restored.db"
    async with bank.open(store=f"sqlite:///{tmp_path}/bank.db", nats=nats_server.url):
        await pay(bank, 1, 2)
        archive = await archive_of(bank, tmp_path)
        await pay(bank, 3, 4)
        await relayed(bank)

    async def nothing(*_: object) -> list[StoredEvent] | None:
        return None if silent == "head" else []

    async with connected(nats_server.url) as connection:
        with monkeypatch.context() as away:
            away.setattr(JetStreamReader, silent, nothing)
            with pytest.raises(
                ArchiveIncomplete, match=r"after position 4; nothing was restored.*without --from-stream"
            ):
                await restore_log(archive, url, Until(), connection=connection)
        assert not [name for name in os.listdir(tmp_path) if name.startswith("restored")]
        report = await restore_log(archive, url, Until(), connection=connection)
    assert (report.position, report.from_stream) == (8, 4)


async def test_a_stream_that_goes_on_elsewhere_does_not_help(tmp_path: Path, nats_server: EmbeddedServer) -> None:
    """One that is not there, or begins behind the end of the archive: an error, and no store is made."""
    bank = a_bank()
    url = f"sqlite:///{tmp_path}/restored.db"
    async with connected(nats_server.url) as connection:
        async with bank.open(store=f"sqlite:///{tmp_path}/bank.db", nats=nats_server.url):
            await pay(bank, 1, 2)
            archive = await archive_of(bank, tmp_path)
            await pay(bank, *range(10, 20))
            await relayed(bank)
        name = stream_name(archive.identity)
        state = await streams.info(connection, name)
        assert state is not None
        await connection.api(f"STREAM.UPDATE.{name}", {**state.config, "max_age": 1_000_000_000})

        async def aged() -> bool:
            found = await streams.info(connection, name)
            return found is not None and found.first > 5

        await eventually(aged, "the stream's limit takes its events")
        with pytest.raises(HistoryGone, match=r"archives=.*Where there is no archive.*stream rebuild"):
            await restore_log(archive, url, Until(), connection=connection)
        await streams.delete(connection, name)
        with pytest.raises(ArchiveIncomplete, match="there is no stream"):
            await restore_log(archive, url, Until(), connection=connection)
    assert not [path for path in os.listdir(tmp_path) if path.startswith("restored")]


async def test_relay_and_consumers_that_are_ahead_stop(tmp_path: Path, nats_server: EmbeddedServer) -> None:
    """The relay does not throw away what only the stream has; a consumer that read it says both positions."""
    bank, post = a_bank(), Follower(tmp_path, nats_server.url)
    async with post.opened():
        async with bank.open(store=f"sqlite:///{tmp_path}/bank.db", nats=nats_server.url):
            await pay(bank, 1, 2)
            archive = await archive_of(bank, tmp_path)
            await pay(bank, 3)
            await post.until(3)
            await post.service.wait(bank.runtime.store.identity.at(6))
            await relayed(bank)
        url = f"sqlite:///{tmp_path}/restored.db"
        await restore_log(archive, url, Until())
        async with bank.open(store=url, nats=nats_server.url):
            await pay(bank, 70, 80, 90)
            relay = bank.runtime.relay
            assert relay is not None
            await eventually(lambda: relay.halted, lambda: str(relay.status()))
            assert isinstance(relay.halted, OtherIncarnation)
            for words in ("last position 6", "position 4", "evsync stream rebuild", "--allow-loss", "--from-stream"):
                assert words in str(relay.halted), relay.halted
            async with connected(nats_server.url) as connection:
                await rebuild_stream(bank.runtime.store, connection, allow_loss=True)
            for name in ("ledger", "writer"):
                error = await post.halted(name)
                assert isinstance(error, OtherIncarnation)
                assert (error.values["position"], error.values["other_position"]) == (6, 4), error
                assert "evsync reset module:service" in str(error)
