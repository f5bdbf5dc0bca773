"""Acknowledgements that are taken in runs, against the same ones taken one by one."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from evsync.jetstream.client.connection import Subscription
from evsync.jetstream.client.frames import Block, FrameParser, Handler
from evsync.jetstream.flight import Flight
from evsync.jetstream.messages import MessageFormat

INBOX = "_INBOX_users.0123"


class Wire:
    """What a flight needs of a connection, without one."""

    epoch = 1

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.handlers: dict[bytes, Handler] = {}

    def inbox(self) -> str:
        return INBOX

    def subscribe(self, subject: str, handler: Handler) -> Subscription:
        sid = b"%d" % (7 + len(self.handlers))
        self.handlers[sid] = handler
        return Subscription(self, sid, subject)  # type: ignore[arg-type]


def frame(number: int, body: bytes, sid: int = 7) -> bytes:
    return b"MSG %b.%d %d %d\r\n%b\r\n" % (INBOX.encode(), number, sid, len(body), body)


def acknowledgement(number: int) -> bytes:
    return frame(number, b'{"stream":"S","seq":%d}' % number)


answers = st.sampled_from(
    [
        lambda due: (acknowledgement(due), 1),
        lambda due: (acknowledgement(due), 1),
        lambda due: (b"".join(acknowledgement(due + i) for i in range(40)), 40),
        lambda due: (frame(due, b'{"stream":"S", "domain":"hub", "seq":%d}' % due), 1),
        lambda due: (b"PING\r\n", 0),
        lambda due: (frame(due, b"news of others", sid=9), 0),
    ]
)
wrong = st.sampled_from(
    [
        lambda due: acknowledgement(due + 1),
        lambda due: acknowledgement(due - 1),
        lambda due: frame(due, b'{"stream":"S","seq":%d}' % (due + 1)),
        lambda due: frame(due, b'{"stream":"T","seq":%d}' % due),
        lambda due: frame(due, b'{"stream":"S","seq":%d,"duplicate":true}' % due),
        lambda due: frame(due, b'{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 3"}}'),
        lambda due: frame(due, b"?"),
    ]
)


async def outcome(pieces: list[bytes], after: int, sent: int, *, in_runs: bool) -> tuple[Any, ...]:
    """What a flight makes of what the server sends."""
    wire = Wire()
    flight = Flight(wire, MessageFormat("users.main"), "S", after=after, epoch=1)  # type: ignore[arg-type]
    flight.sent = sent

    async def control(_line: bytes) -> None:
        """Nothing."""

    def failed(_subject: bytes, error: Exception) -> None:
        raise error

    parser = FrameParser(wire.handlers, control, failed, wire.blocks if in_runs else ())
    for piece in pieces:
        await parser.parse(piece)
    result = flight.confirmed, flight.fault, flight._answers
    flight.disturbed.cancel()
    return result


@given(
    st.integers(0, 1_200), st.lists(answers, max_size=20), st.none() | wrong, st.lists(answers, max_size=4), st.data()
)
def test_runs_and_single_acknowledgements_come_to_the_same(
    after: int, before: list[Any], fault: Any, behind: list[Any], data: st.DataObject
) -> None:
    """Whatever the server answers, among whatever else, and wherever the network cuts it."""
    stream, due = b"", after + 1
    for make in before:
        sent, count = make(due)
        stream, due = stream + sent, due + count
    if fault is not None:
        stream, due = stream + fault(due), due + 1
    for make in behind:
        sent, count = make(due)
        stream, due = stream + sent, due + count
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    one_by_one = asyncio.run(outcome(pieces, after, due + 5, in_runs=False))
    assert asyncio.run(outcome(pieces, after, due + 5, in_runs=True)) == one_by_one
    if fault is None:
        assert one_by_one == (due - 1, None, due - 1 - after)


def test_runs_end_where_the_flight_does() -> None:
    """An acknowledgement of what was not sent yet is judged in one place, whichever way it comes."""
    stream = b"".join(acknowledgement(n) for n in range(1, 9))
    in_runs = asyncio.run(outcome([stream], 0, 4, in_runs=True))
    assert in_runs == asyncio.run(outcome([stream], 0, 4, in_runs=False))
