"""`evsync nats`: a NATS server of one's own, and what services must be permitted to do at another."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from evsync.cli.loading import load
from evsync.cli.options import Debug, Json
from evsync.cli.terminal import plain, print_json, reporting
from evsync.errors import ConfigurationError, ServerFailed
from evsync.jetstream.permissions import configuration, password_variable
from evsync.jetstream.server import LOG_NAME, EmbeddedServer
from evsync.operations.grants import grants_of

app = typer.Typer(name="nats")


@app.callback(invoke_without_command=True)
def nats(
    context: typer.Context,
    directory: Annotated[
        Path,
        typer.Option(
            "--dir", metavar="DIR", help="Where streams, log and configuration are kept; made if it is missing."
        ),
    ] = Path("nats-data"),
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")
    ] = 4222,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a NATS server with JetStream, until Ctrl-C.

    It is the real nats-server, for development and tests. Only this machine can reach it. What is in its directory
    stays there for the next time. With --json, one line tells url, dir and pid.

    \b
        evsync nats --dir data/nats
        evsync nats permissions shop.users:users shop.orders:orders
    """
    if context.invoked_subcommand is not None:
        return
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


@app.command()
def permissions(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="module:service",
            show_default=False,
            help="The Service objects, such as shop.users:users in shop/users.py: best all that share the server.",
        ),
    ],
    any_stream: Annotated[
        bool,
        typer.Option(
            "--any-stream",
            help="Permit streams of any name, so that a restored log needs no new permissions. Who reads one service's "
            "events may then read all of them.",
        ),
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Print the least NATS permissions that services need.

    They are a part of nats-server's configuration. Each service gets a user of its name. It may publish to its own
    subjects, read the streams that its projections and reactions follow, and get answers in its own inbox. With run=
    set to some of its parts, it gets what those need. The names of streams are read from the event stores, if there are
    any yet. Nothing is changed.

    \b
        evsync nats permissions shop.users:users shop.orders:orders
    """
    with reporting(debug):
        grants = asyncio.run(grants_of([load(target) for target in targets], any_stream=any_stream))
        if json:
            for grant in grants:
                print_json(asdict(grant))
            return
        names = ", ".join(password_variable(grant.user) for grant in grants)
        sys.stdout.write(
            "# Printed by `evsync nats permissions`: a part of nats-server's configuration.\n"
            f"# The server takes the passwords from its environment: {plain(names)}\n{configuration(grants)}\n"
        )


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
