"""The library's stored events and evsync's are the same events."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from eventsourcing.persistence import DatetimeAsISO, DecimalAsStr, JSONTranscoder, StoredEvent, UUIDAsHex
from hypothesis import given
from hypothesis import strategies as st

from evsync import metadata
from evsync.codec.values import unpack
from evsync.errors import DecodingError
from evsync.interop.states import decode, encode, is_whole, type_of
from evsync.records import NewEvent, decode_meta, to_datetime
from evsync.records import StoredEvent as Record
from tests.interop.shipped import persistence as shipped

SOME_ID = UUID("277f849e-b499-4c66-ac08-7fc4078f3391")

TIME = datetime(2026, 1, 2, 3, 4, 5, 6, UTC)

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.uuids() | st.decimals() | st.datetimes()
    | st.datetimes(timezones=st.just(UTC) | st.just(timezone(timedelta(hours=2))))
)  # fmt: skip
keys = st.text(max_size=4) | st.sampled_from(
    ["_type_", "_data_", "timestamp", "originator_topic", "class_version", "state"]
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=8
)


def transcoder() -> JSONTranscoder:
    """The library's, as its Application makes it, with two transcodings of somebody's own."""
    made = JSONTranscoder()
    for transcoding in (UUIDAsHex(), DecimalAsStr(), DatetimeAsISO()):
        made.register(transcoding)
    made.register(shipped.CustomType1AsDict())
    made.register(shipped.CustomType2AsDict())
    return made


def saved(state: bytes, *, id: UUID | str | None = None, topic: str = "shop.domain:User.Renamed") -> StoredEvent:
    return StoredEvent(id or UUID(int=7), 3, topic, state)


def record(new: NewEvent, of: StoredEvent) -> Record:
    """The new event as a store gives it back."""
    return Record(
        1, str(of.originator_id), of.originator_version, 0, new.type, new.time_us, bytes(16), 0, "i", new.data, new.meta
    )


def carried(event: StoredEvent) -> Record:
    """The event in a store, after it was seen to come back as it is."""
    found = record(encode("shop", event), event)
    back = decode(found)
    assert (back, type(back.originator_id)) == (event, type(event.originator_id))
    return found


@given(st.binary() | st.dictionaries(keys, values).map(lambda v: transcoder().encode(v)))
def test_every_state_comes_back_byte_for_byte(state: bytes) -> None:
    """Whatever a mapper makes, JSON or not, the application gets the same again."""
    carried(saved(state))


def test_an_event_of_the_library_is_one_of_evsync() -> None:
    """Type, time and fields are those that a native service would have written; nothing else is in the data."""
    id, state = (
        SOME_ID,
        {"name": "Ada", "id": SOME_ID, "paid": Decimal("1.50"), "on": TIME, "tags": [{"a": UUID(int=1)}]},
    )
    first = {"timestamp": TIME, "originator_topic": "shop.domain:User", **state, "class_version": 2}
    found = carried(saved(transcoder().encode(first), id=id, topic="shop.domain:User.Registered"))
    assert found.type == "shop.User.Registered"
    assert to_datetime(found.time_us) == TIME
    assert unpack(found.data) == state
    assert decode_meta(found.meta)["schema"] == "2"
    assert not is_whole(found)


def test_what_has_a_transcoding_of_its_own_is_carried_plain() -> None:
    """Consumers see what the transcoding made, wherever it stands; the application gets its own type again."""
    custom = shipped.CustomType2(shipped.CustomType1(UUID(int=5)))
    state = transcoder().encode({"a": custom, "b": [1, {"c": custom}]})
    found = carried(saved(state))
    assert unpack(found.data) == {"a": UUID(int=5), "b": [1, {"c": UUID(int=5)}]}
    assert transcoder().decode(decode(found).state)["b"][1]["c"] == custom


def test_times_of_other_zones_and_of_none_are_kept() -> None:
    """A timestamp that is not in UTC stays in the data as it was; the event's time is that moment."""
    elsewhere = TIME.astimezone(timezone(timedelta(hours=5)))
    found = carried(saved(transcoder().encode({"timestamp": elsewhere})))
    assert to_datetime(found.time_us) == TIME
    assert unpack(found.data)["timestamp"].utcoffset() == timedelta(hours=5)
    assert unpack(carried(saved(transcoder().encode({"at": datetime(2026, 1, 2)}))).data) == {
        "at": "2026-01-02T00:00:00"
    }


@pytest.mark.parametrize(
    "state", [b"\x00\xff", b"", b"[1]", b'{"a": 1}', b'{"a":1,"a":2}', b'{"a":"\\ud800"}', b'{"a":1e5}']
)
def test_what_cannot_be_put_together_again_is_carried_whole(state: bytes) -> None:
    """Encrypted, compressed, or JSON of another form: one field with the bytes, and it is known that it is so."""
    found = carried(saved(state))
    assert unpack(found.data) == {"state": state}
    assert is_whole(found)


def test_json_in_ascii_is_read_too() -> None:
    """As the library wrote it in earlier versions."""
    state = json.dumps({"name": "Zoë"}, separators=(",", ":")).encode()
    assert unpack(carried(saved(state)).data) == {"name": "Zoë"}


@pytest.mark.parametrize("id", [SOME_ID, str(SOME_ID), "account-7"])
def test_ids_keep_their_type(id: Any) -> None:
    """Text that looks like a UUID stays text."""
    carried(saved(b"{}", id=id))


@pytest.mark.parametrize(
    ("topic", "type"),
    [
        ("shop.domain:User.Registered", "shop.User.Registered"),
        ("shop.domain:make.<locals>.User.Registered", "shop.User.Registered"),
        ("shop.domain:Registered", "shop.Event.Registered"),
        ("user-registered", "shop.Event.user-registered"),
        ("", "shop.Event.Unnamed"),
    ],
)
def test_types_follow_from_topics(topic: str, type: str) -> None:
    """The last two names of the class; no module path. Every topic has a type that the relay can publish."""
    assert type_of("shop", topic) == type


def test_tags_are_kept_beside_ours() -> None:
    """What metadata() says is in the event's metadata, as for a native service."""
    with metadata(actor="ada", correlation_id="c1"):
        tags = decode_meta(carried(saved(b"{}")).meta)
    assert (tags["actor"], tags["correlation_id"], tags["es.topic"]) == ("ada", "c1", "shop.domain:User.Renamed")


def test_an_event_of_a_native_service_is_refused() -> None:
    """It has no topic; the error says what to do."""
    with pytest.raises(DecodingError, match="evsync Service"):
        decode(record(NewEvent("shop.User.Renamed", 0, b"\x80", None), saved(b"{}")))
