"""How far a service is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evsync.archive.schedule import BackupStatus
from evsync.jetstream.relay import RelayStatus
from evsync.projections.status import FollowerStatus


@dataclass(frozen=True, slots=True)
class OwnLogStatus:
    """One of a service's own logs at one moment."""

    incarnation: str
    head: int
    relay: RelayStatus | None
    """None where this process runs none."""


@dataclass(frozen=True, slots=True)
class Status:
    """A service at one moment."""

    service: str
    logs: Mapping[str, OwnLogStatus]
    """By name: one for each shard."""
    nats: str | None
    """Where the broker is, and why it is not reached if it is not; None without one."""
    followers: Sequence[FollowerStatus] = field(default_factory=tuple)
    backups: Mapping[str, BackupStatus] = field(default_factory=dict)
    """Of this process, by log; empty where it makes none."""
