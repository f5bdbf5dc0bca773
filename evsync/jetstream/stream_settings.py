"""The JetStream stream of a log as it is described: its name, its settings and what protects the law, its state.

The law: at stream sequence n stands event n of the log, or nothing. Some settings of JetStream break it in silence
(messages that are acknowledged and not stored, sequences taken by markers, messages replaced), so a stream is created
with settings that forbid this, and refused when it has others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evsync.errors import StreamMisconfigured
from evsync.records import Ancestor, LogIdentity

LOG_KEY, INCARNATION_KEY, SLOTS_KEY = "evsync.log", "evsync.incarnation", "evsync.slots"
ANCESTRY_KEY = "evsync.ancestry"
"""Earlier incarnations of a restored log, oldest first, and the last position of each: `3f9a2b1c7d5e:42 …`."""
RESTORING_KEY = "evsync.restoring"
"""In the metadata of a stream that is to become a store, and is still being filled from a backup."""
WITHOUT_SLOTS_KEY = "evsync.without-slots"
"""In the metadata of a store's stream where no slot was open when it was made: that of a shard that joined later."""
STORE_KEY = "evsync.store"
"""In the metadata of a stream that is not a mirror of the log but the log itself (see evsync.jetstream.store.store)."""

REQUIRED: Mapping[str, Any] = {
    "retention": "limits",
    "storage": "file",
    "discard": "new",  # a full stream refuses, where it would else drop its oldest events
    "no_ack": False,
    "sealed": False,
    "deny_delete": True,
    "deny_purge": True,
    "allow_rollup_hdrs": False,
    "allow_direct": True,  # events are read back by direct gets
    "duplicate_window": 100_000_000,  # ns, the least there is: no message has an id that would need it
}
REFUSED = (
    "mirror",
    "sources",
    "subject_transform",
    "subject_delete_marker_ttl",
    "allow_msg_ttl",
    "allow_msg_schedules",
    "allow_msg_counter",
)
_REFUSED_IN_A_MIRROR = ("max_msgs_per_subject", "discard_new_per_subject")
NOTHING: tuple[Any, ...] = (None, False, 0, -1, "", {}, [])
"""How the server writes, or leaves out, a setting that is not made."""


@dataclass(frozen=True, slots=True)
class StreamState:
    """A stream as the server described it at one moment."""

    name: str
    created: str
    """When it was created, in the server's words: another text is another stream."""
    config: Mapping[str, Any]
    first: int
    """Sequence of the first message; `last` + 1 if there is none."""
    last: int
    """Sequence of the last message ever stored: 0 for none."""
    missing: int
    """How many messages, at the beginning or between `first` and `last`, the server itself says are gone."""
    problem: str
    """What the server says is wrong with its files, or ""."""

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> StreamState:
        """From the answer of STREAM.INFO or STREAM.CREATE."""
        state = info["state"]
        messages, last, deleted = int(state["messages"]), int(state["last_seq"]), int(state.get("num_deleted", 0))
        first = int(state["first_seq"]) if messages else last + 1
        # Only age takes messages away from the beginning: a full stream refuses, and purging is denied.
        lowest = first if info["config"].get("max_age") else int(info["config"].get("first_seq") or 1)
        lost = state.get("lost")
        return cls(
            name=str(info["config"]["name"]),
            created=str(info["created"]),
            config=info["config"],
            first=first,
            last=last,
            missing=max(last - first + 1 - messages, deleted) + first - lowest,
            problem=f"it lost data of its files: {lost}" if lost else "",
        )

    @property
    def metadata(self) -> Mapping[str, str]:
        """What was written to it beside its settings."""
        return self.config.get("metadata") or {}

    @property
    def identity(self) -> LogIdentity | None:
        """The log that the stream says it mirrors; None if it is not a stream of evsync."""
        metadata = self.metadata
        service, _, shard = str(metadata.get(LOG_KEY, "")).partition(".")
        slots = str(metadata.get(SLOTS_KEY, ""))
        if not service or not shard or not slots.isdigit():
            return None
        incarnation, ancestry = str(metadata.get(INCARNATION_KEY, "")), str(metadata.get(ANCESTRY_KEY, ""))
        return LogIdentity(service, shard, incarnation, int(slots), tuple(map(_ancestor, ancestry.split())))

    @property
    def is_restoring(self) -> bool:
        """Whether the stream is to become a store, and is not one yet."""
        return RESTORING_KEY in self.metadata

    @property
    def is_store(self) -> bool:
        """Whether the stream is the log's store, and not a mirror that a relay fills."""
        return STORE_KEY in self.metadata

    def same_as(self, other: StreamState | None) -> bool:
        """Whether it is the same stream, settings included, with nothing missing; its end may have moved."""
        return (
            other is not None
            and (self.created, self.config) == (other.created, other.config)
            and not self.missing
            and not self.problem
        )


def stream_name(identity: LogIdentity) -> str:
    """The name of a log's stream. It holds the incarnation, so that a relay of an older one publishes nothing."""
    return f"evsync_{identity.service}_{identity.shard}_{identity.incarnation}"


def name_beside(service: str, shard: str, kind: str) -> str:
    """The name of a stream that mirrors no log: that of its store (`log`), and that one's `snapshots` and `imports`."""
    return f"evsync_{service}_{shard}_{kind}"


def subjects(identity: LogIdentity) -> str:
    """The subjects that the stream captures: every event of the log."""
    return f"evsync.{identity.service}.{identity.shard}.>"


def stream_config(identity: LogIdentity, *, replicas: int = 1) -> dict[str, Any]:
    """The settings a stream is created with."""
    return {
        "name": stream_name(identity),
        "subjects": [subjects(identity)],
        "num_replicas": replicas,
        "metadata": metadata_of(identity),
        "description": f"events of {identity.name}; published by evsync's relay alone",
        **REQUIRED,
    }


def check_config(config: Mapping[str, Any], identity: LogIdentity) -> None:
    """Raise StreamMisconfigured, naming the setting, if the law does not hold in a stream with this configuration.

    Limits (max_bytes, max_age, …), replicas, placement and compression are the operator's to choose.
    """
    name = stream_name(identity)

    def refuse(setting: str, found: object, wanted: object) -> StreamMisconfigured:
        return StreamMisconfigured(
            f"stream {name} has {setting} = {found!r} where evsync needs {wanted!r}: otherwise a stream sequence is "
            f"not a log position. Set it (`nats stream edit {name}`), or make the stream anew: `evsync stream rebuild`",
            stream=name,
            setting=setting,
            found=found,
            wanted=wanted,
        )

    wanted = {"subjects": [subjects(identity)], **REQUIRED, **dict.fromkeys((*REFUSED, *_REFUSED_IN_A_MIRROR))}
    if (wrong := unmet(config, wanted)) is not None:
        raise refuse(*wrong)
    metadata = config.get("metadata") or {}
    for key, value in metadata_of(identity).items():
        if metadata.get(key) != value:
            raise refuse(f"metadata {key}", metadata.get(key), value)


def unmet(config: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, object, object] | None:
    """The first setting that a stream has otherwise than wanted (None: not made): its name, as found, as wanted."""
    for setting, value in wanted.items():
        found = config.get(setting)
        if not (found in NOTHING if value in NOTHING else found == value):
            return setting, found, value
    if (mode := config.get("persist_mode")) not in (None, "", "default"):  # it acknowledges what it has not stored
        return "persist_mode", mode, "default"
    return None


def metadata_of(identity: LogIdentity) -> dict[str, str]:
    """What a log's stream says in its metadata of the log."""
    found = {LOG_KEY: identity.name, INCARNATION_KEY: identity.incarnation, SLOTS_KEY: str(identity.slots)}
    if identity.ancestry:
        found[ANCESTRY_KEY] = " ".join(f"{a.incarnation}:{a.last}" for a in identity.ancestry)
    return found


def _ancestor(text: str) -> Ancestor:
    incarnation, _, last = text.rpartition(":")
    return Ancestor(incarnation, int(last) if last.isdigit() else 0)
