"""Projections and reactions: what is made of events."""

from evsync.projections.contracts import Contract
from evsync.projections.database import ViewsDatabase
from evsync.projections.event import Event
from evsync.projections.memory_model import MemoryModel
from evsync.projections.projection import Projection
from evsync.projections.reaction import Reaction
from evsync.projections.reaction_runner import ReactionRunner
from evsync.projections.read_model import ReadModel
from evsync.projections.runner import ProjectionRunner
from evsync.projections.sql_model import SqlModel
from evsync.projections.status import FollowerStatus, LogStatus
from evsync.projections.tables import Tables

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
