"""An unchanged application over evsync's stores: relayed, projected, loaded, from any thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from eventsourcing.persistence import DataError, IntegrityError, OperationalError, StoredEvent, Tracking

from evsync import Contract, Event, MemoryModel, Projection, Service
from evsync.errors import ConfigurationError, EventTooLarge, WrongStore
from evsync.interop.eventsourcing import EvsyncApplicationRecorder, Factory
from evsync.jetstream.server import EmbeddedServer
from evsync.records import NewEvent
from evsync.testing.contracts.samples import one
from tests.interop.shop import Basket, Baskets

pytestmark = pytest.mark.anyio
DEADLINE_S = 30.0


class Started(Contract, type="baskets.Basket.Started"):
    owner: str


class Filled(Contract, type="baskets.Basket.Filled"):
    price: Decimal


def report() -> tuple[Service, MemoryModel[dict[str, list[object]]]]:
    """Another service, with a read model of baskets: owner and total by id."""
    model: MemoryModel[dict[str, list[object]]] = MemoryModel(dict)
    view = Projection("totals", model=model)

    @view.on(Started)
    def started(e: Event[Started], totals: dict[str, list[object]]) -> None:
        totals[e.stream_id] = [e.data.owner, Decimal(0), e.version]

    @view.on(Filled)
    def filled(e: Event[Filled], totals: dict[str, list[object]]) -> None:
        owner, total, _ = totals[e.stream_id]
        assert isinstance(total, Decimal)
        totals[e.stream_id] = [owner, total + e.data.price, e.version]

    return Service("report", projections=[view]), model


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/baskets.db"


def baskets(url: str, **settings: str) -> Baskets:
    """The application, as its environment makes it."""
    return Baskets(env={"PERSISTENCE_MODULE": "evsync.interop.eventsourcing", "EVSYNC_STORE": url, **settings})


async def test_its_events_are_projected_from_its_store(url: str) -> None:
    """A contract with the fields' own types reads them; the application goes on saving meanwhile."""
    service, model = report()
    with baskets(url) as app:
        first = app.start("Ada", 3, 4)
        async with service.open(store="memory://", nats="", sources={"baskets": url}):
            second = app.start("Bob", 5)
            store = app.factory._stores["main"].store
            await service.wait(store.identity.at(app.recorder.max_notification_id() or 0), timeout_s=DEADLINE_S)
            assert service.state(model) == {str(first): ["Ada", 7, 3], str(second): ["Bob", 5, 2]}


async def test_its_events_are_relayed(url: str, nats_server: EmbeddedServer) -> None:
    """A service of its name without aggregates runs the relay; consumers cannot tell who wrote the events."""
    service, model = report()
    with baskets(url) as app:
        async with (
            Service("baskets").open(store=url, nats=nats_server.url, run=["relay"]) as relaying,
            service.open(store="memory://", nats=nats_server.url),
        ):
            ids = [app.start(f"user{i}", i) for i in range(20)]
            assert relaying.store is not None
            head = relaying.store.identity.at(await relaying.store.head())
            assert head.number == 40
            await service.wait(head, timeout_s=DEADLINE_S)
            assert service.state(model) == {str(id): [f"user{i}", i, 2] for i, id in enumerate(ids)}


async def test_a_native_service_loads_its_aggregates(url: str) -> None:
    """The same classes, the same store: an application can become a service, and what that saves is loaded natively."""
    with baskets(url) as app:
        id = app.start("Ada", 3)
        async with Service("baskets", aggregates=[Basket]).open(store=url, nats="", run="none") as native:
            assert await native.get(Basket, id) == app.repository.get(id)
            await native.execute(Basket, id, Basket.fill, Decimal(4))
            assert (await native.get(Basket, id)).total == 7
        with pytest.raises(DataError, match="evsync Service"):
            app.repository.get(id)


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
async def test_snapshots_are_no_events(store: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """They are kept in a store of their own beside it: the log, and with it every consumer, sees events only."""
    if store == "postgres":
        url = request.getfixturevalue("postgres_url") + "&schema=with_snapshots"
    else:
        url = f"sqlite:///{tmp_path}/my.baskets.db"
    with baskets(url, IS_SNAPSHOTTING_ENABLED="y") as app:
        id = app.start("Ada", 3)
        app.take_snapshot(id)
        assert app.snapshots is not None
        assert len(list(app.snapshots.get(id))) == 1
        assert app.recorder.max_notification_id() == 2
        assert app.repository.get(id).total == 3
    if store == "sqlite":
        assert sorted(os.listdir(tmp_path)) == ["my.baskets.db", "my.baskets_snapshots.db"]


def test_threads_share_commits(url: str) -> None:
    """Many threads save at once: each save is durable when it returns, and of rivals for one version one wins."""
    with baskets(url) as app, ThreadPoolExecutor(16) as threads:
        ids = list(threads.map(lambda i: app.start(f"user{i}", 1), range(200)))
        assert app.recorder.max_notification_id() == 400
        copies = [app.repository.get(ids[0]) for _ in range(16)]
        for copy in copies:
            copy.fill(Decimal(2))

        def rival(basket: Basket) -> bool:
            try:
                app.save(basket)
            except IntegrityError:
                return False
            return True

        assert sum(threads.map(rival, copies)) == 1
        assert app.repository.get(ids[0]).total == 3


def test_events_of_several_aggregates_keep_their_order() -> None:
    """As they were given, also where aggregates alternate: it is the order of their notification ids."""
    with baskets("memory://") as app:
        a, b = Basket(owner="Ada"), Basket(owner="Bob")
        a.fill(Decimal(1))
        b.fill(Decimal(2))
        first, second = a.collect_events(), b.collect_events()
        recordings = app.save(first[0], second[0], first[1], second[1])
        assert [r.notification.id for r in recordings] == [1, 2, 3, 4]
        notified = app.recorder.select_notifications(1, 10)
        assert [(n.originator_id, n.originator_version) for n in notified] == [
            (a.id, 1),
            (b.id, 1),
            (a.id, 2),
            (b.id, 2),
        ]


def test_a_closed_application_says_so(url: str) -> None:
    """Nothing hangs: what comes later is refused, and so is a subscription that waits."""
    app = baskets(url)
    app.start("Ada")
    subscription = app.recorder.subscribe(gt=0)
    refused: list[OperationalError] = []

    def follow() -> None:
        try:
            assert [n.id for n in subscription] == []
        except OperationalError as e:
            refused.append(e)

    reading = threading.Thread(target=follow)
    next(subscription)
    reading.start()
    app.close()
    app.close()
    reading.join(DEADLINE_S)
    assert len(refused) == 1
    with pytest.raises(OperationalError, match="closed"):
        app.start("Bob")


def test_an_application_that_is_never_closed_lets_the_process_end(url: str) -> None:
    """Garbage at the end of the interpreter closes itself, when no thread is left to do it; what was saved is there."""
    script = "from tests.interop.shop import Baskets; app = Baskets(); app.start('Ada', 1)"
    environment = {**os.environ, "PERSISTENCE_MODULE": "evsync.interop.eventsourcing", "EVSYNC_STORE": url}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=DEADLINE_S)
    with baskets(url) as app:
        assert app.recorder.max_notification_id() == 2


def test_a_fork_is_told_to_make_its_own(url: str) -> None:
    """Threads do not come along into a forked process; the error says so instead of waiting for ever."""
    with baskets(url) as app:
        child = os.fork()
        if child == 0:
            try:
                app.start("Ada")
            except OperationalError as e:
                os._exit(0 if "fork" in str(e) else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        app.start("Bob")


def test_settings_name_the_store_and_the_service(tmp_path: Path) -> None:
    """The service is named after the application, or by EVSYNC_SERVICE; CREATE_TABLE=no makes nothing."""
    with pytest.raises(ConfigurationError, match="BASKETS_EVSYNC_STORE or EVSYNC_STORE"):
        baskets("")
    with baskets(f"sqlite:///{tmp_path}/{{service}}.db", BASKETS_EVSYNC_SERVICE="shop") as app:
        assert isinstance(app.factory, Factory)
        assert app.factory.service == "shop"
    assert (tmp_path / "shop.db").exists()
    with pytest.raises(WrongStore, match="shop"):
        baskets(f"sqlite:///{tmp_path}/shop.db")
    with pytest.raises(Exception, match="no store"):
        baskets(f"sqlite:///{tmp_path}/other.db", CREATE_TABLE="no")


def test_topics_are_found_wherever_they_are() -> None:
    """A page of notifications of some topics is full while there are any, however far apart they stand."""
    with baskets("memory://") as app:
        for i in range(700):
            app.start("Ada", *[1] * (i % 300 == 299))
        topic = "tests.interop.shop:Basket.Filled"
        assert isinstance(app.recorder, EvsyncApplicationRecorder)
        assert [n.id for n in app.recorder.select_notifications(1, 10, topics=[topic])] == [301, 602]
        assert [n.id for n in app.recorder.select_notifications(1, 1, topics=[topic])] == [301]
        assert app.recorder.select_notifications(302, 10, stop=601, topics=[topic]) == []


def test_what_was_reached_in_another_log_may_have_moved_elsewhere() -> None:
    """A recorder whose knowledge is old asks the store; only a position that comes again is refused."""
    with baskets("memory://") as app:
        here, there = app.factory.process_recorder(), app.factory.process_recorder()
        here.insert_tracking(Tracking("up", 1))
        there.insert_tracking(Tracking("up", 5))
        with pytest.raises(IntegrityError, match="5 was reached"):
            here.insert_events([StoredEvent(uuid4(), 1, "t", b"")], tracking=Tracking("up", 3))
        event = StoredEvent(UUID(int=1), 1, "t", b"")
        assert here.insert_events([event], tracking=Tracking("up", 6)) == [1]
        with pytest.raises(IntegrityError, match="version"):
            here.insert_events([event], tracking=Tracking("up", 7))
        assert there.max_tracking_id("up") == 6


def test_errors_are_the_librarys(url: str) -> None:
    """What evsync raises arrives as the library's own errors, evsync's as the cause."""
    with baskets(url) as app:
        store = app.factory._stores["main"]
        with pytest.raises(DataError) as caught:
            store.commit(one("ada", 0, [NewEvent("a.B.C", 0, b"", None)] * 65_537))
        assert type(caught.value.__cause__).__name__ == "EncodingError"


@pytest.mark.parametrize("limit", [None, 100_000])
def test_an_event_that_no_message_could_hold_is_refused_at_save(tmp_path: Path, limit: int | None) -> None:
    """As for a native service: by the broker's usual limit, or the one that was set; snapshots go by no such limit."""
    settings = {"EVSYNC_MAX_PAYLOAD": str(limit)} if limit else {}
    with baskets(f"sqlite:///{tmp_path}/baskets.db", **settings) as app:
        recorder, most = app.factory.application_recorder(), limit or 1 << 20
        fits = StoredEvent(uuid4(), 1, "shop:Basket.Filled", json.dumps({"text": "x" * (most - 9_000)}).encode())
        recorder.insert_events([fits])
        small = StoredEvent(uuid4(), 1, "shop:Basket.Filled", b"{}")
        large = StoredEvent(uuid4(), 1, "shop:Basket.Filled", json.dumps({"text": "x" * most}).encode())
        with pytest.raises(DataError, match=f"the broker takes {most:,}") as caught:
            recorder.insert_events([small, large])
        assert isinstance(caught.value.__cause__, EventTooLarge)
        assert recorder.max_notification_id() == 1
        app.factory.aggregate_recorder("snapshots").insert_events([large])
    with pytest.raises(ConfigurationError, match="EVSYNC_MAX_PAYLOAD='1MB'"):
        baskets("memory://", EVSYNC_MAX_PAYLOAD="1MB")
