"""Where a service runs: from `open()`, else the constructor, else the environment."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict, cast

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from evsync.errors import ConfigurationError
from evsync.ports import Store
from evsync.records import check_name


class OpenService(Protocol):
    """A Service of this process, as others see it: its stores, by shard, while it is open."""

    name: str

    @property
    def stores(self) -> Mapping[str, Store]: ...


class Deployment(TypedDict, total=False):
    """Where a service runs.

    Each setting comes from `open()`, else the constructor, else EVSYNC_<SERVICE>_<SETTING> (a '-' in the service's name
    becomes '_'); `nats` lastly from EVSYNC_NATS. None is as good as absent. Read when the service is opened.
    """

    store: str | Mapping[str, str]
    """URL of the event store: sqlite:///users.db, postgresql://…/db?schema=users, memory://. Or one for each shard, by
    name: {"a": "sqlite:///a.db", "b": "sqlite:///b.db"}, in the environment as JSON. Required."""
    views: str
    """URL of the read models' database: sqlite:///views.db, sqlite://, postgresql://…/db?schema=views. Absent: beside
    the store, in `<store>_views.db` or schema `<schema>_views`."""
    nats: str
    """URL of the broker. Absent: none; projections follow the logs of services in this process."""
    sources: Mapping[str, OpenService | str | Mapping[str, str]]
    """Where other services' logs are read from when not from NATS: a Service of this process, or its store's URL, or
    the URLs of its stores by shard."""
    archives: Mapping[str, Sequence[str]]
    """Where other services' logs are archived: whoever is far behind reads there first, then live."""
    run: Literal["all", "none"] | Sequence[str]
    """Which of this service's relay ('relay'), projections and reactions (by their names) this process runs."""


_FORMS: Mapping[str, tuple[type, str]] = {
    "views": (str, "a URL as text"),
    "nats": (str, "a URL as text"),
    "sources": (Mapping, "a mapping of services' names to a Service or a URL"),
    "archives": (Mapping, "a mapping of services' names to lists of URLs"),
    "run": (Collection, "'all', 'none' or a list of names"),
}
"""What a type checker would have said; `store` has more forms, and is looked at where it is opened."""


class _Environment(BaseSettings):
    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore")

    store: str | None = None
    views: str | None = None
    nats: str | None = None
    sources: dict[str, str | dict[str, str]] | None = None
    archives: dict[str, list[str]] | None = None
    run: str | None = None


class _Broker(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="EVSYNC_", env_ignore_empty=True, extra="ignore")

    nats: str | None = None


class _BrokerFiles(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="EVSYNC_NATS_", env_ignore_empty=True, extra="ignore")

    credentials: Path | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


def broker_files() -> dict[str, Path]:
    """What the connection needs beside a URL, from EVSYNC_NATS_CREDENTIALS, _CA, _CERTIFICATE, _KEY."""
    return _BrokerFiles().model_dump(exclude_none=True)


def broker_url() -> str | None:
    """The broker of all services, from EVSYNC_NATS."""
    return _Broker().nats


def check_settings(service: str, given: Iterable[str], hint: str = "") -> None:
    """Raises ConfigurationError for a setting that there is not."""
    for setting in given:
        if setting not in Deployment.__annotations__:
            raise ConfigurationError(
                f"service {service!r} has no setting {setting!r}; there are "
                f"{', '.join(Deployment.__annotations__)}{hint}"
            )


def resolve(service: str, given: Deployment, overrides: Deployment) -> Deployment:
    """The settings of one opening. Raises ConfigurationError for a setting nobody knows, or with the wrong form."""
    check_settings(service, overrides)
    prefix = f"EVSYNC_{service.upper().replace('-', '_')}_"
    settings = {"run": "all", **_from_environment(service, prefix)}
    for nearer in (given, overrides):
        settings.update((name, value) for name, value in nearer.items() if value is not None)
    for name, (form, words) in _FORMS.items():
        if settings.get(name) is not None and not isinstance(settings[name], form):
            raise ConfigurationError(f"service {service!r}: {name}={settings[name]!r}, where {words} is needed")
    if not settings.get("store"):
        raise ConfigurationError(
            f"service {service!r} has no event store: give open(store='sqlite:///{service}.db'), or set {prefix}STORE"
        )
    settings["store"] = _stores(f"service {service!r}: store", settings["store"])
    for source, given_for_it in (settings.get("sources") or {}).items():
        if isinstance(given_for_it, Mapping):
            _stores(f"service {service!r}: source {source}", given_for_it)
    return cast("Deployment", settings)


def _from_environment(service: str, prefix: str) -> dict[str, Any]:
    try:
        environment = _Environment(_env_prefix=prefix)  # type: ignore[call-arg]  # an argument of the base class
        found = {"nats": broker_url(), **environment.model_dump(exclude_none=True)}
    except ValueError as e:
        # Neither the error nor its cause may tell the value: it may hold a password.
        wrong = e.errors(include_input=False, include_url=False) if isinstance(e, ValidationError) else ()
        what = "; ".join(f"{'.'.join(map(str, w['loc']))}: {w['msg']}" for w in wrong) or str(e)
        raise ConfigurationError(
            f"the environment of service {service!r} ({prefix}…) cannot be read: {what}. Lists and mappings are JSON "
            'there, as in {"users": "sqlite:///users.db"}'
        ) from None
    if found.get("run") not in (None, "all", "none"):
        found["run"] = [part.strip() for part in found["run"].split(",") if part.strip()]
    return found


def _stores(what: str, given: Any) -> Any:
    """One URL, or URLs by shard, of what was given. What else it may be, is looked at where it is opened."""
    if isinstance(given, str) and given.lstrip().startswith("{"):
        try:
            given = json.loads(given)
        except ValueError as e:
            raise ConfigurationError(f"{what} begins with a brace and is not JSON: {e}") from None
    if not isinstance(given, (str, Mapping)):
        raise ConfigurationError(f"{what}={given!r}, where a URL is needed, or a URL for each shard")
    if isinstance(given, str):
        return given
    if not given:
        raise ConfigurationError(f"{what} has no shard: give a URL for each")
    for shard, url in given.items():
        check_name("shard", shard)
        if not isinstance(url, str):
            raise ConfigurationError(f"{what} has {url!r} for shard {shard!r}, where a URL is needed")
        # Two URLs of memory, or of a broker, can be the same text and mean two stores.
        several = url == "memory://" or (url.partition("://")[0] in ("nats", "tls") and "stream=" not in url)
        if not several and (alike := [s for s, other in given.items() if s != shard and url == other]):
            raise ConfigurationError(f"{what}: shards {shard!r} and {alike[0]!r} have the same URL; each needs its own")
    return dict(given)
