"""What JetStream says when it does not do what it was asked: the one place that knows its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from evsync.errors import BrokerRefused

# Numbers of JetStream's own (`err_code`).
NO_MESSAGE = 10037
NAME_IN_USE = 10058
STREAM_NOT_FOUND = 10059
SUBJECTS_OVERLAP = 10065
_WRONG_LAST_SEQUENCE = 10071
_ANOTHER_IN_FLIGHT = 10164
_LIMITS, _OF_THE_SUBJECT = 10077, "per subject"
"""A limit of the stream, which the words name: one of a subject says that something is there already."""
_NO_ROOM = (10047, 10002, 10023)
"""The server's storage, the account's limits, the server's memory and files."""
_BATCH_TROUBLE = (10176, 10210)
"""A batch whose messages did not all arrive (a leader changed), and too many batches at a time."""

# Numbers that mean what they mean in HTTP (`code`, or the status of a message).
FORBIDDEN = 403
TOO_LARGE = 413
UNAVAILABLE = 503
_PASSING_CODES = (408, 429)
"""Timeout, too many requests."""


class Refused(NamedTuple):
    """The server answered that it did not do what was asked, such as storing a message."""

    code: int
    err_code: int
    """JetStream's own number; 0 if there is none."""
    text: str

    @classmethod
    def of(cls, error: Mapping[str, Any]) -> Self:
        """From the error in an answer of JetStream."""
        return cls(int(error.get("code", 0)), int(error.get("err_code", 0)), str(error.get("description", "")))

    @property
    def is_conflict(self) -> bool:
        """Whether the stream, or the aggregate's stream in it, is not where the sender believed it to be."""
        return self.is_final or self.err_code == _ANOTHER_IN_FLIGHT or self._is_of_subject

    @property
    def is_final(self) -> bool:
        """Whether something that was expected is not so, as the server has looked up; else it may only be in doubt."""
        return self.err_code == _WRONG_LAST_SEQUENCE

    @property
    def is_full(self) -> bool:
        """Whether there was no room."""
        return self.err_code in _NO_ROOM or (self.err_code == _LIMITS and not self._is_of_subject)

    @property
    def passes(self) -> bool:
        """Whether sending it again may help."""
        return self.code >= 500 or self.code in _PASSING_CODES or self.err_code in _BATCH_TROUBLE

    def error(self, asked: str) -> BrokerRefused:
        """As an error to raise; `asked` names what was refused."""
        return BrokerRefused(asked, *self)

    @property
    def _is_of_subject(self) -> bool:
        return self.err_code == _LIMITS and _OF_THE_SUBJECT in self.text
