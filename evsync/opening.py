"""Event stores by URL, those on NATS included, and where read models are that nobody gave a place."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from evsync.config import broker_files
from evsync.errors import ConfigurationError
from evsync.jetstream.store.restore import JetStreamRestore
from evsync.jetstream.store.store import JetStreamStore
from evsync.ports import Store, StoreRestore
from evsync.sharding.slots import SLOTS
from evsync.stores import open_store as open_database
from evsync.stores import restore_store as restore_database

_ON_NATS = ("nats", "tls")


def is_on_nats(url: str) -> bool:
    """Whether the URL names a store that is a JetStream stream."""
    return url.partition("://")[0] in _ON_NATS


def shards_on_nats(store: str | Mapping[str, str]) -> Mapping[str, str]:
    """The URLs, by shard, of the stores that are JetStream streams."""
    return {shard: url for shard, url in urls_by_shard(store).items() if is_on_nats(url)}


def broker_of(store: str | Mapping[str, str]) -> str | None:
    """The broker that a service's stores are on, where no other is named: other services' logs are there too."""
    return next((url.partition("?")[0].rstrip("/") for url in shards_on_nats(store).values()), None)


async def open_store(
    url: str,
    *,
    service: str,
    shard: str = "main",
    create: bool = True,
    owns_slots: bool = True,
    slots: int = SLOTS,
) -> Store:
    """The event store of a service's shard at a URL: `nats://host:4222/?stream=NAME&replicas=3`, or one of those that
    `evsync.stores.open_store` knows. Proof of identity for NATS comes from the environment, as for the broker.

    Of a store that is made: `owns_slots`, whether all slots are open in it, as in the first shard of a service, or
    none; `slots`, how many there are. An existing one keeps what it was made with.
    """
    if is_on_nats(url):
        return await JetStreamStore.open(
            url, service=service, shard=shard, create=create, owns_slots=owns_slots, slots=slots, files=broker_files()
        )
    return await open_database(url, service=service, shard=shard, create=create, owns_slots=owns_slots, slots=slots)


def views_beside(store: str, service: str) -> str:
    """The read models' database where none is given: in memory, in a file or in a schema beside the store."""
    scheme = store.partition(":")[0]
    if scheme == "memory":
        return "sqlite://"
    if scheme == "sqlite":
        return f"{store.removesuffix('.db')}_views.db"
    if scheme in ("postgresql", "postgres"):
        parts = urlsplit(store)
        options = dict(parse_qsl(parts.query))
        options["schema"] = f"{options.get('schema', service)}_views"
        return urlunsplit(parts._replace(query=urlencode(options)))
    raise ConfigurationError(f"a service that stores in {scheme} needs views=, the URL of its read models")


async def restore_store(url: str, *, service: str, shard: str = "main", slots: int) -> StoreRestore:
    """A new store at a URL, to be filled from a backup: of any kind that can be opened, but memory.

    Raises ConfigurationError where there is a store already; StoreUnavailable.
    """
    if is_on_nats(url):
        return await JetStreamRestore.begin(url, service=service, shard=shard, slots=slots, files=broker_files())
    return await restore_database(url, service=service, shard=shard, slots=slots)


def urls_by_shard(store: str | Mapping[str, str]) -> Mapping[str, str]:
    """The URLs that a service's store= names; one alone is that of shard "main"."""
    return {"main": store} if isinstance(store, str) else store


def first_url(store: str | Mapping[str, str]) -> str:
    """The URL of the store, or that of the first shard's."""
    return next(iter(urls_by_shard(store).values()))
