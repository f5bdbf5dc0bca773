"""Projections and reactions: what is made of events."""

from evsync.projections.contracts import Contract
from evsync.projections.event import Event
from evsync.projections.models.database import ViewsDatabase
from evsync.projections.models.memory_model import MemoryModel
from evsync.projections.models.read_model import ReadModel
from evsync.projections.models.sql_model import SqlModel
from evsync.projections.models.tables import Tables
from evsync.projections.projection import Projection
from evsync.projections.reaction import Reaction
from evsync.projections.running.reaction_runner import ReactionRunner
from evsync.projections.running.runner import ProjectionRunner
from evsync.projections.status import FollowerStatus, LogStatus

__all__ = [
    "Contract",
    "Event",
    "FollowerStatus",
    "LogStatus",
    "MemoryModel",
    "Projection",
    "ProjectionRunner",
    "Reaction",
    "ReactionRunner",
    "ReadModel",
    "SqlModel",
    "Tables",
    "ViewsDatabase",
]
