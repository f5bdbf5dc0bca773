"""Frames of the NATS protocol: a one-pass reader of what the server sends, and headers.

nats-py's own parser matches two regular expressions per frame, parses every header and wakes a task per message. Here
messages are cut out of the receive buffer and given to plain functions, several times faster; everything that is not a
message is left to nats-py's parser (a property test compares the two).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from nats.errors import ProtocolError

Handler = Callable[[bytes, bytes, bytes, bytes], None]
"""Called with subject, reply subject (b"" for none), header block (b"" for none; status line and blank line included)
and body of a message. It runs inside the read loop: it must be quick, and what it raises is reported, not passed on."""

Block = Callable[[bytes, int], int]
"""Called with what was received and the place of a frame in it; returns the place behind all frames that it has dealt
with: the same place for none. For whoever knows what is due byte by byte, and compares rather than parses."""

MAX_CONTROL_LINE_BYTES = 1 << 20
"""Beyond this a line without an end is not NATS. (An INFO line lists all servers of a cluster.)"""

_M, _H = b"MH"
_STATUS = re.compile(rb"NATS/1\.0 +(\d{3})(?: +([^\r]*))?\r\n")
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


class Message(NamedTuple):
    """A message as it came. `headers` is the whole block, b"" if there is none."""

    subject: bytes
    reply: bytes
    headers: bytes
    body: bytes


class FrameParser:
    """Cuts the server's bytes into messages for `handlers` (by subscription id) and lines for `control`.

    `blocks` come first, and may take any number of whole frames.
    """

    def __init__(
        self,
        handlers: Mapping[bytes, Handler],
        control: Callable[[bytes], Awaitable[None]],
        handler_failed: Callable[[bytes, Exception], None],
        blocks: Sequence[Block] = (),
    ) -> None:
        self._blocks = blocks
        self._handlers, self._control, self._handler_failed = handlers, control, handler_failed
        self._rest = bytearray()
        self._needed = 0  # size that `_rest` must reach before it is worth looking at again
        self._resets = 0

    def reset(self) -> None:
        """Forget a half-read frame: what follows comes from another connection."""
        self._rest.clear()
        self._needed = 0
        self._resets += 1

    async def parse(self, data: bytes) -> None:
        """Handle every frame that `data` completes. Raises ProtocolError when the server does not speak NATS."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return
            data = bytes(self._rest)
            self._rest.clear()
        self._needed = 0
        handlers, blocks, size, start = self._handlers, self._blocks, len(data), 0
        while start < size:
            if blocks and (start := self._take(data, start)) >= size:
                break
            eol = data.find(b"\r\n", start)
            if eol < 0:
                if size - start > MAX_CONTROL_LINE_BYTES:
                    raise ProtocolError
                break
            kind = data[start]
            if kind == _M:  # MSG <subject> <sid> [reply] <size>
                args = data[start + 4 : eol].split()
                replies, head = len(args) - 3, 0
            elif kind == _H:  # HMSG <subject> <sid> [reply] <header size> <total size>
                args = data[start + 5 : eol].split()
                replies, head = len(args) - 4, _number(args, -2)
            else:
                resets = self._resets
                await self._control(data[start : eol + 2])
                if resets != self._resets:
                    return
                start = eol + 2
                continue
            body = eol + 2
            end = body + _number(args, -1)
            if not 0 <= replies <= 1 or body + head > end:
                raise ProtocolError
            if end + 2 > size:
                self._needed = end + 2 - start
                break
            if data[end : end + 2] != b"\r\n":
                raise ProtocolError
            handler = handlers.get(args[1])
            if handler is not None:
                reply = args[2] if replies else b""
                try:
                    handler(args[0], reply, data[body : body + head], data[body + head : end])
                except Exception as e:  # it would end the read loop, and with it the connection, without a word
                    self._handler_failed(args[0], e)
            start = end + 2
        if start < size:
            self._rest += data[start:]

    def _take(self, data: bytes, start: int) -> int:
        for block in self._blocks:
            try:
                start = block(data, start)
            except Exception as e:
                self._handler_failed(b"a block of messages", e)
        return start


def _number(args: list[bytes], index: int) -> int:
    if len(args) < 3 or not args[index].isdigit():
        raise ProtocolError
    return int(args[index])


def status_of(headers: bytes) -> tuple[int, str]:
    """The status of a header block and its words: (404, "No Messages"); (0, "") for ordinary headers."""
    match = _STATUS.match(headers)
    return (int(match[1]), (match[2] or b"").decode(errors="replace").strip()) if match else (0, "")


def header_block(headers: Mapping[str, str]) -> bytes:
    """A header block for the wire. Raises ValueError for a name or value that cannot be one (no CR, no LF)."""
    lines = ["NATS/1.0\r\n"]
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or "\r" in value or "\n" in value:
            raise ValueError(f"{name!r}: {value[:200]!r} cannot be a NATS header")
        lines.append(f"{name}: {value}\r\n")
    lines.append("\r\n")
    return "".join(lines).encode()


def parse_headers(block: bytes) -> dict[str, str]:
    """The lines `name: value` of a header block as a dict; lines of another form are left out. Never raises."""
    pairs = (line.partition(":") for line in block.decode("latin-1").split("\r\n"))
    return {name: value.strip(" \t") for name, colon, value in pairs if colon}


def headers_of_server(headers: bytes) -> dict[str, str]:
    """What the server has added to a message that it was asked for, which stands behind the message's own headers."""
    return parse_headers(headers[headers.rfind(b"\r\nNats-Stream: ") :])
