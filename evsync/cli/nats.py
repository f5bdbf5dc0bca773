"""`evsync nats`: a NATS server of one's own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from evsync.cli.options import Debug, Json
from evsync.cli.terminal import print_json, reporting
from evsync.errors import ConfigurationError, ServerFailed
from evsync.jetstream.server import LOG_NAME, EmbeddedServer


def nats(
    directory: Annotated[
        Path, typer.Option("--dir", help="Where streams, log and configuration are kept; made if it is missing.")
    ] = Path("nats-data"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 4222,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a NATS server with JetStream, until Ctrl-C.

    It is the real nats-server, for development and tests. Only this machine can reach it. What is in its directory
    stays there for the next time. With --json, one line tells url, dir and pid.

    \b
        evsync nats --dir data/nats
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with reporting(debug), _server(directory, port) as server:
        if json:
            print_json({"url": server.url, "dir": str(server.store_dir), "pid": server.pid}, flush=True)
        else:
            sys.stdout.write(
                f"NATS with JetStream at {server.url}, data in {directory}{os.sep} (Ctrl-C ends it)\n"
                f"Tell the services:  export EVSYNC_NATS={server.url}\n"
            )
            sys.stdout.flush()
        while not stop.wait(0.2):
            if not server.running:
                raise ServerFailed(f"nats-server ended by itself; its log is {directory / LOG_NAME}")


def _server(directory: Path, port: int) -> contextlib.AbstractContextManager[EmbeddedServer]:
    if port:
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError as e:
            raise ConfigurationError(
                f"port {port} of 127.0.0.1 cannot be used ({os.strerror(e.errno or 0)}). If a NATS server listens "
                f"there already, use it: export EVSYNC_NATS=nats://127.0.0.1:{port}. Else choose another port: --port, "
                "where 0 takes a free one"
            ) from e
    try:
        return EmbeddedServer.start(directory, port=port or None)
    except OSError as e:
        raise ConfigurationError(
            f"directory {directory} cannot be used: {e.strerror or e}. Choose another: --dir"
        ) from e
