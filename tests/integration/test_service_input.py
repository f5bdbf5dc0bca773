"""What users, disks and strangers may put into a service: refused with what, where and what to do, or carried whole."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from evsync import (
    Contract,
    Event,
    EvsyncError,
    Halted,
    MemoryModel,
    NotFound,
    Position,
    Projection,
    Service,
    SqlModel,
    Tables,
    metadata,
)
from evsync.errors import (
    ConfigurationError,
    DecodingError,
    EventTooLarge,
    StoreFull,
    StoreUnavailable,
    WrongStore,
)
from evsync.jetstream.server import EmbeddedServer
from evsync.stores.sqlite.store import SqliteStore
from evsync.testing import world
from tests.relaying import eventually
from tests.spine_services import ACCOUNTS, Account, Note

pytestmark = pytest.mark.anyio

JUNK = b"not a database" * 1000
tables = sa.MetaData()
owners = sa.Table(
    "owners",
    tables,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("owner", sa.String),
    sa.Column("actor", sa.String),
)
owner_view = Projection("owners", model=SqlModel(tables), retries=0)


class Opened(Contract, type="bank.Account.Opened"):
    """Of another service, as the desk reads it."""

    owner: str


@owner_view.on(Opened)
def opened(e: Event[Opened], db: Tables) -> None:
    """An account and whoever opened it."""
    db.upsert(owners, id=e.stream_id, owner=e.data.owner, actor=e.metadata.get("actor"))


@pytest.fixture
def bank(tmp_path: Path) -> Service:
    """A service with accounts, in a file."""
    return Service("bank", aggregates=[Account], store=f"sqlite:///{tmp_path}/bank.db")


@pytest.fixture
def desk(tmp_path: Path) -> Service:
    """A service that shows who owns the bank's accounts."""
    return Service(
        "desk",
        projections=[owner_view],
        store=f"sqlite:///{tmp_path}/desk.db",
        views=f"sqlite:///{tmp_path}/views.db",
        sources={"bank": f"sqlite:///{tmp_path}/bank.db"},
    )


async def shown(desk: Service) -> dict[str, str]:
    """id → owner."""
    return {row.id: row.owner for row in await desk.query(sa.select(owners.c.id, owners.c.owner))}


def alter(file: Path, statement: str, *values: object) -> None:
    """What a hand, a disk or a newer version may do to a file."""
    with closing(sqlite3.connect(file)) as c:
        c.execute(statement, values)
        c.commit()


# ---- hostile ids and tags


@pytest.mark.parametrize("through_nats", [False, True], ids=["from the store", "over NATS"])
async def test_hostile_ids_and_tags_arrive_as_they_are(
    bank: Service, desk: Service, nats_server: EmbeddedServer, through_nats: bool
) -> None:
    """Through save, get, relay, consumer, projection and query; no id or tag ever names a subject, header or table."""
    texts = [*ACCOUNTS, "\N{RIGHT-TO-LEFT OVERRIDE}txt.exe", "𝄞" * 128, "a b\tc\x1b[31m", "$JS.API.>", "_INBOX.x"]
    overrides: Any = {"nats": nats_server.url, "sources": {}} if through_nats else {}
    async with bank.open(nats=nats_server.url), desk.open(**overrides):
        for text in texts:
            with metadata(actor=text, **{text[:50]: text, "Nats-Msg-Id": text}):
                position = await bank.save(Account(text, f"owner of {text}"))
        await desk.wait(position)
        assert await shown(desk) == {text: f"owner of {text}" for text in texts}
        for text in texts:
            account = await bank.get(Account, text)
            assert (account.id, account.owner) == (text, f"owner of {text}")
            [event] = await bank.history(Account, text)
            assert event.metadata == {"actor": text, text[:50]: text, "Nats-Msg-Id": text}
            rows = await desk.query(sa.select(owners.c.actor).where(owners.c.id == text))
            assert rows.scalar_one() == text


@pytest.mark.parametrize("id", ["", "x" * 513, "x" * 10_000, "é" * 257, "\ud800", "a\0b", "evsync/x"], ids=ascii)
async def test_an_id_that_nothing_could_carry_is_refused_everywhere(bank: Service, id: str) -> None:
    """At save and at every read; nothing is stored, and the error shows no more than the beginning of a long id."""
    async with bank.open():
        for operation in (
            lambda: bank.save(Account(id, "o")),
            lambda: bank.get(Account, id),
            lambda: bank.execute(Account, id, Account.move, 1, "t"),
            lambda: bank.history(Account, id),
        ):
            with pytest.raises(ConfigurationError, match="an aggregate's id") as refused:
                await operation()
            assert len(str(refused.value)) < 300
        assert (await bank.status()).logs["bank.main"].head == 0


# ---- too large


@pytest.mark.parametrize("what", ["data", "tag", "extension"])
async def test_an_event_larger_than_the_servers_limit_is_refused_at_save(tmp_path: Path, what: str) -> None:
    """By the limit of the server at hand, headers counted; what just fits is published. The aggregate keeps its
    events."""
    with EmbeddedServer.start(tmp_path / "nats", max_payload=20_000) as server:
        service = Service("bank", aggregates=[Account])
        async with service.open(store="memory://", nats=server.url):
            connection, relay = service.runtime.connection, service.runtime.relay
            assert connection is not None
            assert relay is not None
            await connection.ready(10)
            # One that fits is found by halving: on both sides of the limit the answer must be right.
            fits, too_large = 1, 20_000
            while too_large - fits > 1:
                size = (fits + too_large) // 2
                tag = {"tag": {"actor": "ü" * size}, "extension": {"correlation_id": " " * size}}.get(what, {})
                account = Account(f"a{size}", "o" * (size if what == "data" else 1))
                with metadata(**tag):
                    [outcome] = await asyncio.gather(service.save(account), return_exceptions=True)
                if isinstance(outcome, Position):
                    fits = size
                    continue
                too_large = size
                assert isinstance(outcome, EventTooLarge)
                assert (outcome.event_type, outcome.stream, outcome.position) == (
                    "bank.Account.Opened",
                    f"a{size}",
                    None,
                )
                assert outcome.size_bytes > outcome.limit_bytes == 20_000
                assert "Nothing was stored" in str(outcome)
                assert len(account.pending_events) == 1
            assert fits > 1
            position = await service.save(Account("last", "o"))
            await eventually(lambda: relay.confirmed == position.number, lambda: f"all published: {relay.status()}")


@pytest.mark.parametrize("tags", [{"correlation_id": "x" * 600_000}, {"causation_id": " " * 300_000}], ids=["x", "%20"])
async def test_tags_count_as_often_as_they_are_written(tags: dict[str, str]) -> None:
    """Some stand in a message twice, one of them escaped."""
    service = Service("bank", aggregates=[Account])
    async with service.open(store="memory://"):
        with pytest.raises(EventTooLarge), metadata(**tags):
            await service.save(Account("ada", "o"))


async def test_an_event_saved_before_the_limit_was_known_waits_in_the_log(tmp_path: Path) -> None:
    """The relay names it and what to do, saves go on, and when the limit is raised everything is published in order."""
    with EmbeddedServer.start(tmp_path / "nats", max_payload=4_096) as server:
        port = int(server.url.rpartition(":")[2])
        server.stop()
        service = Service("bank", aggregates=[Account])
        async with service.open(store="memory://", nats=server.url):
            relay = service.runtime.relay
            assert relay is not None
            await service.save(Account("small", "o"))
            await service.save(Account("large", "o" * 5_000))
            server.restart()
            await eventually(lambda: relay.halted, "the relay halted")
            error = relay.halted
            assert isinstance(error, EventTooLarge)
            assert (error.position, error.stream, error.limit_bytes) == (2, "large", 4_096)
            assert "Raise max_payload" in str(error)
            await service.save(Account("later", "o"))
            status = (await service.status()).logs["bank.main"].relay
            assert status is not None
            assert (status.confirmed, status.reason) == (1, str(error))
            server.stop()
            with EmbeddedServer.start(tmp_path / "nats", port=port, max_payload=65_536):
                await eventually(lambda: relay.confirmed == 3, lambda: f"all published: {relay.status()}")
                assert (await service.status()).logs["bank.main"].relay is not None
                assert relay.halted is None


# ---- what stands in a store


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("type", "bank.Account.Gone", "event type 'bank.Account.Gone' is unknown to service 'bank'"),
        ("type", "bank.Ghost.Opened", r"renamed=\{'bank.Ghost.Opened': …\}; known types: bank.Account."),
        ("data", b"\xc1\xff", "2 bytes are not a value written by evsync"),
        ("data", b"\x80", "missing 1 required positional argument: 'owner'.*upcasters="),
        ("data", b"\x07", "int"),
    ],
)
async def test_an_event_that_cannot_be_read_is_named_with_its_place(
    bank: Service, tmp_path: Path, column: str, value: object, words: str
) -> None:
    """An unknown type or a damaged payload: stream, version and position; other streams are not affected."""
    async with bank.open():
        await bank.save(Account("ada", "o"))
        await bank.save(Account("bob", "o"))
        alter(tmp_path / "bank.db", f"UPDATE events SET {column} = ? WHERE position = 1", value)
        for operation in (
            lambda: bank.get(Account, "ada"),
            lambda: bank.get(Account, "ada", version=1),
            lambda: bank.execute(Account, "ada", Account.move, 1, "t"),
        ):
            with pytest.raises(DecodingError, match=words) as unreadable:
                await operation()
            assert (
                f"version 1 of stream 'ada' ({value if column == 'type' else 'bank.Account.Opened'}, position 1)"
                in str(unreadable.value)
            )
        await bank.execute(Account, "bob", Account.move, 1, "t")
        assert (await bank.get(Account, "bob")).balance == 1
        if value == b"\xc1\xff":
            for reading in (bank.history(Account, "ada"), anext(bank.log())):
                with pytest.raises(DecodingError, match=r"version 1 of stream 'ada'.*position 1"):
                    await reading


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("data", b"\xc1\xff", "2 bytes are not a value written by evsync"),
        ("data", b"\x80", "it does not meet the contract: owner: Field required"),
        ("meta", "{", "'{' are not an event's tags"),
        ("meta", "[]", "a JSON object was expected"),
    ],
)
async def test_a_damaged_event_halts_the_projection_at_its_place(
    bank: Service, desk: Service, tmp_path: Path, column: str, value: object, words: str
) -> None:
    """Nothing of its batch is applied; when the event is mended, the projection goes on there."""
    async with bank.open():
        await bank.save(Account("ada", "o"))
        good = await bank.history(Account, "ada")
        position = await bank.save(Account("bob", "o"))
        [(before,)] = _rows(tmp_path / "bank.db", f"SELECT {column} FROM events WHERE position = 2")
        alter(tmp_path / "bank.db", f"UPDATE events SET {column} = ? WHERE position = 2", value)
        async with desk.open():
            with pytest.raises(Halted, match=words) as halted:
                await desk.wait(position)
            assert (halted.value.event_type, halted.value.stream) == ("bank.Account.Opened", "bob")
            assert (halted.value.position, halted.value.version) == (2, 1)
            assert await shown(desk) == {}
            assert [f.state for f in (await desk.status()).followers] == ["halted"]
            with pytest.raises(Halted):
                await desk.serve()
        alter(tmp_path / "bank.db", f"UPDATE events SET {column} = ? WHERE position = 2", before)
        async with desk.open():
            await desk.wait(position)
            assert await shown(desk) == {"ada": "o", "bob": "o"}
        assert len(good) == 1


def _rows(file: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(file)) as c:
        return c.execute(query).fetchall()


async def test_events_that_vanished_from_a_store_stop_the_projection(
    bank: Service, desk: Service, tmp_path: Path
) -> None:
    """A gap is never passed over, and the aggregate is not rebuilt without its middle."""
    async with bank.open():
        account = Account("ada", "o")
        account.move(1, "t")
        account.move(1, "t")
        position = await bank.save(account)
        alter(tmp_path / "bank.db", "DELETE FROM events WHERE position = 2")
        with pytest.raises(DecodingError, match=r"stream 'ada': version 3 \(position 3\) where 2 belongs"):
            await bank.get(Account, "ada")
        async with desk.open():
            with pytest.raises(EvsyncError, match="at least one event is missing, so nothing was applied"):
                await desk.wait(position)


# ---- whose store


@pytest.mark.parametrize("opened_as", ["store", "source"])
async def test_the_store_of_another_service_is_not_touched(bank: Service, tmp_path: Path, opened_as: str) -> None:
    """The error names both services."""
    async with bank.open():
        await bank.save(Account("ada", "o"))
    file = tmp_path / "bank.db"
    before = file.read_bytes()
    cash = Service("cash", aggregates=[Account])
    reader = Service("desk", projections=[owner_view])
    sources: Any = {"bank": f"sqlite:///{tmp_path}/desk.db"}
    async with Service("desk").open(store=f"sqlite:///{tmp_path}/desk.db"):
        opening = (
            cash.open(store=f"sqlite:///{file}")
            if opened_as == "store"
            else reader.open(store="memory://", views="sqlite://", sources=sources)
        )
        with pytest.raises(WrongStore, match=r"is the store of service '\w+'.* and was opened for service '\w+'"):
            await opening.__aenter__()
    assert file.read_bytes() == before


async def test_files_of_a_newer_evsync_or_of_something_else_are_not_touched(
    bank: Service, desk: Service, tmp_path: Path
) -> None:
    """Stores and read models."""
    async with bank.open(), desk.open():
        await desk.wait(await bank.save(Account("ada", "o")))
    alter(tmp_path / "views.db", "UPDATE evsync_views SET schema_version = 99")
    with pytest.raises(WrongStore, match="written by a newer evsync"):
        await desk.open().__aenter__()
    junk = tmp_path / "junk"
    junk.write_bytes(JUNK)
    with pytest.raises(WrongStore, match="is not an SQLite database"):
        await bank.open(store=f"sqlite:///{junk}").__aenter__()
    with pytest.raises(EvsyncError, match="file is not a database"):
        await desk.open(views=f"sqlite:///{junk}").__aenter__()
    assert junk.read_bytes() == JUNK
    alter(tmp_path / "bank.db", "UPDATE log SET schema = 99")
    for opening in (bank.open(), desk.open()):
        with pytest.raises(WrongStore, match="written by a newer evsync"):
            await opening.__aenter__()


# ---- classes


async def test_an_aggregate_class_that_was_not_registered_is_refused() -> None:
    """At every use, with the line to write."""
    service = Service("bank", aggregates=[Account])
    note = Note("ada", "t")
    async with service.open(store="memory://"):
        for operation in (
            lambda: service.save(Account("ada", "o"), note),
            lambda: service.get(Note, note.id),
            lambda: service.execute(Note, note.id, lambda n: None),
            lambda: service.history(Note, UUID(int=1)),
        ):
            with pytest.raises(ConfigurationError, match=r"Add it: Service\('bank', aggregates=\[…, Note\]\)"):
                await operation()
        assert next(iter((await service.status()).logs.values())).head == 0
        assert len(note.pending_events) == 1
        with pytest.raises(NotFound):
            await service.get(Account, "ada")


# ---- full disks


@asynccontextmanager
async def _full(store: SqliteStore) -> AsyncIterator[None]:
    """A disk that is full, as SQLite tells of one."""

    async def limit(pages: int) -> None:
        store._writer_here.execute(f"PRAGMA max_page_count = {pages}").fetchall()
        await store._writer.run(lambda c: c.execute(f"PRAGMA max_page_count = {pages}").fetchall())

    await limit(1)
    try:
        yield
    finally:
        await limit(1_000_000)


async def test_a_full_disk_loses_nothing(bank: Service, desk: Service) -> None:
    """Saves fail with the file's name, keep their events and can be repeated; reads go on."""
    async with bank.open(), desk.open():
        await bank.save(Account("ada", "o"))
        store = bank.store
        assert isinstance(store, SqliteStore)
        large = [Account(f"large{i}", "o" * 100_000) for i in range(20)]
        async with _full(store):
            outcomes = await asyncio.gather(*map(bank.save, large), return_exceptions=True)
            assert {type(o) for o in outcomes} == {StoreFull}
            assert str(store.path) in str(outcomes[0])
            assert "nothing was stored" in str(outcomes[0])
            assert (await bank.get(Account, "ada")).owner == "o"
            assert (await bank.status()).logs["bank.main"].head == 1
            assert [len(a.pending_events) for a in large] == [1] * 20
        position = await bank.save(*large)
        assert position.number == 21
        await desk.wait(position)
        assert len(await shown(desk)) == 21


async def test_a_read_model_whose_disk_is_full_goes_on_when_there_is_room(bank: Service, desk: Service) -> None:
    """It is the disk's fault, not the event's: retried for as long as it takes, told in the status."""
    async with bank.open(), desk.open():
        await desk.wait(await bank.save(Account("ada", "o")))
        views = desk.runtime.views
        assert views is not None

        def limit(connection: sqlite3.Connection, _: object) -> None:
            connection.execute("PRAGMA max_page_count = 1")

        sa.event.listen(views._write_engine, "connect", limit)
        await views.write(lambda c: c.exec_driver_sql("PRAGMA max_page_count = 1"))
        position = await bank.save(Account("large", "o" * 1_000_000))

        async def told() -> bool:
            [follower] = (await desk.status()).followers
            return follower.state == "retrying" and "full" in str([log.reason for log in follower.logs])

        await eventually(told, "the reason in the status")
        sa.event.remove(views._write_engine, "connect", limit)
        await desk.wait(position, timeout_s=15)
        assert (await shown(desk)).keys() == {"ada", "large"}


async def test_a_read_models_database_that_is_away_is_an_error_of_ours(
    bank: Service, desk: Service, tmp_path: Path
) -> None:
    """query() says so, and works again when it is back."""
    async with bank.open(), desk.open(run="none"):
        for suffix in ("-wal", "-shm"):
            (tmp_path / f"views.db{suffix}").unlink()
        (tmp_path / "views.db").write_bytes(JUNK)
        with pytest.raises(StoreUnavailable, match=r"views\.db"):
            await shown(desk)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"aggregates": Account}, "where a list of aggregate classes is needed"),
        ({"aggregates": ["Account"]}, "where a list of aggregate classes is needed"),
        ({"projections": [SqlModel(tables)]}, "where a list of projections is needed"),
        ({"projections": owner_view}, "where a list of projections is needed"),
        ({"reactions": [owner_view]}, "where a list of reactions is needed"),
        ({"snapshots": 5}, "snapshots=5, where a SnapshotPolicy is needed"),
        ({"backups": "disk-a"}, "backups='disk-a', where a BackupPolicy is needed"),
        ({"aggregate": [Account]}, "has no setting 'aggregate'; there are store, .* made of aggregates="),
        ({"upcasters": {"bank.Account.Opened": dict}}, "where a list of functions is needed, one for each step"),
    ],
)
def test_a_part_of_another_kind_is_refused_when_the_service_is_made(given: dict[str, Any], said: str) -> None:
    """With the service's name, what was given, and what is needed."""
    with pytest.raises(ConfigurationError, match=f"service 'bank'.*{said}"):
        Service("bank", **given)


async def test_arguments_of_another_type_are_refused_with_what_to_write() -> None:
    """A position as text (as a header has it), a time as text, the name of a method instead of the method."""
    bank: Any = Service("bank", aggregates=[Account])
    async with bank.open(store="memory://"):
        ada = Account("ada", "Ada")
        text = str(await bank.save(ada))
        for call in (bank.wait(text), bank.query(sa.select(owners), after=text)):
            with pytest.raises(ConfigurationError, match=r"is not a Position: use Position\.parse\('bank\.main:"):
                await call
        with pytest.raises(ConfigurationError, match=r"3 is not a Position$"):
            await bank.wait(3)
        with pytest.raises(ConfigurationError, match="at='2026-01-01', where a datetime with a time zone is needed"):
            await bank.get(Account, ada.id, at="2026-01-01")
        with pytest.raises(ConfigurationError, match=r"takes a method, such as User\.rename, not 'pay'"):
            await bank.execute(Account, ada.id, "pay")
        with pytest.raises(TypeError, match=r"give the method of the class, Account\.move$"):
            await bank.execute(Account, ada.id, ada.move, 1, "t")
        with pytest.raises(ConfigurationError, match="'owners' is not a projection of service 'bank'"):
            await bank.wait(Position.parse(text), "owners")
        with pytest.raises(ConfigurationError, match=r"takes a select, .*, not 'select \* from owners'"):
            await bank.query("select * from owners")
        with pytest.raises(ConfigurationError, match=r"cannot be saved: give them one by one, as in save\(a, b\)"):
            await bank.save([ada])
        assert len(await bank.history(Account, ada.id)) == 1


class Misspelt(Contract, type="bank.Account.Openend"):
    """Of an event that there is not."""


async def test_a_contract_for_an_event_that_its_service_does_not_have_is_told_of(
    bank: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """With the events that there are, in every place where the service is at hand; names of before are events too."""
    view, told = Projection("owners", model=MemoryModel(dict)), "has no such event: it has bank.Account.Created, "
    view.on(Misspelt)(lambda e, state: None)
    async with bank.open(), Service("desk", projections=[view]).open(store="memory://", sources={"bank": bank}):
        assert told in caplog.text
    caplog.clear()
    async with world(Service("bank", aggregates=[Account], projections=[view])):
        assert "projection owners of service bank handles bank.Account.Openend (contract Misspelt)" in caplog.text
    caplog.clear()
    renamed = {"bank.Account.Openend": "bank.Account.Opened"}
    async with world(Service("bank", aggregates=[Account], projections=[view], renamed=renamed)):
        assert told not in caplog.text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["bank"], "world\\(\\) takes services, not 'bank'"),
        ([Service("bank"), Service("desk"), Service("bank")], "of different names, not bank, desk, bank"),
    ],
)
async def test_a_world_takes_services_of_different_names(given: list[Any], said: str) -> None:
    """A second one of a name would take the place of the first, which would never be opened."""
    with pytest.raises(ConfigurationError, match=said):
        await world(*given).__aenter__()
