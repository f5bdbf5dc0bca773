"""Which NATS permissions services need, by what they are and where they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from evsync.config import Deployment
from evsync.definition import parts_to_run, services_read_by
from evsync.errors import ConfigurationError, StoreUnavailable
from evsync.jetstream import permissions
from evsync.jetstream.permissions import ANY, Grant
from evsync.jetstream.store.stream import StoreUrl, default_name
from evsync.jetstream.stream_settings import stream_name
from evsync.opening import open_store
from evsync.records import LogIdentity
from evsync.service import Service
from evsync.urls import is_on_nats, urls_by_shard

_BEFORE_THERE_IS_A_STORE = (
    "{} has no event store yet, and its stream's name is not known before: print this again then, to confine it"
)
_UNKNOWN_SOURCE = "the streams of {} are not known here: name that service too, to confine what may be read"


async def grants_of(services: Sequence[Service], *, any_stream: bool = False) -> list[Grant]:
    """The least permissions of each service. Streams are named exactly where that is known, unless `any_stream`.

    Raises ConfigurationError for settings that cannot be, StoreError for a store that cannot be looked at.
    """
    names = [service.name for service in services]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigurationError(f"service {twice!r} is given twice: a service has one user")
    settings = {service.name: service.settings() for service in services}
    logs = {name: await _logs(name, found["store"], any_stream) for name, found in settings.items()}
    return [_grant(service, settings[service.name], logs, any_stream) for service in services]


class _Log:
    """A shard's log, and the stream that it is in."""

    def __init__(self, shard: str, *, is_store: bool, stream: str, identity: LogIdentity | None = None) -> None:
        self.shard, self.is_store, self.stream = shard, is_store, stream
        self.older: list[str] = []
        """The streams that it was in before it was restored."""
        if identity is not None:
            self.older = [stream_name(replace(identity, incarnation=a.incarnation)) for a in identity.ancestry]


async def _logs(service: str, store: str | Mapping[str, str], any_stream: bool) -> list[_Log]:
    return [await _log(service, shard, url, any_stream) for shard, url in urls_by_shard(store).items()]


async def _log(service: str, shard: str, url: str, any_stream: bool) -> _Log:
    if is_on_nats(url):
        name = StoreUrl.parse(url).stream or default_name(service, shard)
        return _Log(shard, is_store=True, stream=ANY if any_stream else name)
    if any_stream:
        return _Log(shard, is_store=False, stream=ANY)
    try:
        found = await open_store(url, service=service, shard=shard, create=False)
    except StoreUnavailable:
        return _Log(shard, is_store=False, stream=ANY)
    await found.close()
    return _Log(shard, is_store=False, stream=stream_name(found.identity), identity=found.identity)


def _grant(service: Service, settings: Deployment, logs: Mapping[str, Sequence[_Log]], any_stream: bool) -> Grant:
    publish: list[str] = []
    notes: list[str] = []
    running = parts_to_run(service, settings)
    for log in logs[service.name]:
        if log.is_store:
            snapshots, several = service.snapshots is not None, len(logs[service.name]) > 1
            publish += permissions.storing(service.name, log.shard, log.stream, snapshots=snapshots, imports=several)
        elif "relay" in running:
            publish += permissions.relaying(service.name, log.shard, log.stream, log.older)
            if log.stream == ANY and not any_stream:
                notes.append(_BEFORE_THERE_IS_A_STORE.format(f"{service.name} ({log.shard})"))
    for source in services_read_by(service):
        if source == service.name or source in settings.get("sources", {}):
            continue  # not read from NATS
        found = logs.get(source)
        for stream in [ANY] if found is None else [log.stream for log in found]:
            publish += permissions.reading(stream)
        if found is None and not any_stream:
            notes.append(_UNKNOWN_SOURCE.format(source))
        elif found is not None and not any_stream and ANY in [log.stream for log in found]:
            notes.append(_BEFORE_THERE_IS_A_STORE.format(source))
    return Grant(service.name, list(dict.fromkeys(publish)), [permissions.inbox(service.name)], notes)
