"""`evsync nats permissions` against a server that enforces them: they suffice, they confine, and each is needed."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from evsync import Contract, Event, Projection, Service, SnapshotPolicy, SqlModel, Tables
from evsync.errors import BrokerRefused, ConfigurationError, StreamAhead, StreamDiverged
from evsync.jetstream import streams
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.pulls import PullConsumer, PullPolicy
from evsync.jetstream.permissions import Grant, configuration, password_variable
from evsync.jetstream.server import EmbeddedServer
from evsync.jetstream.store.store import JetStreamStore
from evsync.jetstream.stream_settings import stream_name
from evsync.jetstream.verification import read_back
from evsync.operations.grants import grants_of
from evsync.records import LogIdentity
from tests.command_line import Shop
from tests.relaying import connected, eventually, halted
from tests.spine_services import Account, Note

pytestmark = pytest.mark.anyio

PASSWORD = "an-open-secret"
ADMIN = Grant("admin", [">"], [">"])
tables = sa.MetaData()
sums = sa.Table("sums", tables, sa.Column("id", sa.String, primary_key=True), sa.Column("cents", sa.Integer))


class Moved(Contract, type="bank.Account.Moved"):
    """Money moved."""

    amount: int


class Places:
    """The services of these tests, in one directory: a bank, a desk that follows it, a ledger whose store is NATS."""

    def __init__(self, directory: Path, ledger: str = "nats://127.0.0.1:4222/?stream=ledger") -> None:
        self._directory, self._ledger = directory, ledger

    def bank(self, **settings: Any) -> Service:
        """Relays."""
        return Service("bank", aggregates=[Account], store=f"sqlite:///{self._directory}/bank.db", **settings)

    def desk(self, views: str = "desk_views", **settings: Any) -> Service:
        """Projects what the bank relays, and has no relay."""
        view = Projection("sums", model=SqlModel(tables))

        @view.on(Moved)
        def moved(e: Event[Moved], db: Tables) -> None:
            db.increment(sums, id=e.stream_id, cents=e.data.amount)

        where = {"store": f"sqlite:///{self._directory}/desk.db", "views": f"sqlite:///{self._directory}/{views}.db"}
        return Service("desk", aggregates=[Note], projections=[view], **({"run": ["sums"]} | where | settings))

    def ledger(self, **settings: Any) -> Service:
        """Stores in JetStream, and keeps snapshots."""
        return Service(
            "ledger", aggregates=[Account], snapshots=SnapshotPolicy(every_events=1), store=self._ledger, **settings
        )  # fmt: skip

    async def grants(self) -> list[Grant]:
        """What they are permitted. The bank has a store; it relayed nothing yet."""
        async with self.bank(run="none").open():
            pass
        return await grants_of([self.bank(), self.desk(), self.ledger()])


@contextmanager
def guarded(directory: Path, grants: Sequence[Grant]) -> Iterator[EmbeddedServer]:
    """A server that permits this much, and everything to its administrator. Everybody has the same password."""
    with pytest.MonkeyPatch.context() as environment:
        for grant in (ADMIN, *grants):
            environment.setenv(password_variable(grant.user), PASSWORD)
        with EmbeddedServer.start(directory / "nats", extra_config=configuration([ADMIN, *grants])) as server:
            yield server


def at(server: EmbeddedServer, user: str) -> str:
    """The server's URL with this user."""
    return server.url.replace("nats://", f"nats://{user}:{PASSWORD}@")


@asynccontextmanager
async def user(server: EmbeddedServer, name: str, service: str = "") -> AsyncIterator[Connection]:
    """A bare connection of a user; nobody else could hold the service back from misuse."""
    async with connected(at(server, name), service or name) as conn:
        yield conn


# ---- what each part does


async def relay(places: Places, url: str) -> None:
    """Everything that a relay asks, also in trouble."""
    for amount in (1, 2):  # the second time there is something to read back
        async with places.bank(nats=url).open() as bank:
            account = Account(uuid4().hex, "Ada")
            account.move(amount, "token")
            await bank.save(account)
            relay, conn = bank.runtime.relay, bank.runtime.connection
            assert relay is not None
            assert conn is not None
            head = await bank.runtime.store.head()
            await eventually(lambda relay=relay, head=head: relay.confirmed >= head, "the relay at the head")
            identity = bank.runtime.store.identity
            await read_back(conn, stream_name(identity), 1_000, 1_000)  # what a replica that lags leaves out
            await streams.occupant(conn, identity)  # who has the subjects, when they are taken


async def project(places: Places, url: str, views: str = "desk_views") -> None:
    """Everything that a reader asks, also in trouble."""
    async with places.desk(views, nats=url).open() as desk:
        conn = desk.runtime.connection
        assert conn is not None
        (log,) = await desk.runtime.sources["bank"].readers()
        await eventually(log.head, "the head of the bank's log")

        async def seen() -> bool:
            return sorted((await desk.query(sa.select(sums.c.cents))).scalars()) == [1, 2]

        await eventually(seen, "the read model")
        await desk.rebuild()
        assert await seen()
        await desk.status()
        stream = log._stream  # type: ignore[attr-defined]  # a JetStreamReader
        consumer = await PullConsumer.create(conn, stream, 1, PullPolicy())
        await consumer.info()  # when nothing comes
        consumer.close()
        await streams.occupant(conn, LogIdentity("bank", "main", ""))  # when the stream is gone


async def store(places: Places, _url: str) -> None:
    """Everything that a store in a stream asks, also in trouble."""
    for amount in (1, 2):
        async with places.ledger().open() as ledger:
            account = Account(uuid4().hex, "Ada")
            account.move(amount, "token")
            account.move(amount, "another")
            await ledger.save(account)
            snapshots = ledger.runtime.snapshots
            assert snapshots is not None
            await eventually(lambda s=ledger.runtime.store, a=account: s.snapshot(a.id), "a snapshot")
            assert (await ledger.get(Account, account.id)).balance == 2 * amount
            assert [e.type async for e in ledger.log()][:1] == ["ledger.Account.Opened"]
            await streams.occupant(ledger.runtime.store._conn, ledger.runtime.store.identity)  # type: ignore[attr-defined]


Part = Callable[[Places, str], Awaitable[None]]
PARTS: dict[str, Part] = {"bank": relay, "desk": project, "ledger": store}


async def test_each_service_does_its_work_with_exactly_these(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Relaying, projecting, rebuilding, storing in JetStream with snapshots: nothing is refused."""
    grants = await Places(tmp_path).grants()
    assert [grant.notes for grant in grants] == [[], [], []]
    assert "*" not in {token for grant in grants[::2] for subject in grant.publish for token in subject.split(".")}
    with guarded(tmp_path, grants) as server:
        places = Places(tmp_path, f"{at(server, 'ledger')}/?stream=ledger")
        await relay(places, at(server, "bank"))
        await project(places, at(server, "desk"))
        await store(places, "")
    assert "Violation" not in caplog.text


@pytest.mark.parametrize("part", PARTS)
async def test_without_any_one_of_them_something_fails(
    part: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So they are the least: the server refuses, and names the permission that was left out, and no other."""
    grants = await Places(tmp_path).grants()
    patience: dict[str, Any] = JetStreamStore.open.__func__.__kwdefaults__  # type: ignore[attr-defined]
    monkeypatch.setitem(patience, "patience_s", 2.0)  # of what is refused, a store hopes that it will be permitted
    (full,) = (grant for grant in grants if grant.user == part)
    left_out = [*full.publish, *full.subscribe]
    less = [
        replace(full, user=f"less{n}", publish=_without(full.publish, each), subscribe=_without(full.subscribe, each))
        for n, each in enumerate(left_out)
    ]
    with guarded(tmp_path, less) as server:
        if part == "desk":
            await relay(Places(tmp_path), at(server, "admin"))
        for lesser, each in zip(less, left_out, strict=True):
            caplog.clear()
            if part != "desk":
                await _delete_streams(server)
            places = Places(tmp_path, f"{at(server, lesser.user)}/?stream=ledger")
            work = asyncio.create_task(PARTS[part](places, at(server, lesser.user)))
            try:
                await eventually(lambda work=work: work.done() or _violations(caplog), f"{part} to miss {each}")
                assert _violations(caplog), f"{part} does not need {each}"
            finally:
                work.cancel()
                await asyncio.wait([work])
            assert [v for v in _violations(caplog) if not _matches(each, v)] == []


def _without(subjects: Sequence[str], one: str) -> list[str]:
    return [subject for subject in subjects if subject != one]


def _violations(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The subjects that the server refused."""
    logged = [r.getMessage() for r in caplog.records if r.name == "evsync.jetstream"]
    return [found[1] for text in logged if (found := re.search(r'Permissions Violation for \w+ to "([^"]+)"', text))]


def _matches(pattern: str, subject: str) -> bool:
    tokens = [r".+" if t == ">" else r"[^.]+" if t == "*" else re.escape(t) for t in pattern.split(".")]
    return re.fullmatch(r"\.".join(tokens), subject) is not None


async def _delete_streams(server: EmbeddedServer) -> None:
    async with user(server, "admin") as admin:
        for name in (await admin.api("STREAM.NAMES"))["streams"] or ():
            await streams.delete(admin, name)


async def test_nobody_does_anything_to_another(tmp_path: Path) -> None:
    """The desk, which may read the bank's log, can neither write there, nor change or delete streams; nor read more."""
    grants = await Places(tmp_path).grants()
    with guarded(tmp_path, grants) as server:
        places = Places(tmp_path, f"{at(server, 'ledger')}/?stream=ledger")
        await relay(places, at(server, "bank"))
        await store(places, "")
        async with user(server, "admin") as admin:
            before = await admin.api("STREAM.LIST")
        (bank,) = (s["config"]["name"] for s in before["streams"] if s["config"]["name"].startswith("evsync_bank"))
        refused = [
            "evsync.bank.main.7.Account.Moved.ada", "evsync.ledger.main.7.Account.Moved.ada.1", "evsync.desk.main.x",
            f"$JS.API.STREAM.DELETE.{bank}", f"$JS.API.STREAM.UPDATE.{bank}", f"$JS.API.STREAM.PURGE.{bank}",
            f"$JS.API.STREAM.MSG.DELETE.{bank}", f"$JS.API.STREAM.SNAPSHOT.{bank}", "$JS.API.STREAM.CREATE.mine",
            "$JS.API.STREAM.INFO.ledger", "$JS.API.STREAM.MSG.GET.ledger", "$JS.API.DIRECT.GET.ledger",
            "$JS.API.CONSUMER.CREATE.ledger.mine", "$JS.API.CONSUMER.DURABLE.CREATE.ledger.mine",
        ]  # fmt: skip
        async with user(server, "desk") as desk:
            told: list[str] = []
            desk.on_violation(told.append)
            for subject in refused:
                with pytest.raises(BrokerRefused, match="Permissions Violation"):
                    await desk.request(subject, b"{}", timeout_s=5)
            for subject in ("_INBOX_bank.>", "evsync.>", "$JS.>", ">"):
                desk.subscribe(subject, lambda *_: None)
                await eventually(lambda s=subject: f'"{s}"' in told[-1], f"{subject} refused")
        async with user(server, "bank") as other:
            for subject in (f"$JS.API.STREAM.DELETE.{bank}", "$JS.API.STREAM.DELETE.ledger", "evsync.ledger.main.x"):
                with pytest.raises(BrokerRefused, match="Permissions Violation"):
                    await other.request(subject, b"{}", timeout_s=5)
        async with user(server, "admin") as admin:
            after = await admin.api("STREAM.LIST")
        assert [(s["config"], s["state"]) for s in after["streams"]] == [
            (s["config"], s["state"]) for s in before["streams"]
        ]


async def test_what_an_answer_does_to_a_stream_is_noticed(tmp_path: Path) -> None:
    """The limit of these permissions: NATS sends the answer to a request wherever the asker says. A relay halts."""
    grants = await Places(tmp_path).grants()
    with guarded(tmp_path, grants) as server:
        await relay(Places(tmp_path), at(server, "bank"))
        async with user(server, "desk") as desk:
            told: list[str] = []
            desk.on_violation(told.append)
            desk.publish("$JS.API.STREAM.LIST", "evsync.bank.main.7.Account.Moved.ada", b"", b"{}")
            await desk.api("STREAM.LIST")
            assert told == []
        async with Places(tmp_path).bank(nats=at(server, "bank")).open() as bank:
            relay_ = bank.runtime.relay
            assert relay_ is not None
            assert isinstance(await halted(relay_), (StreamAhead, StreamDiverged))


async def test_passwords_of_any_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the server's environment, between double quotes."""
    (grant,) = await grants_of([Places(tmp_path).bank(run="none")])
    monkeypatch.setenv(password_variable("bank"), '"7geh@im/:%$ #}"')
    with EmbeddedServer.start(tmp_path / "nats", extra_config=configuration([grant])) as server:
        async with connected(server.url.replace("//", "//bank:7geh%40im%2F%3A%25%24%20%23%7D@"), "bank") as conn:
            assert conn.connected


async def test_before_there_is_a_store_the_streams_are_any(tmp_path: Path) -> None:
    """And it is said what to do to confine them, as for a service that is read and not named."""
    places = Places(tmp_path)
    bank, desk = await grants_of([places.bank(), places.desk()])
    assert "$JS.API.STREAM.INFO.*" in bank.publish
    assert "$JS.API.CONSUMER.CREATE.*.*" in desk.publish
    assert "no event store yet" in bank.notes[0]
    assert "no event store yet" in desk.notes[0]
    (alone,) = await grants_of([places.desk()])
    assert "name that service too" in alone.notes[0]
    assert os.listdir(tmp_path) == [], "a store was made"


async def test_what_is_not_run_needs_nothing(tmp_path: Path) -> None:
    """No relay, nothing to publish; logs that are read from elsewhere; every stream, if asked for."""
    places = Places(tmp_path)
    (nothing,) = await grants_of([places.bank(run="none")])
    assert nothing.publish == []
    assert 'publish: { deny: [">"] }' in configuration([nothing])
    (elsewhere,) = await grants_of([places.desk(sources={"bank": places.bank()})])
    assert elsewhere.publish == []
    (everything,) = await grants_of([places.desk(run="all")])
    assert "evsync.desk.main.>" in everything.publish
    bank, desk = await grants_of([places.bank(), places.desk()], any_stream=True)
    assert "$JS.API.STREAM.INFO.*" in bank.publish
    assert (bank.notes, desk.notes) == ([], [])
    with pytest.raises(ConfigurationError, match="'bank' is given twice"):
        await grants_of([places.bank(), places.bank()])


async def test_no_permission_is_permission_for_nothing(tmp_path: Path) -> None:
    """An empty list would permit everything."""
    (nothing,) = await grants_of([Places(tmp_path).bank(run="none")])
    with guarded(tmp_path, [nothing]) as server:
        async with user(server, "bank") as conn:
            with pytest.raises(BrokerRefused):
                await conn.request("anything", timeout_s=5)


async def test_a_restored_log_may_ask_who_is_in_its_place(tmp_path: Path) -> None:
    """The stream of the incarnation before it still has the subjects."""
    async with Places(tmp_path).bank(run="none").open() as bank:
        identity = bank.runtime.store.identity
        bank.runtime.store.identity = identity.restored(0, "fedcba987654")  # type: ignore[misc]
    (grant,) = await grants_of([Places(tmp_path).bank()])
    assert f"$JS.API.STREAM.INFO.{stream_name(identity)}" in grant.publish


def test_the_command_prints_configuration_or_json(tmp_path: Path) -> None:
    """For people and for programs; a comment says where the passwords come from."""
    shop = Shop(tmp_path)
    said = shop.evsync("nats", "permissions", "tests.cli_shop:stock").stdout
    assert said.startswith("# Printed by `evsync nats permissions`")
    assert 'user: "stock", password: $NATS_PASSWORD_STOCK' in said
    (told,) = shop.json("nats", "permissions", "tests.cli_shop:stock")
    assert told["user"] == "stock"
    assert "evsync.stock.main.>" in told["publish"]
    assert told["subscribe"] == ["_INBOX_stock.>"]
    assert [json.loads(line)["user"] for line in shop.evsync(
        "nats", "permissions", "tests.cli_shop:stock", "tests.cli_shop:idle", "--json"
    ).stdout.splitlines()] == ["stock", "idle"]  # fmt: skip
    assert "twice" in shop.evsync("nats", "permissions", *["tests.cli_shop:stock"] * 2, code=2).stderr
