"""The library's own test cases pass over evsync's stores."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID, uuid4

import pytest
from eventsourcing.persistence import InfrastructureFactory, StoredEvent, Tracking
from eventsourcing.utils import Environment, get_topic

from evsync.interop.eventsourcing import (
    EvsyncAggregateRecorder,
    EvsyncApplicationRecorder,
    EvsyncProcessRecorder,
    EvsyncTrackingRecorder,
    Factory,
)
from evsync.jetstream.server import EmbeddedServer
from tests.interop.shipped import application, persistence, projection

MODULE = "evsync.interop.eventsourcing"
_numbers = itertools.count()


class Stores:
    """Gives each test a store of its own, by URL, and factories over it that are closed behind it."""

    store = "memory"

    @pytest.fixture(autouse=True)
    def _stores(self, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        if self.store == "postgres":
            database = request.getfixturevalue("postgres_url")
            self.url = f"{database}&schema=shipped{next(_numbers)}_{{service}}"
        elif self.store == "jetstream":
            self.url = request.getfixturevalue("shared_nats").url
        else:
            self.url = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/{{service}}.db"}[self.store]
        self.settings = {"PERSISTENCE_MODULE": MODULE, "EVSYNC_STORE": self.url}
        if self.store == "jetstream":  # one server for all, where a service's subjects belong to one stream
            for name in ("CASES", "APPLICATION", "BANKACCOUNTS", "EVENTCOUNTERS", "COUNTERS"):
                self.settings[f"{name}_EVSYNC_SERVICE"] = f"{name.lower()}{next(_numbers)}"
        for name, value in self.settings.items():  # for the cases that make applications without an environment
            monkeypatch.setenv(name, value)
        self.factories: list[Factory] = []
        yield
        for factory in self.factories:
            factory.close()

    def factory(self) -> Factory:
        """A new factory over the test's store."""
        made = InfrastructureFactory.construct(Environment("Cases", self.settings))
        assert isinstance(made, Factory)
        self.factories.append(made)
        return made


class Sqlite:
    """The same in SQLite."""

    store = "sqlite"


class Postgres:
    """The same in PostgreSQL."""

    store = "postgres"


class JetStream:
    """The same in NATS JetStream."""

    store = "jetstream"


@pytest.fixture(scope="module")
def shared_nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer.start(tmp_path_factory.mktemp("nats")) as server:
        yield server


# ---- recorders


class TestAggregateRecorder(Stores, persistence.AggregateRecorderTestCase):
    def create_recorder(self) -> EvsyncAggregateRecorder:
        return self.factory().aggregate_recorder()


class TestSnapshotRecorder(Stores, persistence.AggregateRecorderTestCase):
    def create_recorder(self) -> EvsyncAggregateRecorder:
        return self.factory().aggregate_recorder(purpose="snapshots")


class TestApplicationRecorder(Stores, persistence.ApplicationRecorderTestCase[EvsyncApplicationRecorder]):
    def create_recorder(self) -> EvsyncApplicationRecorder:
        return self.factory().application_recorder()

    def test_insert_subscribe(self) -> None:
        """The library leaves it to recorders whether they have subscriptions; these have."""
        self.optional_test_insert_subscribe()


class TestNonInterleaving(Stores, persistence.NonInterleavingNotificationIDsBaseCase):
    def create_recorder(self) -> EvsyncApplicationRecorder:
        return self.factory().application_recorder()


class TestTrackingRecorder(Stores, persistence.TrackingRecorderTestCase):
    def create_recorder(self) -> EvsyncTrackingRecorder:
        return self.factory().tracking_recorder()


class TestProcessRecorder(Stores, persistence.ProcessRecorderTestCase):
    def create_recorder(self) -> EvsyncProcessRecorder:
        return self.factory().process_recorder()


class TestProcessAsApplicationRecorder(TestApplicationRecorder):
    """A process recorder does all that an application recorder does."""

    def create_recorder(self) -> EvsyncProcessRecorder:
        return self.factory().process_recorder()


class TestProcessAsTrackingRecorder(TestTrackingRecorder):
    """And all that a tracking recorder does."""

    def create_recorder(self) -> EvsyncProcessRecorder:
        return self.factory().process_recorder()


# ---- the factory


class OtherTrackingRecorder(EvsyncTrackingRecorder):
    """One of an application's own."""


class TestFactory(Stores, persistence.InfrastructureFactoryTestCase[Factory]):
    def setUp(self) -> None:
        self.env = Environment("Cases", self.settings)
        super().setUp()

    def expected_factory_class(self) -> type[Factory]:
        return Factory

    def expected_aggregate_recorder_class(self) -> type[EvsyncAggregateRecorder]:
        return EvsyncAggregateRecorder

    def expected_application_recorder_class(self) -> type[EvsyncApplicationRecorder]:
        return EvsyncApplicationRecorder

    def expected_tracking_recorder_class(self) -> type[EvsyncTrackingRecorder]:
        return EvsyncTrackingRecorder

    def tracking_recorder_subclass(self) -> type[EvsyncTrackingRecorder]:
        return OtherTrackingRecorder

    def expected_process_recorder_class(self) -> type[EvsyncProcessRecorder]:
        return EvsyncProcessRecorder


# ---- applications


class TestApplication(Stores, application.ApplicationTestCase):
    pass


class TestExampleApplication(Stores, application.ExampleApplicationTestCase):
    expected_factory_topic = get_topic(Factory)


# ---- projections


class EventCounters(EvsyncProcessRecorder, projection.EventCountersView):
    """A view whose state is events, each recorded with the position that it answers."""

    CREATED, SUBSEQUENT = UUID(int=1), UUID(int=2)

    def get_created_event_counter(self) -> int:
        return len(self.select_events(self.CREATED))

    def get_subsequent_event_counter(self) -> int:
        return len(self.select_events(self.SUBSEQUENT))

    def incr_created_event_counter(self, tracking: Tracking) -> None:
        self._count(self.CREATED, tracking)

    def incr_subsequent_event_counter(self, tracking: Tracking) -> None:
        self._count(self.SUBSEQUENT, tracking)

    def _count(self, counter: UUID, tracking: Tracking) -> None:
        counted = StoredEvent(counter, len(self.select_events(counter)) + 1, "counters:Counter.Incremented", b"{}")
        self.insert_events([counted], tracking=tracking)


class TestEventCountersView(Stores, projection.EventCountersViewTestCase):
    def construct_event_counters_view(self) -> EventCounters:
        view = self.factory().tracking_recorder(EventCounters)
        assert isinstance(view, EventCounters)
        return view


class TestProjection(Stores, projection.AggregateEventCountersProjectionTestCase):
    view_class: ClassVar[type[EventCounters]] = EventCounters


class TestEventSourcedProjection(Stores, projection.EventSourcedProjectionTestCase):
    pass


# ---- the same cases over the other stores

for _case in [c for name, c in list(vars().items()) if name.startswith("Test")]:
    for _kind in (Sqlite, Postgres, JetStream):
        _name = f"{_case.__name__}In{_kind.__name__}"
        globals()[_name] = type(_name, (_kind, _case), {"__module__": __name__})
del _case, _kind, _name


# ---- what does not depend on the store


class TestTextIds(TestApplicationRecorder):
    """Ids are text as often as UUIDs, also text that looks like one."""

    def new_originator_id(self) -> str:
        return str(uuid4())
