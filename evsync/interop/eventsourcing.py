"""evsync's stores for an unchanged application of the eventsourcing library.

    PERSISTENCE_MODULE=evsync.interop.eventsourcing
    EVSYNC_STORE=sqlite:///{service}.db                  as evsync.opening.open_store takes it
    EVSYNC_SERVICE=shop                                  by default the application's name: BankAccounts → bank_accounts
    EVSYNC_MAX_PAYLOAD=8388608                           max_payload of the NATS server, by default 1 MB

Each may be given for one application alone, as the library has it: BANKACCOUNTS_EVSYNC_STORE. CREATE_TABLE=no opens an
existing store only. Snapshots are kept in a store of their own beside it (`shop_snapshots.db`, schema
`shop_snapshots`): they are no events, and are not in the log.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from eventsourcing.persistence import InfrastructureFactory
from eventsourcing.utils import Environment, EnvType, resolve_topic, strtobool

from evsync.errors import ConfigurationError
from evsync.interop.recorders import (
    EvsyncAggregateRecorder,
    EvsyncApplicationRecorder,
    EvsyncProcessRecorder,
    EvsyncRecorder,
    EvsyncSubscription,
    EvsyncTrackingRecorder,
)
from evsync.interop.threads import LoopThread, SharedStore
from evsync.jetstream.sizes import SizeLimit
from evsync.opening import open_store
from evsync.ports import Store

__all__ = [
    "EvsyncAggregateRecorder",
    "EvsyncApplicationRecorder",
    "EvsyncProcessRecorder",
    "EvsyncSubscription",
    "EvsyncTrackingRecorder",
    "Factory",
]

R = TypeVar("R", bound=EvsyncRecorder)


class Factory(InfrastructureFactory[EvsyncTrackingRecorder]):
    """Makes recorders over one evsync store, opened when the first of them is made.

    Raises ConfigurationError for a missing or wrong setting, StoreError when a store cannot be opened.
    """

    EVSYNC_STORE = "EVSYNC_STORE"
    EVSYNC_SERVICE = "EVSYNC_SERVICE"
    EVSYNC_MAX_PAYLOAD = "EVSYNC_MAX_PAYLOAD"
    CREATE_TABLE = "CREATE_TABLE"

    def __init__(self, env: Environment | EnvType | None) -> None:
        super().__init__(env)
        self.service = self.env.get(self.EVSYNC_SERVICE) or _service_name(self.env.name)
        url = self.env.get(self.EVSYNC_STORE)
        if not url:
            names = " or ".join(self.env.create_keys(self.EVSYNC_STORE))
            raise ConfigurationError(
                f"application {self.env.name!r} has no event store: set {names}, such as sqlite:///{self.service}.db"
            )
        self.url = url.replace("{service}", self.service)
        self.max_payload = _bytes(self.EVSYNC_MAX_PAYLOAD, self.env.get(self.EVSYNC_MAX_PAYLOAD))
        self._thread: LoopThread | None = None
        self._stores: dict[str, SharedStore] = {}

    def aggregate_recorder(self, purpose: str = "events") -> EvsyncAggregateRecorder:
        """A recorder of events, or of what `purpose` says (`snapshots`) in a store of its own."""
        return EvsyncAggregateRecorder(self._store("main" if purpose == "events" else purpose))

    def application_recorder(self) -> EvsyncApplicationRecorder:
        """A recorder of events that has a log. APPLICATION_RECORDER_TOPIC names another class."""
        return self._made(self.APPLICATION_RECORDER_TOPIC, EvsyncApplicationRecorder)

    def tracking_recorder(self, tracking_recorder_class: type[Any] | None = None) -> EvsyncTrackingRecorder:
        """A recorder of positions in other logs. TRACKING_RECORDER_TOPIC names another class."""
        return self._made(self.TRACKING_RECORDER_TOPIC, EvsyncTrackingRecorder, tracking_recorder_class)

    def process_recorder(self) -> EvsyncProcessRecorder:
        """A recorder of events together with positions. PROCESS_RECORDER_TOPIC names another class."""
        return self._made(self.PROCESS_RECORDER_TOPIC, EvsyncProcessRecorder)

    def close(self) -> None:
        """Carry out what was begun, close the stores, end the thread. Recorders raise OperationalError afterwards."""
        thread, self._thread = getattr(self, "_thread", None), None  # a factory that could not be made has none
        if thread is not None:
            thread.close(_close_all(list(self._stores.values())))

    def _made(self, setting: str, default: type[R], cls: type[Any] | None = None) -> R:
        if cls is None:
            topic = self.env.get(setting)
            cls = resolve_topic(topic) if topic else default
        if not (isinstance(cls, type) and issubclass(cls, default)):
            raise ConfigurationError(f"{cls!r} cannot record in an evsync store: derive it from {default.__qualname__}")
        return cls(self._store("main"))

    def _store(self, shard: str) -> SharedStore:
        if shard not in self._stores:
            if self._thread is None:
                self._thread = LoopThread(f"evsync-{self.service}")
            future = self._thread.submit(self._opened(shard))
            store = future.result()
            # What is not in the main log is relayed by nobody.
            sizes = SizeLimit(store.identity, lambda: self.max_payload) if shard == "main" else None
            self._stores[shard] = SharedStore(self._thread, store, sizes)
        return self._stores[shard]

    async def _opened(self, shard: str) -> Store:
        url = self.url if shard == "main" else _beside(self.url, shard)
        create = strtobool(self.env.get(self.CREATE_TABLE) or "yes")
        store = await open_store(url, service=self.service, shard=shard, create=create)
        if not store.capabilities.given_versions:
            await store.close()
            raise ConfigurationError(
                f"{type(store).__name__} numbers the events of a stream itself, which this library wants to do: use "
                "sqlite:///…, postgresql://… or memory://"
            )
        return store


async def _close_all(stores: list[SharedStore]) -> None:
    for store in stores:
        await store.close()


def _bytes(setting: str, text: str | None) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and int(text)):
        raise ConfigurationError(f"{setting}={text!r}: a number of bytes is needed, the max_payload of the NATS server")
    return int(text)


def _service_name(application: str) -> str:
    """`BankAccounts` → `bank_accounts`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", application).lower() or "application"


def _beside(url: str, shard: str) -> str:
    """The URL of a shard that is kept beside the main one."""
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        stem, dot, suffix = url.rpartition(".")
        return f"{stem}_{shard}{dot}{suffix}" if dot and "/" not in suffix else f"{url}_{shard}"
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    named = {"schema", "stream"} & options.keys()
    if not named:
        return url  # the store's own rule has the shard in it
    for name in named:
        options[name] = f"{options[name]}_{shard}"
    return urlunsplit(parts._replace(query=urlencode(options)))
