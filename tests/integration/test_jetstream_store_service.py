"""A service whose store is a JetStream stream, through the public face."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from evsync import Conflict, Contract, Event, NotFound, Projection, Reaction, Service, SnapshotPolicy, SqlModel, Tables
from evsync.control import is_control
from evsync.errors import ConfigurationError, EventTooLarge
from evsync.jetstream import streams
from evsync.jetstream.consumer import JetStreamReader
from evsync.jetstream.server import EmbeddedServer
from evsync.ports import Store
from tests.reading import QUICK, read_on
from tests.relaying import connected, eventually
from tests.spine_services import Account, AccountMoved, Note

pytestmark = pytest.mark.anyio

tables = sa.MetaData()
balances = sa.Table("balances", tables, sa.Column("id", sa.String, primary_key=True), sa.Column("cents", sa.Integer))


class NoteTaken(Contract, type="desk.Note.Taken"):
    """A note of the desk's own."""

    token: str


def showing() -> Projection[Tables]:
    """How much is on each of the bank's accounts."""
    projection = Projection("balances", model=SqlModel(tables))

    @projection.on(AccountMoved)
    def moved(e: Event[AccountMoved], db: Tables) -> None:
        db.increment(balances, id=e.stream_id, cents=e.data.amount)

    return projection


def noting(seen: list[str]) -> tuple[Reaction, Reaction]:
    """A reaction to the bank's moves that takes notes, and one to the desk's own notes that only looks."""
    notes, looks = Reaction("notes", since="beginning"), Reaction("looks", since="beginning")

    @notes.on(AccountMoved)
    async def moved(e: Event[AccountMoved], desk: Service) -> Note:
        return Note(e.stream_id, e.data.token)

    @looks.on(NoteTaken)
    async def taken(e: Event[NoteTaken], desk: Service) -> None:
        seen.append(e.data.token)

    return notes, looks


def on_nats(server: EmbeddedServer, directory: Path, **more: Any) -> dict[str, Any]:
    """Where a service runs whose events are in a stream."""
    return {"store": server.url, "views": f"sqlite:///{directory}/views.db", **more}


@asynccontextmanager
async def both(bank: Service, desk: Service, server: EmbeddedServer, directory: Path) -> AsyncIterator[None]:
    """The two services, open."""
    async with bank.open(**on_nats(server, directory)), desk.open(**on_nats(server, directory)):
        yield


async def at_rest(store: Store, notes: int) -> bool:
    """Whether so many notes were taken, and the reaction that looks at them has stored that it has seen them all."""
    taken = [e.position for e in await store.read(0, 1_000) if not is_control(e.type)]
    stored = await store.checkpoints("looks")
    return len(taken) == notes and bool(stored) and stored[0].position >= taken[-1]


async def test_a_service_works_as_with_any_store(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """save, get, execute, history, log, a projection of its own; and all of it once more after it was closed."""
    bank = Service("bank", aggregates=[Account], projections=[showing()])
    async with bank.open(**on_nats(nats_server, tmp_path)):
        account = Account("ada.*", "Ada")
        account.move(5, "a")
        first = await bank.save(account)
        assert first.number == 2
        await bank.execute(Account, "ada.*", Account.turn_over, 7, "b")
        assert (await bank.get(Account, "ada.*")).balance == 5
        assert (await bank.get(Account, "ada.*", version=3)).balance == 12
        stale = await bank.get(Account, "ada.*")
        last = await bank.execute(Account, "ada.*", Account.move, 1, "c")
        stale.move(9, "d")
        with pytest.raises(Conflict):
            await bank.save(stale)
        with pytest.raises(NotFound):
            await bank.get(Account, "bob")
        big = Account("big", "x" * 2_000_000)
        with pytest.raises(EventTooLarge):
            await bank.save(big)
        assert (await bank.query(sa.select(balances), after=last)).all() == [("ada.*", 6)]
        assert (await bank.status()).logs["bank.main"].relay is None
    async with bank.open(**on_nats(nats_server, tmp_path)):
        assert [e.data.get("token") for e in await bank.history(Account, "ada.*")] == [None, "a", "b", "b", "c"]
        assert [e.position.number async for e in bank.log()] == [1, 2, 3, 4, 5]
        assert [e.position.number async for e in bank.log(after=first)] == [3, 4, 5]


async def test_another_service_follows_the_stream_itself(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """It finds the stream as it finds a relayed one; its reaction's checkpoints are events of its own log, which no
    handler meets, and which are not answered with more of them."""
    seen: list[str] = []
    bank = Service("bank", aggregates=[Account])
    desk = Service("desk", aggregates=[Note], projections=[showing()], reactions=noting(seen))
    async with both(bank, desk, nats_server, tmp_path):
        account = Account("ada", "Ada")
        for n in range(5):
            account.move(n, f"t{n}")
        position = await bank.save(account)
        assert (await desk.query(sa.select(balances), after=position)).all() == [("ada", 10)]
        await eventually(partial(at_rest, desk.runtime.store, 5), "the reactions at rest")
    async with both(bank, desk, nats_server, tmp_path):
        await bank.execute(Account, "ada", Account.move, 1, "last")
        store = desk.runtime.store

        await eventually(partial(at_rest, store, 6), "the reactions at rest")
        log = await store.read(0, 1_000)
        assert seen == ["t0", "t1", "t2", "t3", "t4", "last"], "each event is answered once"
        assert sum(not is_control(e.type) for e in log) == 6
        assert await store.wait(log[-1].position, 0.5) == log[-1].position, "at rest means that nothing is stored"


async def test_a_reader_gets_what_the_store_reads(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """Event for event, positions included, though the messages do not hold them."""
    bank = Service("bank", aggregates=[Account])
    async with bank.open(**on_nats(nats_server, tmp_path)), connected(nats_server.url) as conn:
        for n in range(20):
            account = Account(f"a{n}", "x")
            account.turn_over(n, "t")
            await bank.save(account)
        (state,) = await streams.find(conn, "bank")
        identity = bank.runtime.store.identity
        reader = JetStreamReader(conn, state.name, identity.name, identity.incarnation, QUICK)
        assert await read_on(reader, 0, 60, limit=7) == await bank.runtime.store.read(0, 100)
        await reader.close()


async def test_snapshots_are_kept_in_a_stream_of_their_own(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """One a stream, the latest; loading reads what is behind it only."""
    bank = Service("bank", aggregates=[Account], snapshots=SnapshotPolicy(every_events=10))
    where = on_nats(nats_server, tmp_path)
    async with bank.open(**where):
        await bank.save(Account("ada", "Ada"))
        for n in range(25):
            await bank.execute(Account, "ada", Account.move, n, "t")
    async with bank.open(**where), connected(nats_server.url, "bank") as conn:
        kept = await bank.runtime.store.snapshot("ada")
        assert kept is not None
        assert kept.version in (20, 21, 22, 23, 24, 25, 26)
        assert (await bank.get(Account, "ada")).balance == 300
        old = kept._replace(version=3, state=b"older")
        await bank.runtime.store.put_snapshot(old)
        assert await bank.runtime.store.snapshot("ada") == kept
        other = kept._replace(version=3, shape="other")
        await bank.runtime.store.put_snapshot(other)
        assert await bank.runtime.store.snapshot("ada") == other
        assert await bank.runtime.store.snapshot("bob") is None
        await streams.delete(conn, "evsync_bank_main_snapshots")
        assert await bank.runtime.store.snapshot("ada") is None
        assert (await bank.get(Account, "ada")).balance == 300


async def test_read_models_need_a_place(nats_server: EmbeddedServer) -> None:
    """There is no file to put them beside."""
    bank = Service("bank", aggregates=[Account], projections=[showing()])
    with pytest.raises(ConfigurationError, match="views="):
        async with bank.open(store=nats_server.url):
            pass
