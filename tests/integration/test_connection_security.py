"""Who may connect, what they may do, and that no secret is ever shown."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from nats.errors import Error as NatsError

from evsync.errors import BrokerRefused, BrokerUnavailable, ConfigurationError
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.settings import NatsSettings
from evsync.jetstream.server import EmbeddedServer
from tests.relaying import connected, eventually

pytestmark = pytest.mark.anyio

SECRET = "geh@im/:%"
ENCODED = "geh%40im%2F%3A%25"


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server with one user, who may do little."""
    config = f"""authorization {{ users: [ {{ user: "u@x", password: "{SECRET}", permissions: {{
        publish: ["open.>"], subscribe: ["_INBOX_users.>", "open.>"] }} }} ] }}"""
    with EmbeddedServer.start(tmp_path, extra_config=config) as server:
        yield server


def at(server: EmbeddedServer, userinfo: str) -> str:
    """The server's URL with user and password."""
    return server.url.replace("nats://", f"nats://{userinfo}@")


async def test_a_user_with_a_password_in_the_url(guarded: EmbeddedServer) -> None:
    """Percent-encoded, so that any password will do."""
    async with connected(at(guarded, f"u%40x:{ENCODED}")) as conn:
        assert conn.epoch == 1


@pytest.mark.parametrize("userinfo", ["u%40x:wrong-geheim", "token-geheim"])
async def test_a_refused_login_is_told_without_the_secret(
    guarded: EmbeddedServer, userinfo: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither in the error, nor in the log, nor in any repr."""
    async with await Connection.open(NatsSettings(at(guarded, userinfo)), "users") as conn:
        await eventually(lambda: conn.problem and "Authorization Violation" in conn.problem, "the refusal")
        with pytest.raises(BrokerUnavailable, match="Authorization Violation") as error:
            await conn.ready(0.01)
        shown = f"{error.value!r} {error.value} {conn!r} {conn.settings!r} {conn.settings} {caplog.text}"
        assert "geheim" not in shown
        assert guarded.url in shown


async def test_each_problem_of_a_connection_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """A refused login shows now as what the server says, now as a connection that was reset: it stays the problem."""
    async with await Connection.open(NatsSettings("nats://127.0.0.1:1"), "users") as conn:
        for _ in range(3):
            conn._note(NatsError("'Authorization Violation'"))
            conn._note(ConnectionResetError(104, "Connection reset by peer"))
        assert "Authorization Violation" in str(conn.problem)
        conn._note(TimeoutError())  # something else listens there, and waits
    for words in ("Authorization Violation", "Connection reset by peer", "nobody answers there as a NATS server does"):
        assert caplog.text.count(words) == 1


async def test_a_forbidden_request_fails_at_once(guarded: EmbeddedServer) -> None:
    """The server only reports it in passing; the request would time out."""
    async with connected(at(guarded, f"u%40x:{ENCODED}")) as conn:
        told: list[str] = []
        conn.on_violation(told.append)
        with pytest.raises(BrokerRefused, match="Permissions Violation") as refused:
            await conn.request("closed.door", timeout_s=3600)
        assert refused.value.code == 403
        conn.subscribe("closed.too", lambda *_: None)
        await eventually(lambda: len(told) == 2, "the second violation")
        assert '"closed.too"' in told[1]
        assert conn.epoch == 1


async def test_a_token_in_the_url(tmp_path: Path) -> None:
    """What stands before '@' without a colon."""
    with EmbeddedServer.start(tmp_path, extra_config=f'authorization {{ token: "{SECRET}" }}') as server:
        async with connected(at(server, ENCODED)) as conn:
            assert conn.epoch == 1


def certificates(directory: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "evsync test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (directory / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return directory / "cert.pem", directory / "key.pem"


async def test_tls_is_verified(tmp_path: Path) -> None:
    """With the right certificate authority it connects, and again after a restart; without it never does."""
    cert, key = certificates(tmp_path)
    config = f'tls {{ cert_file: "{cert}", key_file: "{key}", ca_file: "{cert}", verify: true }}'
    with EmbeddedServer.start(tmp_path / "nats", extra_config=config) as server:
        url = server.url.replace("nats://", "tls://")
        async with await Connection.open(NatsSettings(url, ca=cert, certificate=cert, key=key), "users") as conn:
            await conn.ready(10)
            assert (await conn.request("$JS.API.INFO", timeout_s=5)).body
            server.kill()
            await eventually(lambda: not conn.connected, "the loss noticed")
            server.restart()
            await conn.ready(10)
        async with await Connection.open(NatsSettings(url), "users") as conn:
            await eventually(lambda: conn.problem and "certificate verify failed" in conn.problem, "the refusal")
            assert not conn.connected


async def test_a_server_without_tls_is_refused_if_the_url_asks_for_it(nats_server: EmbeddedServer) -> None:
    """Before the password is sent: nats-py would send it in the clear."""
    url = nats_server.url.replace("nats://", "tls://u:p@")
    async with await Connection.open(NatsSettings(url), "users") as conn:
        await eventually(lambda: "does not use TLS" in (conn.problem or ""), "the refusal")
        assert conn.epoch == 0


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "is not the URL"),
        ("http://127.0.0.1:4222", "has the scheme 'http'"),
        ("ws://127.0.0.1:4222", "has the scheme 'ws'"),
        ("nats://", "is not the URL"),
        ("nats://host:port", "is not the URL"),
        ("nats://host:99999", "is not the URL"),
        ("nats://host:0", "is not the URL"),
        ("nats://ho st", "is not the URL"),
        ("nats://host\r\nPUB a 0", "is not the URL"),
        ("nats://host/path", "is not the URL"),
        ("nats://host?x=1", "is not the URL"),
        ("nats://one,,nats://two", "is not the URL"),
        ("nats://a:geheim@one,nats://b:geheim@two", "name different users"),
        ("nats://a:geheim@[::1", "is not the URL"),
        ("http://a:geheim@host", "has the scheme"),
    ],
)
def test_a_wrong_url_is_refused_when_it_is_written(url: str, says: str) -> None:
    """With what is wrong, an example, and no password."""
    with pytest.raises(ConfigurationError, match=says) as error:
        NatsSettings(url)
    assert "geheim" not in f"{error.value} {error.value.__context__} {error.value.__cause__}"


@pytest.mark.parametrize(
    ("url", "servers"),
    [
        ("localhost", ["nats://localhost:4222"]),
        ("localhost:4333", ["nats://localhost:4333"]),
        ("nats://u:p@one, tls://two:1", ["nats://one:4222", "tls://two:1"]),
        ("nats://[::1]:4333", ["nats://[::1]:4333"]),
    ],
)
def test_urls_as_people_write_them(url: str, servers: list[str]) -> None:
    """Scheme and port may be left out; several stand between commas."""
    settings = NatsSettings(url)
    assert settings.servers == servers
    assert repr(settings) == f"NatsSettings({','.join(servers)!r})"


def test_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    """Missing, incomplete, or not what they should be."""
    (tmp_path / "junk").write_text("junk")
    junk = tmp_path / "junk"
    with pytest.raises(ConfigurationError, match=r"ca=.* is not a file \(from the environment: EVSYNC_NATS_CA\)"):
        NatsSettings("localhost", ca=tmp_path / "nothing")
    with pytest.raises(ConfigurationError, match="belong together"):
        NatsSettings("localhost", certificate=junk)
    with pytest.raises(ConfigurationError, match="cannot be used") as error:
        NatsSettings("localhost", ca=junk).tls_context()
    assert isinstance(error.value.__cause__, ssl.SSLError)
