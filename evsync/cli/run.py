"""`evsync run`: a service without an application around it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from evsync.cli.loading import load
from evsync.cli.options import Debug, Target
from evsync.cli.terminal import plain, reporting
from evsync.config import Deployment
from evsync.errors import ConfigurationError, redacted
from evsync.runtime import Runtime
from evsync.service import Service


def run(
    target: Target,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Run this part alone: relay, backup, or one by its name. May be repeated."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Run the parts of a service, until Ctrl-C or SIGTERM.

    Its parts are the relay, which publishes its log to NATS, its projections and reactions, and its backups. The
    service is opened with its settings from the environment (EVSYNC_<SERVICE>_STORE, EVSYNC_NATS, ...). What is under
    way is brought to its end before the process ends. The exit code is 0 after a signal, 1 when a part has halted, and
    2 when the settings are wrong.

    \b
        evsync run shop.orders:orders
        evsync run shop.orders:orders --only relay --only customers
    """
    # Before serve() takes the signals over, there is nothing under way: SIGTERM ends the process as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with reporting(debug, log_level=logging.WARNING), contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(load(target), only or ()))


async def _run(service: Service, only: Sequence[str]) -> None:
    names = [name.strip() for given in only for name in given.split(",")]
    overrides: Deployment = {"run": names} if names else {}
    async with service.open(**overrides):
        runtime = service.runtime
        parts = _parts(runtime)
        if not parts:
            relay = "" if runtime.connection is not None else ", and without a NATS server (EVSYNC_NATS) no relay"
            raise ConfigurationError(
                f"service {service.name!r} has nothing to run: its settings (run={runtime.settings['run']!r}) leave no "
                f"projection and no reaction{relay}"
            )
        broker = f"NATS {runtime.connection.settings.shown}" if runtime.connection is not None else "no NATS server"
        given = runtime.settings["store"]
        stores = ", ".join(map(redacted, [given] if isinstance(given, str) else given.values()))
        where = f"store {stores}, {broker}"
        sys.stdout.write(plain(f"{service.name} runs {', '.join(parts)}; {where}") + "\n")
        sys.stdout.flush()
        await service.serve()


def _parts(runtime: Runtime) -> list[str]:
    own = ["relay"] if runtime.relays else []
    if runtime.backups:
        own.append("backup")
    followers = [*runtime.projections, *runtime.reactions]
    return own + [name for name in followers if name in runtime.running]
