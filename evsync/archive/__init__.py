"""The archive: a log as a chain of immutable segments in several places, and the way back from it."""

from evsync.archive.policy import BackupPolicy, Keep, copies_for

__all__ = ["BackupPolicy", "Keep", "copies_for"]
