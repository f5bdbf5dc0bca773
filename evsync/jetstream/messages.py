"""StoredEvent <-> NATS message: CloudEvents 1.0 in NATS binary mode, byte by byte in docs/wire-format.md.

    subject   evsync.<service>.<shard>.<slot>.<Aggregate>.<Event>.<stream id>
    headers   ce-specversion, ce-id, ce-time, ce-source, ce-type, ce-datacontenttype, as CloudEvents has them
              evsync: 1 <incarnation> <position> <version> <remaining>
              evsync-meta, ce-correlationid, ce-causationid, ce-traceparent: only if the event has them
    body      the event's data

In a stream that is itself the store the subject ends with `.<version>`, and <position> is 0: the position is given by
the server, as the message's sequence.

What cannot be written in a token or a header is percent-encoded, or refused: no id, type or tag can begin a new header
line, and none ever names a header. What is read must be exactly of this form, subject and headers agreeing; headers
that follow ours (the relay's expectations, what a server adds) are ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final
from urllib.parse import quote, unquote

from evsync.control import SLOTS_STREAM
from evsync.errors import DecodingError, EncodingError
from evsync.jetstream.client.frames import parse_headers
from evsync.records import EPOCH, StoredEvent, to_time_us

FIRST_LINE: Final = b"NATS/1.0\r\n"
END_OF_HEADERS: Final = b"\r\n"
CONTENT_TYPE: Final = "application/msgpack"
FORMAT: Final = "1"
"""Stands first in the `evsync` header. A reader that does not know a format refuses the message."""

RELAY_LINES_BYTES: Final = 512
"""Room that `size_of` leaves for the publisher's own header lines: Nats-Expected-*, and those of atomic batches."""

MAX_SUBJECT_BYTES: Final = 3_000
"""A server takes 4,096 bytes for the whole protocol line: subject, reply subject and lengths."""

_DIGITS = 19
"""The most that a position or version can take: it fits into 63 bits."""

_PLAIN = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_TOKEN = r"([A-Za-z0-9_%-]+)"  # `unescape` is strict about the percent signs
_EMPTY = "%"  # no other text is written as a lone percent sign
_NUMBER = r"(0|[1-9][0-9]{0,18})"
_CE_SAFE = "!#$&'()*+,/:;<=>?@[\\]^`{|}"
"""With letters, digits and `_.-~`, everything printable except what CloudEvents says to encode: space, `"` and `%`."""

_EXTENSIONS = {
    # A tag, its header, and the tag as `encode_meta` writes it with a value that needs neither JSON's nor CloudEvents'
    # escapes. Within a JSON text each quote stands behind a backslash, so this cannot match inside another value.
    tag: (header, re.compile(rf'[{{,]"{tag}":"([!#$&-\[\]-~]+)"'))
    for tag, header in {
        "correlation_id": "ce-correlationid",  # CloudEvents' Correlation extension
        "causation_id": "ce-causationid",
        "traceparent": "ce-traceparent",  # CloudEvents' Distributed Tracing extension: W3C Trace Context
    }.items()
}


class MessageFormat:
    """Writes and reads the messages of one log, `service.shard`. Pure; make one and keep it: it remembers event types.

    A message of another log is refused like any other that is not ours. `root` is what its subjects begin with.
    """

    def __init__(self, log: str, root: str = "evsync") -> None:
        self.log = log
        self._service, _, shard = log.partition(".")
        self._prefix = f"{root}.{self._service}.{shard}."
        self._source = f"/{self._service}/{shard}"
        self._subject_shape = re.compile(
            re.escape(self._prefix) + _NUMBER + rf"\.{_TOKEN}\.{_TOKEN}\.{_TOKEN}(?:\.{_NUMBER})?"
        )
        self._header_shape = re.compile(
            "NATS/1\\.0\r\n"
            "ce-specversion: 1\\.0\r\n"
            "ce-id: ([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\r\n"
            "ce-time: ([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})\\.([0-9]{6})Z\r\n"
            f"ce-source: {re.escape(self._source)}\r\n"
            "ce-type: ([!-~]+)\r\n"
            f"ce-datacontenttype: {CONTENT_TYPE}\r\n"
            f"evsync: {FORMAT} ([A-Za-z0-9_-]+) {_NUMBER} {_NUMBER} {_NUMBER}\r\n"
            "(?:evsync-meta: ({[ -~]*})\r\n)?",
            re.ASCII,
        )
        self._type_tokens = lru_cache(maxsize=4_096)(self._tokens_of_type)
        self._alike = lru_cache(maxsize=4_096)(self._lines_alike)
        self._token_types = lru_cache(maxsize=4_096)(self._type_of_tokens)
        longest = 10**_DIGITS - 1
        sample = StoredEvent(longest, "", longest, 0, f"{self._service}.A.E", 0, bytes(16), longest, "i", b"", None)
        lines = len(self.encode(sample)[1]) - len(sample.type) - len(sample.incarnation)
        self._fixed_bytes = len(FIRST_LINE) + lines + len(END_OF_HEADERS) + RELAY_LINES_BYTES

    @property
    def subjects(self) -> str:
        """The subjects of every message of this log, as a filter."""
        return self._prefix + ">"

    def encode(self, event: StoredEvent) -> tuple[str, bytes, bytes]:
        """The event's subject, header lines and body.

        Each header line ends with CRLF. The first line (FIRST_LINE) and the blank one (END_OF_HEADERS) are left to the
        publisher, so that it can put lines of its own between. Raises EncodingError for an event that no message can
        carry; `size_of` raises the same at save.
        """
        position, stream, version, slot, type_, time_us, id_, remaining, incarnation, data, meta = event
        type_tokens, alike = self._alike(type_, incarnation)
        subject = self._subject(slot, type_tokens, stream)
        second, us = divmod(time_us, 1_000_000)
        h = id_.hex()
        lines = (
            f"ce-specversion: 1.0\r\nce-id: {h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}\r\n"
            f"ce-time: {_second_text(second)}.{us:06d}{alike}{position:d} {version:d} {remaining:d}\r\n"
        )
        if meta is not None:
            lines += _meta_lines(meta)
        return subject, lines.encode("ascii"), data

    def encode_unplaced(self, event: StoredEvent) -> tuple[str, bytes, bytes]:
        """As `encode`, for a stream that is the store: whatever the event's position, the server gives it one."""
        subject, lines, body = self.encode(event._replace(position=0))
        return f"{subject}.{event.version:d}", lines, body

    def stream_filter(self, stream: str, slot: int, version: int | None = None) -> str:
        """The subjects of an aggregate's events in a stream that is the store, or of its event of one version.

        All writers of a stream must state expectations with this very text. The stream that says where slots are has
        events in all of them.
        """
        place = "*" if stream == SLOTS_STREAM else str(slot)
        return f"{self._prefix}{place}.*.*.{escape(stream)}.{'*' if version is None else version}"

    def decode(self, subject: str, raw_headers: bytes, body: bytes, sequence: int = 0) -> StoredEvent:
        """The event of a message, from its whole header block (`NATS/1.0` to the blank line).

        `sequence` is the message's place in its stream: the position of an event of a stream that is the store.
        Raises DecodingError, and nothing else, for whatever `encode` of this log did not write. Only the insides of
        data and tags are not looked at.
        """
        text = raw_headers.decode("latin-1")  # cannot fail; what is not ASCII fits no pattern
        shape = self._header_shape.match(text)
        if shape is None or (shape[9] is None and "\r\nevsync-meta:" in text):
            return self._decode_in_any_order(subject, parse_headers(raw_headers), body, sequence)
        return self._event(subject, shape, body, sequence)

    def size_of(self, event: StoredEvent) -> int:
        """Bytes that the event takes of a server's max_payload, at most: header block, publisher's lines and data.

        `position`, `version` and `remaining` may still be unknown (0): their longest form is counted. Raises
        EncodingError for what no message can carry.
        """
        type_tokens, ce_type = self._type_tokens(event.type)
        self._subject(event.slot, type_tokens, event.stream)
        _second_text(event.time_us // 1_000_000)
        size = self._fixed_bytes + len(ce_type) + len(_plain_incarnation(event.incarnation)) + len(event.data)
        return size if event.meta is None else size + len(_meta_lines(event.meta))

    def _decode_in_any_order(self, subject: str, headers: Mapping[str, str], body: bytes, sequence: int) -> StoredEvent:
        """Decode from headers in another order than ours, or with others between them."""
        if "evsync" not in headers:
            raise DecodingError(f"a message on {_short(subject)} without an 'evsync' header was not written by evsync")
        # Put into the one form that `encode` writes, so that there is one place that says what is valid.
        names = ("ce-specversion", "ce-id", "ce-time", "ce-source", "ce-type", "ce-datacontenttype", "evsync")
        text = "NATS/1.0\r\n" + "".join(f"{name}: {headers.get(name)}\r\n" for name in names)
        if "evsync-meta" in headers:
            text += f"evsync-meta: {headers['evsync-meta']}\r\n"
        shape = self._header_shape.fullmatch(text)
        if shape is None:
            raise DecodingError(
                f"the headers of a message on {_short(subject)} are not those of an event of log {self.log!r} in "
                f"format {FORMAT} (written by a newer evsync?): {_short(repr(headers), 600)}"
            )
        return self._event(subject, shape, body, sequence)

    def _subject(self, slot: int, type_tokens: str, stream: str) -> str:
        token = stream if _PLAIN.fullmatch(stream) else escape(stream)
        subject = f"{self._prefix}{slot:d}.{type_tokens}.{token}"
        if len(subject) > MAX_SUBJECT_BYTES:
            raise EncodingError(
                f"the subject of an event of stream {_short(repr(stream))} takes {len(subject):,} bytes, and a server "
                f"takes {MAX_SUBJECT_BYTES:,}: use a shorter id, or shorter class names"
            )
        return subject

    def _event(self, subject: str, shape: re.Match[str], body: bytes, sequence: int) -> StoredEvent:
        id_, second, us, ce_type, incarnation, position, version, remaining, meta = shape.groups()
        tokens = self._subject_shape.fullmatch(subject)
        if tokens is None:
            raise DecodingError(f"{_short(subject)} is not the subject of an event of log {self.log!r}")
        slot, aggregate, name, stream, place = tokens.groups()
        if place is not None and (place != version or position != "0"):
            raise DecodingError(f"a message on {_short(subject)} says that it is version {version}, at {position}")
        type_, expected = self._token_types(aggregate, name)
        if ce_type != expected:
            raise DecodingError(f"a message on {_short(subject)} says that its type is {_short(ce_type)!r}")
        return StoredEvent(
            int(position) if place is None else sequence,
            stream if "%" not in stream else unescape(stream),
            int(version),
            int(slot),
            type_,
            _second_number(second) + int(us),
            bytes.fromhex(id_.replace("-", "")),
            int(remaining),
            incarnation,
            body,
            meta,
        )

    def _tokens_of_type(self, type_: str) -> tuple[str, str]:
        """`Aggregate.Event` as two tokens, and the type as a header value."""
        service, _, rest = type_.partition(".")
        aggregate, _, name = rest.partition(".")
        if service != self._service or not aggregate or not name:
            raise EncodingError(
                f"{_short(repr(type_))} cannot be the type of an event of log {self.log!r}: it must be "
                f"'{self._service}.<Aggregate>.<Event>'"
            )
        return f"{escape(aggregate)}.{escape(name)}", _header_value(type_)

    def _lines_alike(self, type_: str, incarnation: str) -> tuple[str, str]:
        """The type as two tokens, and the part of the header lines that all events of the type have."""
        type_tokens, ce_type = self._type_tokens(type_)
        return type_tokens, (
            f"Z\r\nce-source: {self._source}\r\nce-type: {ce_type}\r\nce-datacontenttype: {CONTENT_TYPE}\r\n"
            f"evsync: {FORMAT} {_plain_incarnation(incarnation)} "
        )

    def _type_of_tokens(self, aggregate: str, name: str) -> tuple[str, str]:
        """The type that two tokens stand for, and the same as a header value."""
        type_ = f"{self._service}.{unescape(aggregate)}.{unescape(name)}"
        return type_, _header_value(type_)


def escape(text: str) -> str:
    """`text` as one token of a subject: every byte of its UTF-8 outside A-Z, a-z, 0-9, `_` and `-` as %XX.

    The empty text is a lone percent sign. Raises EncodingError for what has no UTF-8 (a lone surrogate).
    """
    if _PLAIN.fullmatch(text):
        return text
    try:
        # quote() leaves `.` and `~` as they are.
        return quote(text, safe="").replace(".", "%2E").replace("~", "%7E") or _EMPTY
    except UnicodeEncodeError as e:
        raise EncodingError(f"{_short(ascii(text))} has no UTF-8 form: {e.reason} at character {e.start}") from e


def unescape(token: str) -> str:
    """The text that `escape` wrote. Raises DecodingError for a token that it did not write."""
    if "%" not in token:
        return token
    try:
        text = "" if token == _EMPTY else unquote(token, errors="strict")
    except UnicodeDecodeError as e:
        raise DecodingError(f"{_short(repr(token))} is not UTF-8 in percent-encoding: {e.reason}") from e
    if escape(text) != token:
        raise DecodingError(f"{_short(repr(token))} is not in the form in which {_short(repr(text))} is written")
    return text


@lru_cache(maxsize=1_024)
def _second_text(second: int) -> str:
    try:
        return (EPOCH + timedelta(seconds=second)).isoformat()[:19]
    except OverflowError as e:
        raise EncodingError(f"the time {second} seconds after 1970 is not in the years 1 to 9999") from e


@lru_cache(maxsize=1_024)
def _second_number(text: str) -> int:
    """Microseconds since 1970 at a second that `_second_text` wrote."""
    try:
        return to_time_us(datetime.fromisoformat(text + "+00:00"))
    except ValueError as e:
        raise DecodingError(f"{text!r} is not a time: {e}") from e


@lru_cache(maxsize=64)
def _plain_incarnation(incarnation: str) -> str:
    if not _PLAIN.fullmatch(incarnation):
        raise EncodingError(f"{_short(repr(incarnation))} cannot be an incarnation: use letters, digits, '_' and '-'")
    return incarnation


@lru_cache(maxsize=512)
def _meta_lines(meta: str) -> str:
    """The header lines of an event's metadata. Remembered: events of one commit, and of one request, share theirs."""
    if not (meta.isascii() and meta.isprintable() and meta.startswith("{") and meta.endswith("}")):
        raise EncodingError(f"{_short(ascii(meta))} cannot be metadata: it must be a JSON object on one line of ASCII")
    lines = f"evsync-meta: {meta}\r\n"
    for tag, (header, written_plainly) in _EXTENSIONS.items():
        if tag in meta:
            found = written_plainly.search(meta)
            value = found[1] if found else _extension_value(meta, tag)
            if value:
                lines += f"{header}: {value}\r\n"
    return lines


def _extension_value(meta: str, tag: str) -> str:
    """A tag as a header value; empty if there is no such tag with a text."""
    try:
        value = json.loads(meta).get(tag)
    except (ValueError, RecursionError) as e:
        raise EncodingError(f"{_short(meta)} cannot be metadata: {e}") from e
    return _header_value(value) if isinstance(value, str) else ""


def _header_value(text: str) -> str:
    """A CloudEvents attribute as a header value: space, `"`, `%` and all that is not printable ASCII as %XX."""
    # A lone surrogate can stand in JSON but not in UTF-8; the metadata's own header keeps it as it was.
    return quote(text, safe=_CE_SAFE, errors="replace")


def _short(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
