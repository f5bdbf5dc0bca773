"""The stream that is a service's event store: where it is, how it is made, and what must not be changed about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from evsync.errors import BrokerRefused, ConfigurationError, StoreUnavailable, WrongStore
from evsync.jetstream import stream_settings, streams
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.refusals import SUBJECTS_OVERLAP
from evsync.jetstream.stream_settings import StreamState, subjects
from evsync.records import LogIdentity, new_incarnation
from evsync.sharding.slots import SLOTS

FORMAT = "1"
"""How events are laid out in the stream. A stream of another format was made by a newer evsync."""

MAX_COMMIT_EVENTS = 1_000
"""What a server takes as one atomic batch, unless its configuration says otherwise."""

_OPTIONS = ("stream", "replicas")
_FORM = "nats://host:4222,nats://other:4222/?stream=NAME&replicas=3"

REQUIRED: Mapping[str, Any] = {
    **stream_settings.REQUIRED,
    "max_msgs_per_subject": 1,  # the subject holds the version, …
    "discard_new_per_subject": True,  # … so the stream itself refuses the same event a second time
    "allow_atomic": True,
}


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """The parts of a `nats://` store's URL."""

    servers: str
    """What NatsSettings takes: URLs separated by commas, perhaps with a login."""
    stream: str | None
    """The stream's name, if the URL states one."""
    replicas: int
    """How many servers hold a stream that is made; one that exists keeps what it has."""

    @classmethod
    def parse(cls, url: str) -> StoreUrl:
        """Raises ConfigurationError, without what stands before an '@', for what is not of the form."""
        servers, _, query = url.partition("?")
        options = dict(parse_qsl(query, keep_blank_values=True))
        name, replicas = options.get("stream"), options.get("replicas", "1")
        if (unknown := set(options) - set(_OPTIONS)) or replicas not in ("1", "3", "5"):
            what = f"option {min(unknown)!r}" if unknown else f"replicas={replicas!r}"
            raise ConfigurationError(f"{what} in the URL of a NATS event store: it looks like {_FORM}")
        if name is not None and (
            not name or not name.isascii() or not name.replace("_", "").replace("-", "").isalnum()
        ):
            raise ConfigurationError(f"stream={name!r} cannot be a stream's name: use letters, digits, '_' and '-'")
        return cls(servers.rstrip("/"), name, int(replicas))


def default_name(service: str, shard: str) -> str:
    """The name of a log's stream where the URL states none."""
    return stream_settings.name_beside(service, shard, "log")


def store_config(name: str, identity: LogIdentity, replicas: int, *, owns_slots: bool = True) -> dict[str, Any]:
    """The settings a store's stream is created with."""
    metadata = {**stream_settings.metadata_of(identity), stream_settings.STORE_KEY: FORMAT}
    if not owns_slots:
        metadata[stream_settings.WITHOUT_SLOTS_KEY] = "yes"
    return {
        "name": name,
        "subjects": [subjects(identity)],
        "num_replicas": replicas,
        "metadata": metadata,
        "description": f"the event store of {identity.name}: the only copy of its events",
        **REQUIRED,
    }


async def open_stream(
    conn: Connection,
    service: str,
    shard: str,
    url: StoreUrl,
    *,
    create: bool,
    owns_slots: bool = True,
    slots: int = SLOTS,
) -> StreamState:
    """The stream of a log's store, made if there is none and `create` is set, its settings checked.

    Raises StoreUnavailable when there is none; WrongStore when it is not this log's, has other settings than evsync
    needs, or another stream captures its subjects; and what `Connection.api` raises.
    """
    name = url.stream or default_name(service, shard)
    state = await streams.info(conn, name)
    if state is None:
        if not create:
            raise StoreUnavailable(f"there is no stream {name} at {conn.settings.shown}: no store was made there yet")
        identity = LogIdentity(service, shard, new_incarnation(), slots)
        state = await _create(conn, store_config(name, identity, url.replicas, owns_slots=owns_slots), identity)
    _check(state, service, shard)
    return state


async def _create(conn: Connection, config: Mapping[str, Any], identity: LogIdentity) -> StreamState:
    try:
        return await streams.create(conn, config)
    except BrokerRefused as e:
        if e.err_code != SUBJECTS_OVERLAP:
            raise
        # Another process, a moment ago; or the mirror of a log of that name, which some relay fills.
        other = await streams.occupant(conn, identity)
        raise WrongStore(
            f"the subjects {subjects(identity)} belong to stream {other.name if other else '(just gone)'}, "
            f"so that {config['name']} cannot be the store of {identity.name}. If a relay fills it, the service has "
            "its store elsewhere; if the store has that name, say so: ?stream=NAME. Nothing was touched."
        ) from e


def _check(state: StreamState, service: str, shard: str) -> None:
    """Raise WrongStore if the laws of a store do not hold in this stream."""
    identity = state.identity
    if identity is None or not state.is_store:
        raise WrongStore(f"stream {state.name} is not an event store of evsync. Nothing was touched.")
    if state.is_restoring:
        raise WrongStore(
            f"stream {state.name} is being filled from a backup, or that was broken off: it is no event store yet. "
            "Nothing was touched. Let `evsync restore` come to its end, or begin it again."
        )
    if (form := state.metadata[stream_settings.STORE_KEY]) != FORMAT:
        raise WrongStore(
            f"stream {state.name} is an event store of format {form}, made by a newer evsync; this one knows "
            f"format {FORMAT}. Nothing was touched."
        )
    if (identity.service, identity.shard) != (service, shard):
        raise WrongStore(
            f"stream {state.name} is the event store of {identity.name}, not of {service}.{shard}. Nothing was touched."
        )
    refused = dict.fromkeys((*stream_settings.REFUSED, "max_age"))
    wrong = stream_settings.unmet(state.config, {"subjects": [subjects(identity)], **REQUIRED, **refused})
    if wrong is not None:
        setting, found, value = wrong
        raise WrongStore(
            f"stream {state.name} has {setting} = {found!r} where its store needs {value!r}: otherwise the laws of a "
            f"store do not hold. Set it: `nats stream edit {state.name}`. Nothing was touched."
        )
