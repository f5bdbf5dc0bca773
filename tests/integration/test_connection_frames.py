"""The frame parser against nats-py's own."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from evsync.jetstream.client.frames import FrameParser, Handler

Seen = list[tuple[Any, ...]]

words = st.text("abcXYZ019.-_$>*", min_size=1, max_size=20).map(str.encode)
bodies = st.one_of(st.binary(max_size=60), st.sampled_from([b"", b"\r\n", b"MSG a 1 0\r\n\r\n", b"PING\r\n"]))


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """MSG or HMSG, with or without a reply subject, for a known subscription or another."""
    subject, sid, reply = draw(words), draw(st.sampled_from([b"1", b"2", b"77"])), draw(st.one_of(st.just(b""), words))
    body = draw(bodies)
    if draw(st.booleans()):
        headers = b"NATS/1.0\r\n" + b"".join(b"%b: %b\r\n" % (draw(words), draw(words)) for _ in range(3)) + b"\r\n"
        args = b" ".join(filter(None, (subject, sid, reply, b"%d" % len(headers), b"%d" % (len(headers) + len(body)))))
        return b"HMSG " + args + b"\r\n" + headers + body + b"\r\n"
    args = b" ".join(filter(None, (subject, sid, reply, b"%d" % len(body))))
    return b"MSG " + args + b"\r\n" + body + b"\r\n"


lines = st.sampled_from([b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b'INFO {"a":1}\r\n', b"-ERR 'Stale Connection'\r\n"])


class Recorder:
    """What nats-py's parser calls."""

    def __init__(self) -> None:
        self.seen: Seen = []

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        if sid in {1, 2}:
            self.seen.append((sid, subject, reply, headers or b"", payload))

    async def _process_ping(self) -> None:
        self.seen.append(("ping",))

    async def _process_pong(self) -> None:
        self.seen.append(("pong",))

    async def _process_info(self, info: dict[str, Any]) -> None:
        self.seen.append(("info", info))

    async def _process_err(self, words: str) -> None:
        self.seen.append(("err", words))


async def by_nats(pieces: list[bytes]) -> Seen:
    """What nats-py makes of it."""
    recorder = Recorder()
    parser = Parser(recorder)
    for piece in pieces:
        await parser.parse(piece)
    return recorder.seen


class Numbered(dict[bytes, Handler]):
    """Handlers that are found as nats-py's are: the ids of subscriptions are numbers there, and 01 is 1."""

    def get(self, sid: bytes, default: Any = None) -> Any:
        return super().get(b"%d" % int(sid) if sid.isdigit() else sid, default)


def frame_parser(recorder: Recorder) -> FrameParser:
    """Ours, with lines left to nats-py's."""

    def handler(sid: int) -> Any:
        return lambda subject, reply, headers, body: recorder.seen.append((sid, subject, reply, headers, body))

    def failed(_subject: bytes, error: Exception) -> None:
        raise error

    return FrameParser(Numbered({b"1": handler(1), b"2": handler(2)}), Parser(recorder).parse, failed)


async def by_evsync(pieces: list[bytes]) -> Seen:
    """What ours makes of it."""
    recorder = Recorder()
    parser = frame_parser(recorder)
    for piece in pieces:
        await parser.parse(piece)
    return recorder.seen


@given(st.lists(st.one_of(messages(), lines), max_size=12), st.data())
def test_both_parsers_see_the_same(frames: list[bytes], data: st.DataObject) -> None:
    """Whatever the server sends, and wherever the network cuts it."""
    stream = b"".join(frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert asyncio.run(by_evsync(pieces)) == asyncio.run(by_nats(pieces))


async def until_refused(parser: Any, seen: Seen, data: bytes) -> Seen:
    """What was seen of it, up to where the parser refused to go on."""
    with contextlib.suppress(Exception):  # ours leaves lines to nats-py's, which raises whatever comes
        await parser.parse(data)
    return seen


@settings(max_examples=300)
@given(st.lists(st.one_of(messages(), lines), min_size=1, max_size=6), st.data())
def test_what_is_damaged_is_refused_or_read_alike(frames: list[bytes], data: st.DataObject) -> None:
    """Some bytes are others, or gone: where one of the parsers stops, it had seen what the other has seen so far."""
    damaged = bytearray(b"".join(frames))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + 1] = data.draw(st.sampled_from([b"", b" ", b"0", b"9", b"x", b"\r", b"\n", b"M", b"H"]))

    async def both() -> tuple[Seen, Seen]:
        ours, theirs = Recorder(), Recorder()
        return (
            await until_refused(frame_parser(ours), ours.seen, bytes(damaged)),
            await until_refused(Parser(theirs), theirs.seen, bytes(damaged)),
        )

    ours, theirs = asyncio.run(both())
    common = min(len(ours), len(theirs))
    assert ours[:common] == theirs[:common]


def test_every_single_cut_is_survived() -> None:
    """Byte by byte, and a body that looks like frames."""
    stream = b"PING\r\nHMSG a 1 r 12 26\r\nNATS/1.0\r\n\r\nMSG a 1 1\r\nx\r\n\r\nMSG b 2 0\r\n\r\n+OK\r\n"
    whole = asyncio.run(by_evsync([stream]))
    assert whole == [("ping",), (1, b"a", b"r", b"NATS/1.0\r\n\r\n", b"MSG a 1 1\r\nx\r\n"), (2, b"b", b"", b"", b"")]
    assert asyncio.run(by_evsync([bytes([byte]) for byte in stream])) == whole


@pytest.mark.parametrize(
    "nonsense",
    [
        b"MSG a 1\r\n",
        b"MSG a 1 -5\r\n",
        b"MSG a 1 5x\r\nhello\r\n",
        b"MSG a 1 2\r\nhello\r\n",
        b"HMSG a 1 5\r\nhello\r\n",
        b"HMSG a 1 6 5\r\nhello\r\n",
        b"MSG a 1 r s 5\r\nhello\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"x" * (2 << 20),
    ],
)
def test_what_is_not_nats_is_refused(nonsense: bytes) -> None:
    """Rather than waited for, or read as something else."""
    with pytest.raises(ProtocolError):
        asyncio.run(by_evsync([nonsense, b"PING\r\n"]))


def test_a_reset_forgets_half_a_frame() -> None:
    """What follows comes from another connection."""

    async def run() -> Seen:
        recorder = Recorder()
        parser = FrameParser({}, Parser(recorder).parse, lambda *_: None)
        await parser.parse(b"MSG a 1 500\r\nhal")
        parser.reset()
        await parser.parse(b"PING\r\n")
        return recorder.seen

    assert asyncio.run(run()) == [("ping",)]
