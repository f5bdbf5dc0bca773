"""Opening a service: where its settings come from, what runs, and what closing leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from evsync import Contract, Event, MemoryModel, NotVisible, Position, Projection, Reaction, Service, SqlModel
from evsync.errors import ConfigurationError, StoreUnavailable, WrongStore
from evsync.jetstream.server import EmbeddedServer
from tests.relaying import eventually
from tests.spine_services import Account, AccountMoved, Note, accounts

pytestmark = pytest.mark.anyio


def counting(name: str = "moves") -> tuple[Projection[dict[str, int]], MemoryModel[dict[str, int]]]:
    """A projection in memory: account → how often it was moved."""
    model: MemoryModel[dict[str, int]] = MemoryModel(dict)
    projection = Projection(name, model=model)

    @projection.on(AccountMoved)
    def count(e: Event[AccountMoved], counts: dict[str, int]) -> None:
        counts[e.stream_id] = counts.get(e.stream_id, 0) + 1

    return projection, model


async def moved(service: Service, id: str = "ada") -> Position:
    """Save a new account that was moved once."""
    account = Account(id, "owner")
    account.move(1, "t")
    return await service.save(account)


OPERATIONS: dict[str, Callable[[Service], Awaitable[Any]]] = {
    "save": lambda s: s.save(Account("ada", "o")),
    "get": lambda s: s.get(Account, "ada"),
    "execute": lambda s: s.execute(Account, "ada", Account.move, 1, "t"),
    "history": lambda s: s.history(Account, "ada"),
    "log": lambda s: anext(s.log()),
    "wait": lambda s: s.wait(Position("bank.main", "x", 1)),
    "query": lambda s: s.query(sa.select(accounts)),
    "status": lambda s: s.status(),
}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_nothing_works_before_opening_and_after_closing(operation: str) -> None:
    """The error says how to open it; nothing is created by the way."""
    service = Service("bank", aggregates=[Account])
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"'bank' is not open: use `async with bank\.open\(store=…\)"):
            await OPERATIONS[operation](service)
        async with service.open(store="memory://"):
            assert "open>" in repr(service)
        assert service.store is None


async def test_a_service_is_open_once_at_a_time() -> None:
    """A second opening fails, whether the first is complete or under way, and leaves the first as it is."""
    service = Service("bank", aggregates=[Account], store="memory://")
    go = asyncio.Event()

    async def hold() -> None:
        async with service.open():
            await go.wait()
            await moved(service)

    first, second = asyncio.create_task(hold()), asyncio.create_task(hold())
    await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)
    assert isinstance(second.exception(), ConfigurationError)
    for again in (service.open(), service, service.lifespan(object())):
        with pytest.raises(ConfigurationError, match="open already; make a second Service"):
            await again.__aenter__()
    go.set()
    await first
    async with service as opened:
        assert opened is service
        assert next(iter((await service.status()).logs.values())).head == 0


async def test_an_opening_that_fails_can_be_tried_again(tmp_path: Path) -> None:
    """Nothing of it stays open."""
    projection, _ = counting()
    service = Service("bank", aggregates=[Account], projections=[projection])
    tasks = asyncio.all_tasks()
    with pytest.raises(ConfigurationError):
        async with service.open(store=f"sqlite:///{tmp_path}/bank.db", nats="http://x"):
            raise AssertionError("unreachable")
    assert asyncio.all_tasks() == tasks
    async with service.open(store=f"sqlite:///{tmp_path}/bank.db"):
        await service.wait(await moved(service))
    assert asyncio.all_tasks() == tasks


async def test_a_lifespan_opens_the_service_for_an_application(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an ASGI server calls: open while the application runs, also when the application fails."""
    monkeypatch.setenv("EVSYNC_BANK_STORE", "memory://")
    service = Service("bank", aggregates=[Account])
    async with service.lifespan(object()):
        await moved(service)
    with pytest.raises(RuntimeError, match="the application's own"):
        async with service.lifespan(object()):
            raise RuntimeError("the application's own")
    assert service.store is None


async def test_closing_answers_everybody(tmp_path: Path) -> None:
    """Saves in flight are carried out, who follows the log comes to its end, who waits hears of it at once."""
    projection, _ = counting()
    service = Service("bank", aggregates=[Account], projections=[projection])

    async def follow() -> list[str]:
        return [e.stream_id async for e in service.log(follow=True)]

    async with service.open(store=f"sqlite:///{tmp_path}/bank.db", run="none"):
        position = await moved(service)
        saving = [asyncio.create_task(moved(service, f"a{i}")) for i in range(50)]
        following = asyncio.create_task(follow())
        waiting = asyncio.create_task(service.wait(position, timeout_s=3600))
        await eventually(lambda: service.runtime.projections["moves"]._visibility._waiters, "the wait begun")
    async with asyncio.timeout(10):
        numbers = [p.number for p in await asyncio.gather(*saving)]
        streams = await following
        with pytest.raises(NotVisible, match="was closed"):
            await waiting
    assert "ada" in streams
    async with service.open(store=f"sqlite:///{tmp_path}/bank.db", run="none"):
        assert next(iter((await service.status()).logs.values())).head == max(numbers) == 102


# ---- settings


def _emptied(directory: Path) -> list[str]:
    """The names of the stores that were in it."""
    made = list(directory.glob("*.db*"))
    for path in made:
        path.unlink()
    return sorted({path.name.partition(".")[0] for path in made})


async def test_settings_come_from_opening_then_the_constructor_then_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nearest wins, one setting at a time; None and an empty variable count as not given."""
    urls = [f"sqlite:///{tmp_path}/{name}.db" for name in ("open", "constructor", "environment")]
    monkeypatch.setenv("EVSYNC_CASH_DESK_STORE", urls[2])
    monkeypatch.setenv("EVSYNC_NATS", "nats://127.0.0.1:1")
    unset: Any = None

    async def found(service: Service, **overrides: Any) -> tuple[str, str | None]:
        async with service.open(**overrides):
            [made] = _emptied(tmp_path)
            return made, (await service.status()).nats

    constructed = Service("cash-desk", aggregates=[Account], store=urls[1], nats="nats://127.0.0.1:2")
    plain = Service("cash-desk", aggregates=[Account])
    name, nats = await found(constructed, store=urls[0])
    assert name == "open"
    assert nats is not None
    assert nats.startswith("nats://127.0.0.1:2 (not connected")
    assert (await found(constructed, store=unset, nats=""))[0] == "constructor"
    name, nats = await found(plain)
    assert name == "environment"
    assert nats is not None
    assert nats.startswith("nats://127.0.0.1:1 ")
    monkeypatch.setenv("EVSYNC_CASH_DESK_NATS", "nats://127.0.0.1:3")
    _, nats = await found(plain)
    assert nats is not None
    assert nats.startswith("nats://127.0.0.1:3 ")
    assert await found(plain, nats="") == ("environment", None)
    monkeypatch.setenv("EVSYNC_CASH_DESK_STORE", "")
    with pytest.raises(ConfigurationError, match=r"give open\(store=.*or set EVSYNC_CASH_DESK_STORE"):
        await found(plain)


async def test_every_setting_can_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists are written with commas, sources as JSON."""
    projection, model = counting()
    desk = Service("desk", aggregates=[Note], projections=[projection])
    bank = Service("bank", aggregates=[Account], store=f"sqlite:///{tmp_path}/bank.db")
    async with bank.open():
        position = await moved(bank)
        for setting, value in {
            "STORE": "memory://",
            "VIEWS": f"sqlite:///{tmp_path}/views.db",
            "SOURCES": f'{{"bank": "sqlite:///{tmp_path}/bank.db"}}',
            "RUN": "relay, moves",
        }.items():
            monkeypatch.setenv(f"EVSYNC_DESK_{setting}", value)
        async with desk.open():
            await desk.wait(position)
            assert desk.state(model) == {"ada": 1}
    for setting, value, words in (
        ("SOURCES", "bank=x", "EVSYNC_DESK_"),
        ("SOURCES", '{"bank": "http://x"}', "'http://x' is not the URL of an event store"),
        ("RUN", "relay,ghost", "no part named ghost"),
    ):
        with monkeypatch.context() as m:
            m.setenv(f"EVSYNC_DESK_{setting}", value)
            with pytest.raises(ConfigurationError, match=words):
                async with desk.open():
                    raise AssertionError("unreachable")


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("store", "bank.db", r"'bank.db' is not the URL of an event store. Use one of"),
        ("store", "sqlite://bank.db", "is not the URL of an event store"),
        ("store", "sqlite:////no/such/directory/bank.db", "there is no directory /no/such/directory"),
        ("store", "sqlite:///" + "x" * 5000, "cannot be a path"),
        ("store", "sqlite:///a\0b", "cannot be a path"),
        ("store", 5, "store=5"),
        ("store", {"main": "sqlite:///desk.db", "b": "sqlite:///desk.db"}, "shards .main. and .b. have the same URL"),
        ("store", {"main": 5}, "where a URL is needed"),
        ("sources", {"bank": {"a": 5}}, "source bank has 5 for shard .a., where a URL is needed"),
        (
            "sources",
            {"bank": {"a": "sqlite:///b.db", "b": "sqlite:///b.db"}},
            "source bank: shards .a. and .b. have the same URL",
        ),
        ("store", {"Main!": "memory://"}, "cannot be the name of a shard"),
        ("store", "{memory", "is not JSON"),
        ("nats", "http://127.0.0.1:4222", "has the scheme 'http'"),
        ("nats", "nats://", "is not the URL of a NATS server"),
        ("nats", "nats://host:port", "is not the URL of a NATS server"),
        ("nats", 4222, "nats=4222"),
        ("views", "views.db", "'views.db' is not the URL of a database for read models"),
        ("views", "mysql://u:geheim@host/db", r"mysql://u:\*\*\*@host/db"),
        ("views", "sqlite:////no/such/directory/v.db", "/no/such/directory does not exist"),
        ("views", "sqlite:///a\0b", "cannot be"),
        ("views", 5, "views=5"),
        ("run", "relay", "use 'all', 'none' or a list of moves, relay"),
        ("run", ["ghost", "relay"], "no part named ghost"),
        ("run", 5, "run=5"),
        ("sources", "sqlite:///bank.db", "sources="),
        ("sources", {"bank": "bank.db"}, "'bank.db' is not the URL of an event store"),
        ("sources", {"bank": 5}, "sources="),
        ("sources", {"bank": SimpleNamespace(name="bank")}, "give service 'bank', or its store's URL"),
        ("sources", {}, r"needs the events of 'bank' and does not know where they are: set nats="),
        ("stoer", "memory://", "no setting 'stoer'; there are store, views, nats, sources, archives, run"),
    ],
)
async def test_a_wrong_setting_is_refused_before_anything_runs(setting: str, value: object, words: str) -> None:
    """The error names the setting or its value, and says what it should be; no secret is shown."""
    projection = Projection("moves", model=_tables())
    projection.on(AccountMoved)(lambda e, db: None)
    desk = Service("desk", aggregates=[Note], projections=[projection])
    settings: Any = {"store": "memory://", "views": "sqlite://", "sources": {"bank": Service("bank")}, setting: value}
    with pytest.raises(ConfigurationError, match=words) as refused:
        async with desk.open(**settings):
            raise AssertionError("unreachable")
    assert "geheim" not in str(refused.value)
    assert desk.store is None


def _tables() -> Any:
    from evsync import SqlModel

    return SqlModel(sa.MetaData())


# ---- what runs


@pytest.mark.parametrize("run", ["all", "none", [], ["relay"], ["moves"], ("relay", "moves")], ids=str)
async def test_only_the_parts_that_run_names_run(nats_server: EmbeddedServer, run: Any) -> None:
    """The others can be waited for and looked at."""
    projection, model = counting()
    service = Service("bank", aggregates=[Account], projections=[projection])
    named = {"all": {"relay", "moves"}, "none": set[str]()}.get(str(run), set(run))
    async with service.open(store="memory://", nats=nats_server.url, run=run):
        position = await moved(service)
        if "moves" in named:
            await service.wait(position)
            assert service.state(model) == {"ada": 1}
        else:
            with pytest.raises(NotVisible):
                await service.wait(position, timeout_s=0.05)
        status = await service.status()
        assert [f.state for f in status.followers] == ["running" if "moves" in named else "standby"]
        assert (status.logs["bank.main"].relay is not None) == ("relay" in named)
        if "relay" in named:
            await eventually(lambda: service.runtime.relay.confirmed == 2, "the events published")  # type: ignore[union-attr]


# ---- sources


async def test_a_source_may_be_a_service_of_this_process_that_opens_later_and_again(tmp_path: Path) -> None:
    """It is waited for; when it is closed and opened again, its events go on coming."""
    projection, model = counting()
    bank = Service("bank", aggregates=[Account], store=f"sqlite:///{tmp_path}/bank.db")
    desk = Service("desk", aggregates=[Note], projections=[projection])
    async with desk.open(store="memory://", sources={"bank": bank}):
        assert [f.waiting_for for f in (await desk.status()).followers] == [("bank",)] or [["bank"]]
        for n, id in enumerate(("ada", "bob"), 1):
            async with bank.open():
                await desk.wait(await moved(bank, id))
                assert len(desk.state(model)) == n


async def test_a_source_may_be_the_url_of_a_store_that_comes_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its writer may be another process. What is waited for is told, with its path: it may be misspelt."""
    projection, model = counting()
    bank = Service("bank", aggregates=[Account], store=f"sqlite:///{tmp_path}/bank.db")
    desk = Service("desk", aggregates=[Note], projections=[projection])
    async with desk.open(store="memory://", sources={"bank": f"sqlite:///{tmp_path}/bank.db"}):
        assert f"waiting for the log of bank: there is no store at {tmp_path}/bank.db" in caplog.text
        async with bank.open():
            position = await moved(bank)
            await desk.wait(position)
        async with bank.open():
            await desk.wait(await moved(bank, "bob"))
        assert desk.state(model) == {"ada": 1, "bob": 1}
        assert (await desk.status()).followers[0].logs[0].lag_events == 0


async def test_a_source_that_is_another_services_store_is_refused(tmp_path: Path) -> None:
    """Rather than projecting the wrong events."""
    async with Service("cash", aggregates=[Account]).open(store=f"sqlite:///{tmp_path}/cash.db"):
        pass
    projection, _ = counting()
    desk = Service("desk", aggregates=[Note], projections=[projection])
    with pytest.raises(WrongStore, match="is the store of service 'cash'"):
        async with desk.open(store="memory://", sources={"bank": f"sqlite:///{tmp_path}/cash.db"}):
            raise AssertionError("unreachable")


def test_a_contract_names_its_event() -> None:
    """So that a projection's sources follow from its handlers."""
    with pytest.raises(TypeError, match="does not say which event it is for"):

        class Nameless(Contract):  # type: ignore[call-arg]
            pass


async def test_inspecting_makes_nothing(tmp_path: Path) -> None:
    """No store, no read model, no stream."""
    projection, _ = counting()
    service = Service("bank", aggregates=[Account], projections=[projection])
    with pytest.raises(StoreUnavailable, match="there is no store"):
        async with service.inspect(store=f"sqlite:///{tmp_path}/bank.db"):
            raise AssertionError("unreachable")
    assert _emptied(tmp_path) == []


async def test_read_models_in_the_file_of_an_event_store_are_refused(tmp_path: Path) -> None:
    """A read model can be thrown away, an event store cannot."""
    tables = sa.MetaData()
    sa.Table("moves", tables, sa.Column("id", sa.String, primary_key=True))
    projection = Projection("moves", model=SqlModel(tables))
    projection.on(AccountMoved)(lambda e, db: None)
    url = f"sqlite:///{tmp_path}/own.db"
    service = Service("bank", aggregates=[Account], projections=[projection])
    with pytest.raises(ConfigurationError, match="is an event store, and read models need a database of their own"):
        async with service.open(store=url, views=url):
            pass
    async with service.open(store=url):
        await service.wait(await moved(service))
        assert (await service.get(Account, "ada")).owner == "owner"


@pytest.mark.parametrize("part", [Projection("empty", model=MemoryModel(dict)), Reaction("idle", since="now")])
async def test_what_has_no_handlers_is_refused(part: Projection[dict[str, int]] | Reaction) -> None:
    """It would follow nothing, and look as if it were done."""
    given: Any = {"projections": [part]} if isinstance(part, Projection) else {"reactions": [part]}
    with pytest.raises(ConfigurationError, match=f"{part.name}' has no handlers"):
        async with Service("readers", **given).open(store="memory://", nats=""):
            raise AssertionError("it has opened")
