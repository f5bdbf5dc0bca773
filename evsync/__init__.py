"""evsync: event sourcing for Python microservices."""

from evsync.aggregates.snapshots import SnapshotPolicy
from evsync.archive.policy import BackupPolicy
from evsync.domain import Aggregate, NamedAggregate, event
from evsync.errors import Conflict, EvsyncError, Halted, NotFound, NotVisible, OutcomeUnknown, Parked
from evsync.projections import Contract, Event, MemoryModel, Projection, Reaction, SqlModel, Tables
from evsync.records import Position
from evsync.service import Service
from evsync.tags import metadata

__all__ = [
    "Aggregate",
    "BackupPolicy",
    "Conflict",
    "Contract",
    "Event",
    "EvsyncError",
    "Halted",
    "MemoryModel",
    "NamedAggregate",
    "NotFound",
    "NotVisible",
    "OutcomeUnknown",
    "Parked",
    "Position",
    "Projection",
    "Reaction",
    "Service",
    "SnapshotPolicy",
    "SqlModel",
    "Tables",
    "event",
    "metadata",
]
