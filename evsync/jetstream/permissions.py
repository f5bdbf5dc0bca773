"""What a service must be permitted to do at a NATS server, and nothing beyond it.

Each function names the subjects that one part of evsync publishes to; tests/integration/test_permissions.py runs those
parts against a server that enforces them, and once more without each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evsync.jetstream.stream_settings import name_beside

ANY = "*"
"""In place of a stream's name: a stream of any name."""

_KEEPING = ("STREAM.INFO", "STREAM.CREATE", "STREAM.MSG.GET")


@dataclass(frozen=True, slots=True)
class Grant:
    """What one user may do. What is not listed is refused."""

    user: str
    publish: Sequence[str]
    subscribe: Sequence[str]
    notes: Sequence[str] = ()
    """For whoever reads the configuration."""


def inbox(service: str) -> str:
    """Where a service gets its answers: nobody else may listen there."""
    return f"_INBOX_{service}.>"


def relaying(service: str, shard: str, stream: str, older: Iterable[str] = ()) -> list[str]:
    """What a relay publishes to. `older` are streams of earlier incarnations of its log: they may be in the way."""
    return [
        f"evsync.{service}.{shard}.>",
        *_api(stream, *_KEEPING, "DIRECT.GET"),
        *(subject for each in older for subject in _api(each, "STREAM.INFO")),
        "$JS.API.STREAM.NAMES",
    ]


def storing(service: str, shard: str, stream: str, *, snapshots: bool, imports: bool = False) -> list[str]:
    """What an event store in a stream publishes to; with `imports` if slots may be moved to it."""
    found = relaying(service, shard, stream)
    if snapshots:
        kept = name_beside(service, shard, "snapshots")
        found += [f"evsync-snapshots.{service}.{shard}.>", *_api(kept, *_KEEPING)]
    if imports:
        copies = name_beside(service, shard, "imports")
        found += [f"evsync-imports.{service}.{shard}.>", *_api(copies, *_KEEPING, "DIRECT.GET")]
    return found


def reading(stream: str) -> list[str]:
    """What a reader of another service's log publishes to."""
    consumers = ("CONSUMER.CREATE", "CONSUMER.INFO", "CONSUMER.DELETE", "CONSUMER.MSG.NEXT")
    return [
        "$JS.API.STREAM.LIST",
        "$JS.API.STREAM.NAMES",
        *_api(stream, "STREAM.INFO"),
        *(f"{subject}.*" for subject in _api(stream, *consumers)),
    ]


def configuration(grants: Iterable[Grant]) -> str:
    """The grants as a part of nats-server's configuration. Passwords come from the server's environment."""
    lines = ["authorization {", "  users: ["]
    for grant in grants:
        lines += [f"    # {note}" for note in grant.notes]
        lines += [
            "    {",
            f'      user: "{grant.user}", password: ${password_variable(grant.user)}',
            "      permissions: {",
            *_list("publish", grant.publish),
            *_list("subscribe", grant.subscribe),
            "      }",
            "    }",
        ]
    return "\n".join([*lines, "  ]", "}"])


def password_variable(user: str) -> str:
    """The environment variable of the server that holds the user's password."""
    return f"NATS_PASSWORD_{user.upper().replace('-', '_')}"


def _api(stream: str, *names: str) -> list[str]:
    return [f"$JS.API.{name}.{stream}" for name in names]


def _list(name: str, subjects: Sequence[str]) -> list[str]:
    if not subjects:
        return [f'        {name}: {{ deny: [">"] }}']  # an empty list would permit everything
    return [f"        {name}: [", *(f'          "{subject}"' for subject in subjects), "        ]"]
