"""The messages of a stream that is the store: the subject ends with the version, and the server gives the position."""

from __future__ import annotations

import pytest

from evsync.errors import DecodingError
from evsync.jetstream.messages import END_OF_HEADERS, FIRST_LINE, MessageFormat
from evsync.records import StoredEvent
from evsync.sharding.slots import slot_of
from evsync.testing.contracts.samples import HOSTILE

FORM = MessageFormat("users.main")


def stored(stream: str = "ada", version: int = 3) -> StoredEvent:
    """An event as its position is not known yet."""
    return StoredEvent(
        0,
        stream,
        version,
        slot_of(stream),
        "users.User.Renamed",
        1_700_000_000_000_000,
        bytes(16),
        0,
        "abc",
        b"x",
        None,
    )


def message(event: StoredEvent) -> tuple[str, bytes, bytes]:
    """As it is published."""
    subject, lines, body = FORM.encode_unplaced(event)
    return subject, FIRST_LINE + lines + END_OF_HEADERS, body


@pytest.mark.parametrize("stream", HOSTILE)
def test_the_position_is_the_sequence(stream: str) -> None:
    """Whatever the id: the event comes back with the sequence that the reader says."""
    event = stored(stream)
    assert FORM.decode(*message(event), 42) == event._replace(position=42)
    assert FORM.encode_unplaced(event._replace(position=7)) == FORM.encode_unplaced(event)


@pytest.mark.parametrize("stream", HOSTILE)
def test_the_filters_of_a_stream_meet_its_events_only(stream: str) -> None:
    """The filter of a stream is the subject with its type and version left open, that of a version with its type."""
    tokens = message(stored(stream))[0].split(".")
    tokens[4:6] = "*", "*"
    assert FORM.stream_filter(stream, slot_of(stream), 3) == ".".join(tokens)
    assert FORM.stream_filter(stream, slot_of(stream)) == ".".join([*tokens[:-1], "*"])


def test_a_message_that_contradicts_itself_is_refused() -> None:
    """Another version in the subject than in the headers, or a position beside it."""
    subject, headers, body = message(stored())
    with pytest.raises(DecodingError, match="version"):
        FORM.decode(subject[:-1] + "4", headers, body, 42)
    with pytest.raises(DecodingError, match="version"):
        FORM.decode(subject, headers.replace(b"abc 0 3", b"abc 9 3"), body, 42)
    for wrong in (subject + ".3", subject[:-1] + "03", subject[:-1]):
        with pytest.raises(DecodingError):
            FORM.decode(wrong, headers, body, 42)
