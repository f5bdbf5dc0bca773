"""A process that works on the ledger's projection until it is killed: `python -m tests.projection_worker FILE …`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys

from evsync.projections import ProjectionRunner, ViewsDatabase
from tests.projection_logs import Ledger, ListSource, bank_events


async def work(arguments: argparse.Namespace) -> None:
    """Follow a log that everybody can compute."""
    source = ListSource("bank", bank_events(arguments.events, arguments.seed))
    views = ViewsDatabase(f"sqlite:///{arguments.file}")
    runner = ProjectionRunner(
        Ledger().projection, views, [source], batch=arguments.batch, lease_s=arguments.lease_ms / 1_000
    )
    await runner.open()
    await runner.run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    for name in ("events", "seed", "batch", "lease-ms"):
        parser.add_argument(f"--{name}", type=int, required=True)
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    asyncio.run(work(parser.parse_args()))
