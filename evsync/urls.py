"""What the URLs of a service's stores say."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from evsync.errors import ConfigurationError

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


def urls_by_shard(store: str | Mapping[str, str]) -> Mapping[str, str]:
    """The URLs that a service's store= names; one alone is that of shard "main"."""
    return {"main": store} if isinstance(store, str) else store


def first_url(store: str | Mapping[str, str]) -> str:
    """The URL of the store, or that of the first shard's."""
    return next(iter(urls_by_shard(store).values()))
