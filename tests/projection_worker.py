"""A process that works on the ledger's projection until it is ended: `python -m tests.projection_worker URL …`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence

import sqlalchemy as sa

from evsync import liveness
from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.settings import NatsSettings
from evsync.jetstream.source import JetStreamSource
from evsync.ports import LogReader, LogSource
from evsync.projections import Event, ProjectionRunner, Tables, ViewsDatabase
from evsync.records import StoredEvent
from tests.projection_logs import Ledger, ListReader, ListSource, Paid, bank_events


class SlowSource(ListSource):
    """A log whose reader takes its time."""

    def __init__(self, service: str, events: list[StoredEvent], pace_s: float) -> None:
        super().__init__(service, events)
        self.pace_s = pace_s

    async def readers(self) -> Sequence[LogReader]:
        return [SlowReader(self)]


class SlowReader(ListReader):
    """Implements LogReader."""

    def __init__(self, source: SlowSource) -> None:
        super().__init__(source)
        self._pace_s = source.pace_s

    async def read(self, after: int, limit: int, timeout_s: float) -> list[StoredEvent]:
        await asyncio.sleep(self._pace_s)
        return await super().read(after, limit, timeout_s)


class StoppingLedger(Ledger):
    """A ledger that stops its own process once, in the middle of the transaction of a payment at some position."""

    stop_at = 0

    def paid(self, e: Event[Paid], db: Tables) -> None:
        if e.position.number == self.stop_at:
            self.stop_at = 0
            db.execute(sa.select(1))
            os.kill(os.getpid(), signal.SIGSTOP)
        super().paid(e, db)


async def work(arguments: argparse.Namespace) -> None:
    """Follow a log that everybody can compute, or one on NATS, until SIGTERM."""
    source: LogSource = SlowSource("bank", bank_events(arguments.events, arguments.seed), arguments.pace_ms / 1_000)
    conn = await Connection.open(NatsSettings(arguments.nats), "worker") if arguments.nats else None
    if conn is not None:
        source = JetStreamSource(conn, "bank")
    views = ViewsDatabase(arguments.url)
    ledger = StoppingLedger(bad=arguments.bad, retries=0, then="park")
    ledger.stop_at, liveness.IDLE_S = arguments.stop_at, arguments.idle_s
    runner = ProjectionRunner(
        ledger.projection, views, [source], batch=arguments.batch, lease_s=arguments.lease_ms / 1_000
    )
    await runner.open()
    running = asyncio.create_task(runner.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await runner.close()
    await views.close()
    if conn is not None:
        await conn.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    for name in ("events", "seed", "batch", "lease-ms", "pace-ms"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--nats", default="")
    parser.add_argument("--stop-at", type=int, default=0)
    parser.add_argument("--idle-s", type=int, default=liveness.IDLE_S)
    parser.add_argument("--bad", type=int, nargs="*", default=[])
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    asyncio.run(work(parser.parse_args()))
