"""Errors as they come out of another process, or are copied for each of several callers."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from evsync import errors

PLACE = {"follower": "customers", "log": "users.main", "position": 7, "event_type": "users.User.Renamed"}
MADE: list[errors.EvsyncError] = [
    errors.Conflict("ada", 1, 2),
    errors.SlotMoved("ada", 3, "b"),
    errors.AcrossShards({"ada": "a", "bob": "b"}),
    errors.Halted(**PLACE, stream="ada", version=2, reason="no"),  # type: ignore[arg-type]
    errors.Parked(**PLACE, stream="ada", version=2, reason=None),  # type: ignore[arg-type]
    errors.EventTooLarge("users.User.Renamed", "ada", 2, 1, 7),
    errors.BrokerRefused("STREAM.INFO.x", 404, 10059, "stream not found"),
    errors.ArchiveDamaged("file:///backups", "users.main/1", "it ends early"),
    errors.StreamHole("nothing there", stream="x", position=3),
]
OWN_CONSTRUCTOR = {type(e) for e in MADE}
OTHERS = [
    found("what happened")
    for name, found in vars(errors).items()
    if inspect.isclass(found)
    and issubclass(found, errors.EvsyncError)
    and found not in OWN_CONSTRUCTOR
    and not name.startswith("_")
]


@pytest.mark.parametrize("error", [*MADE, *OTHERS], ids=lambda e: type(e).__name__)
def test_an_error_stays_what_it_is_when_it_is_copied_or_sent(error: errors.EvsyncError) -> None:
    """Type, text, values and notes, whatever its constructor takes."""
    error.add_note("tried 10 times")
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(again) is type(error)
        assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


def test_a_reason_that_is_a_sentence_ends_with_one_full_stop() -> None:
    """Reasons are other errors' texts, of which some end with a full stop and some do not."""
    for kind in (errors.Halted, errors.Parked):
        texts = {str(kind(**PLACE, stream="ada", version=2, reason=said)) for said in ("no", "no.")}  # type: ignore[arg-type]
        assert len(texts) == 1
        assert ".." not in texts.pop()
