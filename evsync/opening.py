"""Event stores by URL, those on NATS included."""

from __future__ import annotations

from evsync.config import broker_files
from evsync.jetstream.store import JetStreamStore
from evsync.ports import Store
from evsync.stores import open_store as open_database

_ON_NATS = ("nats", "tls")


def is_on_nats(url: str) -> bool:
    """Whether the URL names a store that is a JetStream stream."""
    return url.partition("://")[0] in _ON_NATS


async def open_store(url: str, *, service: str, shard: str = "main", create: bool = True) -> Store:
    """The event store of a service's shard at a URL: `nats://host:4222/?stream=NAME&replicas=3`, or one of those that
    `evsync.stores.open_store` knows. Proof of identity for NATS comes from the environment, as for the broker."""
    if is_on_nats(url):
        return await JetStreamStore.open(url, service=service, shard=shard, create=create, files=broker_files())
    return await open_database(url, service=service, shard=shard, create=create)
