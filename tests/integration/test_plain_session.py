"""With a nats-py that the quick way was not tested with, its own calls carry everything: slower, and no less right."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import inspect
import json
import logging
import ssl
from functools import partial
from pathlib import Path

import nkeys
import pytest

from evsync.errors import BrokerRefused, BrokerUnavailable
from evsync.jetstream.client import plain_session, quick_session, session
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.frames import header_block
from evsync.jetstream.client.plain_session import PlainSession, block_of
from evsync.jetstream.client.quick_session import QuickSession
from evsync.jetstream.client.settings import NatsSettings
from evsync.jetstream.consumer import JetStreamReader
from evsync.jetstream.server import EmbeddedServer
from evsync.jetstream.store.store import JetStreamStore
from evsync.jetstream.stream_settings import stream_name
from evsync.testing.contracts.samples import one, whole_log
from tests.integration.test_connection_security import at, certificates, guarded  # noqa: F401  (a fixture)
from tests.relaying import assert_mirrored, caught_up, connected, eventually, new_log, relaying, save

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def another_nats_py(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a version were installed that nobody has tried."""
    monkeypatch.setattr(quick_session, "INSTALLED", "2.99.0")


async def test_the_quick_way_is_for_tested_versions_only(
    nats_server: EmbeddedServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warning says which those are, and no private name of nats-py is touched."""
    async with connected(nats_server.url) as conn:
        assert isinstance(conn._session, PlainSession)
    assert "nats-py 2.99.0 is none that this version of evsync was tested with" in caplog.text
    assert "client._" not in inspect.getsource(plain_session) + inspect.getsource(session)
    caplog.clear()
    monkeypatch.setattr(quick_session, "INSTALLED", next(iter(quick_session.TESTED)))
    async with connected(nats_server.url) as conn:
        assert isinstance(conn._session, QuickSession)
    assert "nats-py" not in caplog.text


async def test_relay_reader_and_store_work_by_it(nats_server: EmbeddedServer) -> None:
    """A log of some thousand events is mirrored, read back and compared; and read whole, in order; a store keeps its
    laws; all of it over a restart of the server."""
    log = new_log()
    last = await save(log, 2_500)
    async with connected(nats_server.url) as conn, relaying(log, conn) as relay:
        await caught_up(relay, last)
        nats_server.restart()
        last = await save(log, 10)
        await caught_up(relay, last)
        await assert_mirrored(log, conn)
        reader = JetStreamReader(conn, stream_name(log.identity), log.identity.name, log.identity.incarnation)
        read = 0
        while read < last:
            events = await reader.read(read, 500, 5.0)
            assert [e.position for e in events] == list(range(read + 1, read + 1 + len(events)))
            assert events, f"nothing after {read}"
            read += len(events)
        await reader.close()
    store = await JetStreamStore.open(f"{nats_server.url}/?stream=kept", service="orders")
    try:
        commits = [one(f"stream {n}.*>", events=2, expected_version=0) for n in range(20)]
        renamed = [c._replace(appends=[a._replace(events=[e._replace(type="orders.Order.Placed") for e in a.events])
                   for a in c.appends]) for c in commits]  # fmt: skip
        assert await store.append(renamed) == list(range(2, 41, 2))
        assert len(await whole_log(store)) == 40
        assert len(await store.read_stream("stream 7.*>")) == 2
    finally:
        await store.close()


async def test_messages_come_as_they_were_sent(nats_server: EmbeddedServer) -> None:
    """Subject, reply, headers and body, whichever way they are sent and received; nobody listening is a status."""
    sent = [
        ("a.b", "", b"", b""),
        ("a.b", "re.ply", b"", b"\r\nMSG a 1 0\r\n\r\n"),
        ("a.b", "", header_block({"ce-id": "1: 2", "Nats-Expected-Stream": "x", "evsync-meta": '{"a":"b"}'}), b"x"),
        ("a.b", "re", header_block({"a": ""}), bytes(range(256)) * 200),
    ]
    expected = sorted((s.encode(), r.encode(), h, b) for s, r, h, b in sent)
    async with connected(nats_server.url) as plain:
        quick_session.INSTALLED, other = next(iter(quick_session.TESTED)), quick_session.INSTALLED
        async with connected(nats_server.url, "other") as quick:
            quick_session.INSTALLED = other
            for sender in (plain, quick):
                received: dict[str, list[tuple[bytes, ...]]] = {"plain": [], "quick": [], "inbox": []}
                inbox = plain.inbox()
                subscriptions = [
                    plain.subscribe("a.*", lambda *m, to=received["plain"]: to.append(m)),
                    quick.subscribe("a.>", lambda *m, to=received["quick"]: to.append(m)),
                    plain.subscribe(f"{inbox}.*", lambda *m, to=received["inbox"]: to.append(m)),
                ]
                for conn in (plain, quick):  # the subscriptions are at the server
                    with pytest.raises(BrokerUnavailable, match="nobody answers"):
                        await conn.request("nobody.here", timeout_s=5)
                for message in sent:
                    sender.publish(*message)
                for n in range(300):
                    sender.publish(f"{inbox}.{n}", "", b"", b"")
                await eventually(lambda r=received: len(r["inbox"]) == 300, "the last message")
                await eventually(lambda r=received: len(r["quick"]) == len(r["plain"]) == len(sent), "all messages")
                assert sorted(received["plain"]) == sorted(received["quick"]) == expected
                assert [m[0] for m in received["inbox"]] == [f"{inbox}.{n}".encode() for n in range(300)]
                for subscription in subscriptions:
                    subscription.unsubscribe()


async def test_a_call_that_failed_does_not_keep_the_connection_open(nats_server: EmbeddedServer) -> None:
    """What was to be called behind it never is: who closes the connection does not wait for that."""
    async with connected(nats_server.url) as conn:
        found = conn._session
        assert isinstance(found, PlainSession)
        conn.publish("too.large", "", b"", bytes(found.client.max_payload + 1))
        while not found.lost.done():  # whoever keeps the connection has not heard of it yet
            await asyncio.sleep(0)
        await conn.close()
    assert found.client.is_closed


def test_headers_are_written_again_as_the_server_wrote_them() -> None:
    """The status line, and what the server adds behind the message's own, in whatever order nats-py has them."""
    assert block_of(None) == b""
    assert block_of({"Status": "404", "Description": "No Messages"}) == b"NATS/1.0 404 No Messages\r\n\r\n"
    assert block_of({"Status": "100"}) == b"NATS/1.0 100\r\n\r\n"
    shuffled = {"Nats-Sequence": "7", "ce-id": "1", "Nats-Stream": "s", "Nats-Expected-Stream": "s"}
    assert block_of(shuffled) == (
        b"NATS/1.0\r\nce-id: 1\r\nNats-Stream: s\r\nNats-Sequence: 7\r\nNats-Expected-Stream: s\r\n\r\n"
    )


async def test_what_is_forbidden_fails_at_once_here_too(guarded: EmbeddedServer) -> None:  # noqa: F811
    """nats-py tells it in small letters, to an error handler."""
    async with connected(at(guarded, "u%40x:geh%40im%2F%3A%25")) as conn:
        with pytest.raises(BrokerRefused, match=r'Permissions Violation for publish to "closed\.door"'):
            await conn.request("closed.door", timeout_s=3600)
        assert conn.epoch == 1


async def test_no_login_goes_to_a_server_without_tls_here_neither(
    nats_server: EmbeddedServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With one, it connects; without, neither password nor token is sent, nor is it used without a login."""
    caplog.set_level(logging.DEBUG)
    for login in ("u:p@", "token@", ""):
        url = nats_server.url.replace("nats://", f"tls://{login}")
        async with await Connection.open(NatsSettings(url), "users") as conn:
            await eventually(lambda conn=conn: "does not use TLS" in (conn.problem or ""), "the refusal")
            assert conn.epoch == 0
    cert, key = certificates(tmp_path)
    config = f'tls {{ cert_file: "{cert}", key_file: "{key}" }}\nauthorization {{ token: "secret" }}'
    with EmbeddedServer.start(tmp_path / "nats", extra_config=config) as server:
        url = f"tls://secret@{server.url.partition('://')[2]}"
        async with await Connection.open(NatsSettings(url, ca=cert), "users") as conn:
            await conn.ready(10)
            assert (await conn.request("$JS.API.INFO", timeout_s=5)).body


async def test_no_credentials_go_to_a_server_without_tls_here_neither(tmp_path: Path) -> None:
    """Not even a signature, which somebody in between could pass on; over TLS the same file is sent."""
    seed = nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER).decode()
    file = tmp_path / "user.creds"
    file.write_text(
        "-----BEGIN NATS USER JWT-----\na.b.c\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
    cert, key = certificates(tmp_path)
    for tls in (False, True):
        sent: list[bytes] = []
        async with await asyncio.start_server(
            partial(_offer_nonce, sent, (cert, key) if tls else None), "127.0.0.1", 0
        ) as server:
            port = server.sockets[0].getsockname()[1]
            settings = NatsSettings(f"tls://127.0.0.1:{port}", credentials=file, ca=cert)
            async with await Connection.open(settings, "users") as conn:
                if tls:
                    await eventually(lambda sent=sent: sent, "a login")
                    login = json.loads(sent[0].removeprefix(b"CONNECT "))
                    assert login["jwt"] == "a.b.c"
                    signed = nkeys.from_seed(bytearray(seed.encode())).sign(b"N0NCE")
                    assert base64.b64decode(login["sig"]) == signed
                else:
                    await eventually(lambda conn=conn: "does not use TLS" in (conn.problem or ""), "the refusal")
                    assert sent == []


async def _offer_nonce(
    sent: list[bytes], files: tuple[Path, Path] | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """What a server does that asks for a signature, and keeps what it is sent."""
    info = {"server_id": "x", "max_payload": 1024, "headers": True, "nonce": "N0NCE", "auth_required": True}
    writer.write(b"INFO " + json.dumps(info | {"tls_required": files is not None}).encode() + b"\r\n")
    with contextlib.suppress(ConnectionError):
        if files is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*files)
            await writer.start_tls(context)
        if line := await reader.readline():
            sent.append(line)
    writer.close()
