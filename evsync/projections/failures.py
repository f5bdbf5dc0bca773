"""Why a batch was not applied. Whatever the reason, nothing of it was."""

from __future__ import annotations

from evsync.records import StoredEvent


class Fenced(Exception):
    """Another worker has taken a group, or the database has lost what it had said was stored.

    Nothing was applied, and nothing that this worker holds is valid.
    """


class DatabaseAway(Exception):
    """The read model's database does not answer, is locked or is full. Nothing was applied; try again later."""


class GatheredFailed(Exception):
    """What a batch had gathered could not be written. Nothing was applied; event by event the culprit will show."""


class CannotApply(Exception):
    """One event could not be applied, for a reason that lies in it, its contract or its handler."""

    def __init__(self, event: StoredEvent, reason: str) -> None:
        super().__init__(reason)
        self.event, self.reason = event, reason
