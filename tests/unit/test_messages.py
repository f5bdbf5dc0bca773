"""The message format: what goes in comes out, and nothing else is accepted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from evsync.errors import DecodingError, EncodingError
from evsync.jetstream.client.frames import parse_headers
from evsync.jetstream.messages import (
    END_OF_HEADERS,
    FIRST_LINE,
    MAX_SUBJECT_BYTES,
    RELAY_LINES_BYTES,
    MessageFormat,
    escape,
    unescape,
)
from evsync.records import MAX_STREAM_ID_BYTES, StoredEvent, encode_meta
from evsync.sharding.slots import slot_of

WIRE_FORMAT = Path(__file__).parents[2] / "docs" / "wire-format.md"
FORM = MessageFormat("users.main")
EVENT = StoredEvent(
    position=42,
    stream="ada",
    version=7,
    slot=17,
    type="users.User.Renamed",
    time_us=1_767_323_045_000_123,
    id=bytes(range(16)),
    remaining=0,
    incarnation="3f9a2b1c7d5e",
    data=b"\x81\xa4name\xa3Ada",
    meta=None,
)
HOSTILE = [
    "",
    "%",
    "%25",
    "%2E",
    ".",
    "..",
    "*",
    ">",
    "a.b.*.>",
    " ",
    "a b",
    "\t",
    "\r\n",
    "x\r\nNats-Rollup: all\r\n\r\n",
    "\0",
    "\x7f",
    "\x80",
    "~",
    "ä",
    "日本語",
    "🦆",
    "\u2028",
    "'\"`\\",
    "{c42}.order7",
    "$JS.API.>",
    "x" * MAX_STREAM_ID_BYTES,
    "." * MAX_STREAM_ID_BYTES,
    "é" * (MAX_STREAM_ID_BYTES // 2),
]

texts = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.integers(0, 10**18)
tags = st.dictionaries(
    st.one_of(st.sampled_from(["correlation_id", "causation_id", "traceparent", "actor"]), st.text()),
    st.one_of(st.text(), st.sampled_from(['","correlation_id":"forged"', '{"correlation_id":"forged"}'])),
)
events = st.builds(
    StoredEvent,
    position=numbers,
    stream=st.one_of(st.sampled_from(HOSTILE), texts.filter(lambda t: len(t.encode()) <= MAX_STREAM_ID_BYTES)),
    version=numbers,
    slot=st.integers(0, 65_535),
    type=st.tuples(texts.filter(bool), texts.filter(bool))
    .filter(lambda t: "." not in t[0])
    .map(lambda t: f"users.{t[0][:40]}.{t[1][:40]}"),
    time_us=st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999),  # years 1 to 9999
    id=st.binary(min_size=16, max_size=16),
    remaining=st.integers(0, 65_535),
    incarnation=st.from_regex(r"\A[0-9a-f]{12}\Z"),
    data=st.binary(max_size=100),
    meta=tags.map(encode_meta),
)


def wire(event: StoredEvent, more: bytes = b"Nats-Expected-Last-Sequence: 41\r\n") -> tuple[str, bytes, bytes]:
    """A message as a server delivers it."""
    subject, lines, body = FORM.encode(event)
    return subject, FIRST_LINE + lines + more + END_OF_HEADERS, body


@given(events)
@example(EVENT)
def test_what_is_encoded_is_decoded_again(event: StoredEvent) -> None:
    """decode(encode(e)) == e for every event that a log can hold, time and tags exactly."""
    assert FORM.decode(*wire(event)) == event
    assert FORM.decode(*wire(event, more=b"")) == event


@given(events)
@example(EVENT._replace(meta=encode_meta({"correlation_id": "a\r\nNats-Rollup: all", "actor": "\r\n\r\n"})))
def test_nothing_in_an_event_can_leave_its_place(event: StoredEvent) -> None:
    """Seven plain tokens and the known header names, whatever ids, types and tags say; printable ASCII only."""
    subject, lines, body = FORM.encode(event)
    assert re.fullmatch(r"evsync\.users\.main\.\d+(\.[A-Za-z0-9_%-]+){3}", subject)
    *rows, end = lines.split(b"\r\n")
    assert end == b""
    names = [row.split(b": ")[0].decode() for row in rows]
    fixed = ["ce-specversion", "ce-id", "ce-time", "ce-source", "ce-type", "ce-datacontenttype", "evsync"]
    assert names[:7] == fixed
    optional = ["evsync-meta", "ce-correlationid", "ce-causationid", "ce-traceparent"]
    assert names[7:] == [name for name in optional if name in names]
    assert all(re.fullmatch(rb"[a-z-]+: [ -~]+", row) for row in rows)
    assert body is event.data


@given(events)
def test_the_size_that_is_checked_at_save_is_enough(event: StoredEvent) -> None:
    """`size_of` is never less than what the relay sends, nor much more; the position does not matter."""
    _, headers, body = wire(event, more=b"")
    known = FORM.size_of(event)
    unknown = FORM.size_of(event._replace(position=0, version=0, remaining=0))
    assert known == unknown
    assert len(headers) + len(body) + RELAY_LINES_BYTES <= known
    assert known <= len(headers) + len(body) + RELAY_LINES_BYTES + 60


@given(st.text())
def test_every_text_has_one_token(text: str) -> None:
    """Escaping is reversible, and yields a token that no subject syntax applies to; without UTF-8 it is refused."""
    try:
        text.encode()
    except UnicodeEncodeError:
        with pytest.raises(EncodingError, match="no UTF-8"):
            escape(text)
        return
    assert re.fullmatch(r"[A-Za-z0-9_%-]+", escape(text))
    assert unescape(escape(text)) == text


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_id_travels_unchanged(text: str) -> None:
    """Dots, wildcards, spaces, quotes, control characters, 512 bytes: all are ids."""
    event = EVENT._replace(stream=text, slot=slot_of(text))
    subject, headers, body = wire(event)
    assert len(subject) < MAX_SUBJECT_BYTES
    assert FORM.decode(subject, headers, body) == event


@pytest.mark.parametrize("token", ["%41", "a%2e", "%2", "%zz", "%C0%A0", "%ED%A0%80", "%%", "%25%", "a%"])
def test_a_token_that_is_not_in_the_one_form_is_refused(token: str) -> None:
    """Two subjects can never mean the same stream."""
    subject, headers, body = wire(EVENT)
    with pytest.raises(DecodingError):
        FORM.decode(subject.replace(".ada", f".{token}"), headers, body)


@given(st.text(), st.binary(), st.binary())
def test_garbage_is_refused_in_one_way(subject: str, headers: bytes, body: bytes) -> None:
    """Whatever bytes come, decoding raises DecodingError and nothing else."""
    for s, h in ((subject, headers), (subject, wire(EVENT)[1]), (wire(EVENT)[0], headers)):
        with pytest.raises(DecodingError):
            FORM.decode(s, h, body)


@given(events, st.data())
def test_a_damaged_message_is_refused_or_still_well_formed(event: StoredEvent, data: Any) -> None:
    """Bytes changed, cut or doubled anywhere: DecodingError, or an event that can be written and read again.

    Tags are not parsed on the way: they may be ASCII in braces that is no JSON.
    """
    subject, headers, body = wire(event)
    at = data.draw(st.integers(0, len(headers) - 1))
    change = data.draw(st.sampled_from(["cut", "replace", "insert", "double"]))
    junk = data.draw(st.binary(min_size=1, max_size=4))
    damaged = {
        "cut": headers[:at],
        "replace": headers[:at] + junk + headers[at + len(junk) :],
        "insert": headers[:at] + junk + headers[at:],
        "double": headers[:at] + headers,
    }[change]
    try:
        decoded = FORM.decode(subject, damaged, body)
    except DecodingError:
        return
    if decoded.meta != event.meta:
        decoded = decoded._replace(meta=None)
    assert FORM.decode(*wire(decoded)) == decoded


def test_headers_in_another_order_are_read() -> None:
    """Another client library may sort them, or put its own between."""
    event = EVENT._replace(meta=encode_meta({"actor": "ada"}))
    subject, headers, body = wire(event)
    rows = headers.split(b"\r\n")[1:-2]
    shuffled = [b"Nats-Stream: x", *reversed(rows), b"x-other:1"]
    assert FORM.decode(subject, b"\r\n".join([b"NATS/1.0", *shuffled, b"", b""]), body) == event


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("ce-specversion", "0.3"),
        ("ce-id", "not-a-uuid"),
        ("ce-id", "00010203-0405-0607-0809-0A0B0C0D0E0F"),
        ("ce-time", "2026-01-02T03:04:05Z"),
        ("ce-time", "2026-13-02T03:04:05.000123Z"),
        ("ce-time", "2026-02-30T03:04:05.000123Z"),
        ("ce-source", "/users/other"),
        ("ce-type", "users.User.Registered"),
        ("ce-datacontenttype", "application/json"),
        ("evsync", "2 3f9a2b1c7d5e 42 7 0"),
        ("evsync", "1 3f9a2b1c7d5e 42 7"),
        ("evsync", "1 3f9a2b1c7d5e 042 7 0"),
        ("evsync", "1 3f9a2b1c7d5e -1 7 0"),
        ("evsync", "1 3f9a2b1c7d5e 1_0 7 0"),
        ("evsync", "1 3f9a2b1c7d5e 99999999999999999999 7 0"),
        ("evsync-meta", "not json"),
        ("evsync-meta", ""),
    ],
)
def test_a_header_with_another_value_is_refused(header: str, value: str) -> None:
    """Nothing is guessed, nothing is left out; the error shows the headers."""
    subject, headers, body = wire(EVENT._replace(meta='{"actor":"ada"}'))
    changed = re.sub(rb"\r\n%b: [^\r]*" % header.encode(), b"\r\n%b: %b" % (header.encode(), value.encode()), headers)
    assert changed != headers
    with pytest.raises(DecodingError):
        FORM.decode(subject, changed, body)


def test_a_message_of_another_log_is_refused() -> None:
    """A format belongs to one log; service and shard are checked in subject and source."""
    subject, headers, body = wire(EVENT)
    for log in ("orders.main", "users.other", "users.mai"):
        with pytest.raises(DecodingError):
            MessageFormat(log).decode(subject, headers, body)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"type": "orders.Order.Placed"}, "must be 'users.<Aggregate>.<Event>'"),
        ({"type": "users.User"}, "must be 'users.<Aggregate>.<Event>'"),
        ({"type": "users..X"}, "must be 'users.<Aggregate>.<Event>'"),
        ({"type": "users.User." + "X" * 4000}, "takes 4,0"),
        ({"stream": "\ud800"}, "no UTF-8"),
        ({"stream": "." * 1200}, "use a shorter id"),
        ({"meta": "{}\r\nx: y"}, "JSON object on one line of ASCII"),
        ({"meta": '{"a":"ä"}'}, "JSON object on one line of ASCII"),
        ({"meta": ""}, "JSON object on one line of ASCII"),
        ({"meta": '{"correlation_id":}'}, "cannot be metadata"),
        ({"incarnation": "a b"}, "cannot be an incarnation"),
        ({"incarnation": "a\r\nb: c"}, "cannot be an incarnation"),
        ({"time_us": 10**18}, "years 1 to 9999"),
    ],
)
def test_what_no_message_can_carry_is_refused_at_save(change: dict[str, Any], says: str) -> None:
    """`size_of` runs before anything is stored, and raises what `encode` would raise in the relay."""
    event = EVENT._replace(**change)
    with pytest.raises(EncodingError, match=re.escape(says)):
        FORM.size_of(event)
    with pytest.raises(EncodingError, match=re.escape(says)):
        FORM.encode(event)


@pytest.mark.parametrize(
    ("value", "header"),
    [
        ("c-7", "c-7"),
        ("order 7", "order%207"),
        ('100% "sure"', "100%25%20%22sure%22"),
        ("back\\slash", "back\\slash"),
        ("Euro € 😀", "Euro%20%E2%82%AC%20%F0%9F%98%80"),  # the example of the CloudEvents binding
        ("a\r\nb", "a%0D%0Ab"),
        ("\ud800", "?"),
        ("", None),
    ],
)
def test_correlation_travels_as_cloudevents_says(value: str, header: str | None) -> None:
    """Percent-encoded in headers of its own for other systems; evsync's tags stay as they were."""
    event = EVENT._replace(
        meta=encode_meta({"correlation_id": value, "causation_id": value, "traceparent": value, "actor": "x"})
    )
    headers = parse_headers(wire(event)[1])
    for name in ("ce-correlationid", "ce-causationid", "ce-traceparent"):
        assert headers.get(name) == header
    assert headers["evsync-meta"] == event.meta


def test_the_example_of_the_documentation_is_exact() -> None:
    """docs/wire-format.md shows an event and its message, byte by byte."""
    blocks = re.findall(r"```(\w+)\n(.*?)```", WIRE_FORMAT.read_text(encoding="utf-8"), re.DOTALL)
    fields = json.loads(next(text for kind, text in blocks if kind == "json"))
    event = StoredEvent(**fields | {"id": bytes.fromhex(fields["id"]), "data": bytes.fromhex(fields["data"])})
    subject, _, headers = next(text for kind, text in blocks if kind == "text").partition("\n\n")
    assert event.slot == slot_of(event.stream)
    encoded, lines, body = FORM.encode(event)
    assert encoded == subject
    *shown, expected_sequence, expected_stream, end = headers.replace("\n", "\r\n").encode().splitlines(keepends=True)
    assert b"".join(shown) == FIRST_LINE + lines
    assert expected_sequence == b"Nats-Expected-Last-Sequence: %d\r\n" % (event.position - 1)
    assert expected_stream.startswith(b"Nats-Expected-Stream: ")
    assert end == END_OF_HEADERS
    assert FORM.decode(subject, headers.replace("\n", "\r\n").encode(), body) == event
