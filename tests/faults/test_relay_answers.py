"""Answers that no healthy server gives, or only a cluster does: a stand-in for JetStream, behind a real connection."""

from __future__ import annotations

import asyncio
import json
import re
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from evsync.errors import LawBroken, RelayError, StreamDiverged, StreamInconsistent
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.frames import header_block, parse_headers
from evsync.jetstream.relay import RelayState
from evsync.jetstream.server import find_binary
from evsync.jetstream.stream_settings import stream_config, stream_name, subjects
from evsync.records import LogIdentity
from tests.relaying import caught_up, connected, eventually, halted, new_log, relaying, save

pytestmark = pytest.mark.anyio

Twist = Callable[[int, dict[str, Any]], bytes | None]
"""Given a message's sequence and the true answer: the answer to give, None for silence."""


class StandIn:
    """A stream that keeps the law, and answers publishes as `twist` says."""

    def __init__(self, conn: Connection, identity: LogIdentity) -> None:
        self.conn, self.name = conn, stream_name(identity)
        self.config, self.created = stream_config(identity), "today"
        self.stored: list[tuple[bytes, bytes, bytes]] = []
        self.twist: Twist = lambda _, answer: json.dumps(answer, separators=(",", ":")).encode()
        self.publishes = 0
        conn.subscribe(subjects(identity), self._publish)
        conn.subscribe(f"$JS.API.STREAM.INFO.{self.name}", self._info)
        conn.subscribe("$JS.API.STREAM.NAMES", self._names)
        conn.subscribe(f"$JS.API.DIRECT.GET.{self.name}", self._direct_get)

    def _publish(self, subject: bytes, reply: bytes, headers: bytes, body: bytes) -> None:
        self.publishes += 1
        expected, last = int(parse_headers(headers)["Nats-Expected-Last-Sequence"]), len(self.stored)
        answer: dict[str, Any]
        if expected == last:
            self.stored.append((subject, headers, body))
            answer = {"stream": self.name, "seq": last + 1}
        else:
            error = {"code": 400, "err_code": 10071, "description": f"wrong last sequence: {last}"}
            answer = {"error": error, "stream": self.name, "seq": 0}
        if (said := self.twist(expected + 1, answer)) is not None:
            self.conn.publish(reply.decode(), "", b"", said)

    def _info(self, _subject: bytes, reply: bytes, _headers: bytes, _body: bytes) -> None:
        last = len(self.stored)
        state = {"messages": last, "first_seq": min(last, 1), "last_seq": last}
        self._say(reply, {"config": self.config, "created": self.created, "state": state})

    def _names(self, _subject: bytes, reply: bytes, _headers: bytes, _body: bytes) -> None:
        self._say(reply, {"streams": [self.name]})

    def _direct_get(self, _subject: bytes, reply: bytes, _headers: bytes, body: bytes) -> None:
        asked = json.loads(body)
        first = asked["seq"]
        for n, (subject, headers, data) in enumerate(self.stored[first - 1 : first - 1 + asked["batch"]], first):
            added = {"Nats-Stream": self.name, "Nats-Subject": subject.decode(), "Nats-Sequence": str(n)}
            self.conn.publish(reply.decode(), "", headers[:-2] + header_block(added)[10:], data)
        self.conn.publish(reply.decode(), "", b"NATS/1.0 204 EOB\r\n\r\n", b"")

    def _say(self, reply: bytes, answer: dict[str, Any]) -> None:
        self.conn.publish(reply.decode(), "", b"", json.dumps(answer).encode())


@asynccontextmanager
async def plain_server(directory: Path) -> AsyncIterator[str]:
    """The URL of a nats-server without JetStream: its subjects are ordinary ones there, and anybody may answer."""
    process = await asyncio.create_subprocess_exec(
        find_binary(), "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", str(directory), stderr=DEVNULL
    )

    def url() -> str | None:
        for ports in directory.glob("*.ports"):
            with suppress(ValueError):  # caught while it was being written
                return str(json.loads(ports.read_text())["nats"][0])
        return None

    try:
        yield await eventually(url, "the server's ports file")
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def stand_in(directory: Path, identity: LogIdentity) -> AsyncIterator[tuple[Connection, StandIn]]:
    """A connection, and what answers at its other end."""
    async with plain_server(directory) as url, connected(url) as conn, connected(url, "broker") as far:
        stream = StandIn(far, identity)
        await far.request("$JS.API.STREAM.NAMES", timeout_s=5)  # its subscriptions are in place
        yield conn, stream


def true(answer: dict[str, Any]) -> bytes:
    """The answer as the server writes it."""
    return json.dumps(answer, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "lie",
    [
        lambda n, a: true(a | {"seq": n + 1}),
        lambda _, a: true(a | {"stream": "other"}),
        lambda _, a: true(a | {"duplicate": True}),
        lambda _, a: b"+OK",
    ],
    ids=["another sequence", "another stream", "duplicate", "not JSON"],
)
@pytest.mark.parametrize("at", [1, 30], ids=["the first", "in mid-stream"])
async def test_any_acknowledgement_but_the_exact_one_halts(tmp_path: Path, lie: Twist, at: int) -> None:
    """The law is broken, or whoever answers is not the server: nothing more is published."""
    log = new_log()
    await save(log, 100)
    async with stand_in(tmp_path, log.identity) as (conn, stream):
        stream.twist = lambda n, answer: lie(n, answer) if n == at else true(answer)
        async with relaying(log, conn, window=8) as relay:
            error = await halted(relay)
            assert isinstance(error, LawBroken)
            assert f"position {at} " in str(error)
            assert error.values["position"] == at
            assert stream.publishes < at + 16
            published = stream.publishes
            stream.twist = lambda _, answer: true(answer)
            stream.created = "tomorrow"  # made anew: it is verified again, and is as it should be
            await caught_up(relay, 100)
            assert stream.publishes > published


async def test_an_acknowledgement_in_another_form_counts(tmp_path: Path) -> None:
    """A server in a JetStream domain names it in every acknowledgement."""
    log = new_log()
    await save(log, 50)
    async with stand_in(tmp_path, log.identity) as (conn, stream), relaying(log, conn, window=8) as relay:
        stream.twist = lambda _, answer: json.dumps({"domain": "hub"} | answer, indent=1).encode()
        await caught_up(relay, 50)
        assert stream.publishes == 50


async def test_acknowledgements_that_get_lost_are_not_failures(tmp_path: Path) -> None:
    """As on a replicated stream after a change of leader: what is stored is found by looking, and counted."""
    log = new_log()
    await save(log, 300)
    async with stand_in(tmp_path, log.identity) as (conn, stream), relaying(log, conn, window=8) as relay:
        stream.twist = lambda n, answer: None if n in {40, 41, 97, 300} else true(answer)
        await caught_up(relay, 300)
        assert len(stream.stored) == 300
        assert relay.halted is None


async def test_the_last_acknowledgement_of_an_idle_log_may_be_lost(tmp_path: Path) -> None:
    """Silence is looked into also when nothing follows."""
    log = new_log()
    await save(log, 5)
    async with stand_in(tmp_path, log.identity) as (conn, stream), relaying(log, conn) as relay:
        await caught_up(relay, 5)
        stream.twist = lambda _, answer: None
        await save(log, 1)
        await caught_up(relay, 6)
        assert len(stream.stored) == 6


async def test_a_foreign_message_is_found_although_the_refusal_got_lost(tmp_path: Path) -> None:
    """It took the place of event 40, nobody said so, and event 41 was acknowledged: that proves nothing about 40."""
    log = new_log()
    await save(log, 300)
    async with stand_in(tmp_path, log.identity) as (conn, stream), relaying(log, conn, window=8) as relay:

        def intrude(n: int, answer: dict[str, Any]) -> bytes | None:
            if n != 40:
                return true(answer)
            stream.stored[39] = (stream.stored[39][0], b"NATS/1.0\r\n\r\n", b"boo")
            return None

        stream.twist = intrude
        error = await halted(relay)
        assert isinstance(error, StreamDiverged)
        assert error.values["position"] == 40
        assert len(stream.stored) < 60


async def test_a_server_that_contradicts_itself_halts_the_relay(tmp_path: Path) -> None:
    """It says that n is last, and refuses n + 1 because n is not: for a moment that is normal, for long it is not."""
    log = new_log()
    await save(log, 20)
    async with stand_in(tmp_path, log.identity) as (conn, stream), relaying(log, conn, doubt_s=0.5) as relay:
        await caught_up(relay, 20)

        def refuse(_n: int, _answer: dict[str, Any]) -> bytes:
            stream.stored = stream.stored[:20]
            words = {"code": 400, "err_code": 10071, "description": "wrong last sequence: 7"}
            return true({"error": words, "stream": stream.name, "seq": 0})

        stream.twist = refuse
        await save(log, 1)
        error = await halted(relay)
        assert isinstance(error, StreamInconsistent)
        assert re.search(r"its last sequence is 20, .*wrong last sequence: 7", str(error))


async def test_a_contradiction_that_passes_is_forgotten(tmp_path: Path) -> None:
    """Refused twice, taken the third time."""
    log = new_log()
    await save(log, 20)
    async with stand_in(tmp_path, log.identity) as (conn, stream), relaying(log, conn, doubt_s=60) as relay:
        await caught_up(relay, 20)
        refusals = 0

        def refuse_twice(_n: int, answer: dict[str, Any]) -> bytes:
            nonlocal refusals
            if refusals == 2:
                return true(answer)
            refusals += 1
            stream.stored = stream.stored[:20]
            words = {"code": 400, "err_code": 10164, "description": "wrong last sequence"}
            return true({"error": words, "stream": stream.name, "seq": 0})

        stream.twist = refuse_twice
        await save(log, 1)
        await caught_up(relay, 21)
        assert refusals == 2


@pytest.mark.parametrize(
    ("code", "err_code", "halts"),
    [(400, 10060, True), (400, 10109, True), (400, 10054, True), (503, 10008, False), (500, 10077, False)],
)
async def test_a_refusal_halts_or_is_waited_out_by_its_number(
    tmp_path: Path, code: int, err_code: int, halts: bool
) -> None:
    """Another stream, a sealed one, a message too large need a person; no leader, no room do not."""
    log = new_log()
    await save(log, 20)
    async with stand_in(tmp_path, log.identity) as (conn, stream), relaying(log, conn) as relay:
        await caught_up(relay, 20)

        def refuse(_n: int, _answer: dict[str, Any]) -> bytes:
            stream.stored = stream.stored[:20]
            words = {"code": code, "err_code": err_code, "description": "so sorry"}
            return true({"error": words, "stream": stream.name, "seq": 0})

        stream.twist = refuse
        await save(log, 1)
        await eventually(lambda: "so sorry" in relay.status().reason, "the server's words in the status")
        await eventually(lambda: (relay.halted is not None) == halts, f"halted: {halts}")
        assert not halts or type(relay.halted) is RelayError
        stream.twist = lambda _, answer: true(answer)
        if halts:
            assert relay.state is RelayState.HALTED
            stream.created = "tomorrow"
        await caught_up(relay, 21)
        assert len(stream.stored) == 21
