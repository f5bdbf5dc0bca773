"""The connection to NATS: what it carries, and what it survives."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import signal
from pathlib import Path
from typing import cast

import nats.aio.client
import pytest
from nats.aio.client import Client
from nats.aio.transport import TcpTransport

from evsync.errors import BrokerRefused, BrokerUnavailable
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.frames import header_block, status_of
from evsync.jetstream.client.quick_session import TESTED, untested
from evsync.jetstream.client.session import OPTIONS
from evsync.jetstream.client.settings import NatsSettings
from evsync.jetstream.server import EmbeddedServer
from tests.relaying import connected, eventually

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("either_way")]

Received = list[tuple[bytes, bytes, bytes, bytes]]


def collect(conn: Connection, subject: str) -> Received:
    """A list that grows by every message on the subject."""
    received: Received = []
    conn.subscribe(subject, lambda *message: received.append(message))
    return received


async def test_messages_arrive_whole_and_in_order(nats_server: EmbeddedServer) -> None:
    """Subject, reply subject, header block and body, whatever their sizes."""
    async with connected(nats_server.url) as conn, connected(nats_server.url, "orders") as other:
        received = collect(other, "a.*")
        await other.request("$JS.API.INFO", timeout_s=5)  # the subscription is in place
        headers = header_block({"Name": "Zoë", "Empty": ""})
        sent = [(b"a.b", b"", b"", b"")]
        sent += [(b"a.c", b"r.1", headers, os.urandom(size)) for size in (0, 1, 1000, 40_000, 1_000_000, 3)]
        for subject, reply, block, body in sent:
            conn.publish(subject.decode(), reply.decode(), block, body)
        await eventually(lambda: len(received) == len(sent), "all messages")
        assert [m[:3] for m in received] == [m[:3] for m in sent]
        assert all(got[3] == put[3] for got, put in zip(received, sent, strict=True))


async def test_a_request_returns_the_answer(nats_server: EmbeddedServer) -> None:
    """Many may be in flight; each gets its own."""
    async with connected(nats_server.url) as conn, connected(nats_server.url, "orders") as other:

        def answer(_subject: bytes, reply: bytes, headers: bytes, body: bytes) -> None:
            other.publish(reply.decode(), "", headers, body[::-1])

        other.subscribe("reverse", answer)
        await other.request("$JS.API.INFO", timeout_s=5)
        texts = [b"%d" % (n * 1000) for n in range(50)]
        answers = await asyncio.gather(*(conn.request("reverse", t, timeout_s=5, headers={"A": "b"}) for t in texts))
        assert [a.body[::-1] for a in answers] == texts
        assert answers[0].headers == header_block({"A": "b"})


async def test_a_request_nobody_answers_says_why(nats_server: EmbeddedServer) -> None:
    """Nobody there, nobody in time, or too large: three errors."""
    async with connected(nats_server.url) as conn:
        with pytest.raises(BrokerUnavailable, match="nobody answers into"):
            await conn.request("into.the.void", timeout_s=5)
        conn.subscribe("silence", lambda *_: None)
        with pytest.raises(BrokerUnavailable, match=r"no answer to silence within 0.05 s"):
            await conn.request("silence", timeout_s=0.05)
        with pytest.raises(BrokerRefused, match="2000000 bytes, and the server takes 1048576"):
            await conn.request("silence", bytes(2_000_000), timeout_s=5)
        assert conn.max_payload == 1_048_576
        with pytest.raises(BrokerRefused) as refused:
            await conn.api("STREAM.INFO.nothing")
        assert (refused.value.code, refused.value.err_code) == (404, 10059)
        assert not conn._asked


async def test_a_request_fails_at_once_when_the_connection_is_lost(nats_server: EmbeddedServer) -> None:
    """Not after its timeout: its outcome will never be known."""
    async with connected(nats_server.url) as conn:
        conn.subscribe("silence", lambda *_: None)
        asked = asyncio.create_task(conn.request("silence", timeout_s=3600))
        await asyncio.sleep(0.01)
        nats_server.kill()
        with pytest.raises(BrokerUnavailable, match="the connection was lost before silence was answered"):
            await asked
        with pytest.raises(BrokerUnavailable, match="not connected"):
            await conn.request("silence", timeout_s=3600)


async def test_opening_does_not_wait_for_the_server(tmp_path: Path) -> None:
    """An unreachable server is not an error: the connection is made when it comes up."""
    with EmbeddedServer.start(tmp_path) as server:
        server.stop()
        async with await Connection.open(NatsSettings(server.url), "users") as conn:
            assert (conn.connected, conn.epoch, conn.max_payload) == (False, 0, None)
            with pytest.raises(
                BrokerUnavailable, match=f"no connection within 0.1 s .*{server.url}.*Connect call failed"
            ):
                await conn.ready(0.1)
            server.restart()
            await conn.ready(10)
            assert (conn.connected, conn.epoch, conn.problem) == (True, 1, None)


async def test_subscriptions_outlive_the_server(nats_server: EmbeddedServer) -> None:
    """After each restart a new epoch, the same subscriptions; what was taken off stays off."""
    async with connected(nats_server.url) as conn:
        received = collect(conn, "kept")
        dropped: Received = []
        conn.subscribe("dropped", lambda *m: dropped.append(m)).unsubscribe()
        changes: list[bool] = []
        remove = conn.on_connection_change(changes.append)
        conn.on_connection_change(lambda _: 1 / 0)  # type: ignore[arg-type]  # reported, harmless
        for epoch in (2, 3):
            nats_server.kill()
            await eventually(lambda: not conn.connected, "the loss noticed")
            nats_server.restart()
            await conn.ready(10)
            assert conn.epoch == epoch
            for subject in ("kept", "dropped"):
                conn.publish(subject, "", b"", b"%d" % epoch)
            await eventually(lambda: len(received) == conn.epoch - 1, "the message")
        assert [m[3] for m in received] == [b"2", b"3"]
        assert dropped == []
        assert changes == [False, True, False, True]
        remove()
        nats_server.kill()
        await eventually(lambda: not conn.connected, "the loss noticed")
        assert changes == [False, True, False, True]


async def test_nothing_is_sent_later_than_asked(nats_server: EmbeddedServer) -> None:
    """What was published without a connection, or just before it was lost, does not come back as a ghost."""
    async with connected(nats_server.url) as conn:
        received = collect(conn, "ghost")
        nats_server.kill()
        for _ in range(100):
            try:
                conn.publish("ghost", "", b"", b"boo")
            except BrokerUnavailable:
                break
            await asyncio.sleep(0.01)
        else:
            raise AssertionError("the loss was never noticed")
        nats_server.restart()
        await conn.ready(10)
        conn.publish("ghost", "", b"", b"alive")
        await eventually(lambda: received, "the message")
        assert [m[3] for m in received] == [b"alive"]


async def test_a_handler_that_raises_is_reported_and_no_more(
    nats_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """It would kill nats-py's read loop; here the next message arrives."""
    async with connected(nats_server.url) as conn:
        received: list[bytes] = []

        def fragile(_subject: bytes, _reply: bytes, _headers: bytes, body: bytes) -> None:
            received.append(body)
            raise RuntimeError("oh dear")

        conn.subscribe("fragile", fragile)
        for body in (b"1", b"2", b"3"):
            conn.publish("fragile", "", b"", body)
        await eventually(lambda: len(received) == 3, "all three")
        assert conn.epoch == 1
    assert [r.levelno for r in caplog.records if "handler of a message on fragile" in r.message] == [logging.ERROR] * 3


async def test_an_error_of_the_server_costs_one_connection_only(nats_server: EmbeddedServer) -> None:
    """nats-py would close for good, without a word: a message that is too large, for one."""
    async with connected(nats_server.url) as conn:
        received = collect(conn, "a")
        conn.publish("a", "", b"", bytes(1_100_000))
        await eventually(lambda: conn.epoch == 2, "connected again")
        conn.publish("a", "", b"", b"small")
        await eventually(lambda: received, "the message")


async def test_a_dead_peer_is_noticed_and_let_go(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with megabytes unsent, which would keep a socket that is closed politely open for ever. (nats-py's own calls
    have no other way to close one.)"""
    monkeypatch.setitem(cast("dict[str, float]", OPTIONS), "ping_interval", 0.1)
    async with connected(nats_server.url) as conn:
        received = collect(conn, "a")
        assert conn._session is not None
        transport = conn._session.client._transport._io_writer.transport  # type: ignore[union-attr]
        os.kill(nats_server.pid, signal.SIGSTOP)
        try:
            for _ in range(30):
                conn.publish("b", "", b"", bytes(1_000_000))
            await eventually(lambda: transport.get_write_buffer_size() > 1_000_000, "megabytes unsent")
            await eventually(lambda: not conn.connected, "the dead peer noticed")
            if not untested():
                await eventually(lambda: transport.get_write_buffer_size() == 0, "its socket let go")
        finally:
            os.kill(nats_server.pid, signal.SIGCONT)
        await conn.ready(10)
        conn.publish("a", "", b"", b"alive")
        await eventually(lambda: received, "the message")


async def test_what_was_published_before_closing_is_sent(nats_server: EmbeddedServer) -> None:
    """close() flushes; closing twice is fine; afterwards everything is refused."""
    async with connected(nats_server.url, "orders") as other:
        received = collect(other, "last")
        await other.request("$JS.API.INFO", timeout_s=5)
        conn = await Connection.open(NatsSettings(nats_server.url), "users")
        await conn.ready(10)
        for n in range(1000):
            conn.publish("last", "", b"", b"%d" % n)
        await conn.close()
        await conn.close()
        await eventually(lambda: len(received) == 1000, "all messages")
        with pytest.raises(BrokerUnavailable, match="not connected"):
            conn.publish("last", "", b"", b"")


async def test_closing_leaves_no_task_behind(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    """Whether it is connected, about to connect, or trying in vain."""
    before = asyncio.all_tasks()
    nowhere = NatsSettings("nats://127.0.0.1:1")
    for settings, wait in (
        (NatsSettings(nats_server.url), True),
        (NatsSettings(nats_server.url), False),
        (nowhere, False),
    ):
        conn = await Connection.open(settings, "users")
        if wait:
            await conn.ready(10)
        else:
            await asyncio.sleep(0)
        await conn.close()
        assert not conn.connected
    await eventually(lambda: asyncio.all_tasks() == before, "no task left")


def test_the_private_names_of_nats_py_that_are_used_are_there() -> None:
    """A version that moves them must not be used: what they do would silently not happen. These tests run with one that
    is named as tested, and so does the property that compares the two parsers."""
    assert nats.aio.client.__version__ in TESTED
    client = Client()
    for name in ("_ps", "_transport", "_reading_task", "_flush_queue"):
        assert name in vars(client)
    for name in ("_process_op_err", "_process_info", "connect", "close", "max_payload", "discovered_servers"):
        assert hasattr(Client, name)
    assert "_io_writer" in inspect.getsource(TcpTransport)
    source = inspect.getsource(nats.aio.client)
    assert source.count("self._ps.") == source.count("self._ps.parse(") + source.count("self._ps.reset(")


def test_the_status_of_a_message_is_read_from_its_headers() -> None:
    """Number and words; ordinary headers have none."""
    assert status_of(b"NATS/1.0 404 No Messages\r\n\r\n") == (404, "No Messages")
    assert status_of(b"NATS/1.0 503\r\n\r\n") == (503, "")
    assert status_of(b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1\r\n\r\n") == (100, "Idle Heartbeat")
    assert status_of(b"NATS/1.0\r\nA: 404\r\n\r\n") == (0, "")
    assert status_of(b"") == (0, "")


@pytest.mark.parametrize("header", [{"A\r\nB": "c"}, {"A": "b\r\nC: d"}, {"": "x"}, {"A B": "c"}, {"A:": "b"}])
def test_a_header_cannot_smuggle_another(header: dict[str, str]) -> None:
    """Names are tokens, values one line."""
    with pytest.raises(ValueError, match="cannot be a NATS header"):
        header_block(header)
