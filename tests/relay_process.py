"""A process that only relays: `python -m tests.relay_process STORE URL`, to be killed and paused by tests."""

from __future__ import annotations

import asyncio
import sys

from evsync.jetstream.client.connection import Connection
from evsync.jetstream.client.settings import NatsSettings
from evsync.jetstream.relay import Relay, RelayPolicy
from evsync.stores.sqlite.store import SqliteStore
from tests.relaying import QUICK


async def main(path: str, url: str) -> None:
    """Relay until killed; prints a line once the relay is about to start."""
    log = await SqliteStore.open(path, service="users", create=False)
    conn = await Connection.open(NatsSettings(url), "users")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await Relay(log, conn, RelayPolicy(**QUICK)).run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
