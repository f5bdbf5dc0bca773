"""A web application's eight processes, each with the whole service in it: they relay and project nowhere, or once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from evsync.jetstream.server import EmbeddedServer
from tests.command_line import PATIENCE_S, ROOT, Shop, until

PROCESSES, EACH = 8, 5
SERVICE = "tests.cli_shop:stock"

# As a web server that loads its application before it forks: what a process opens, it opens by itself.
APPLICATION = """
import asyncio, os, sys
from tests.cli_shop import stock
from tests.command_line import item

async def serve(name):
    async with stock.lifespan(None):
        for n in range(int(sys.argv[2])):
            await stock.save(item(f"{name}-{n}", 5))
        os.write(1, b"saved\\n")
        await asyncio.to_thread(os.read, 0, 1)  # its end is where the server stops

forked = []
for n in range(int(sys.argv[1])):
    forked.append(os.fork())
    if not forked[-1]:
        asyncio.run(serve(f"{sys.argv[3]}-{n}"))
        os._exit(0)
os._exit(max(os.waitpid(pid, 0)[1] for pid in forked) != 0)
"""


@contextmanager
def web(shop: Shop, name: str, **environment: str) -> Iterator[None]:
    """The processes, after each has saved what it was asked to; ended as a server ends them."""
    words = [sys.executable, "-c", APPLICATION, f"{PROCESSES}", f"{EACH}", name]
    process = subprocess.Popen(
        words, cwd=ROOT, env=shop.environment | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(PROCESSES)]
        assert said == [b"saved\n"] * PROCESSES, process.communicate()[1].decode()
        yield
        _, errors = process.communicate(b"", timeout=PATIENCE_S)
        assert (process.returncode, errors.decode()) == (0, "")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("run", ["none", "all"])
def test_eight_web_processes_relay_and_project_nowhere_or_once(
    tmp_path: Path, nats_server: EmbeddedServer, run: str
) -> None:
    """With run=none all is left to a worker; without it, stream, read model and answers are those of one process."""
    shop = Shop(tmp_path, nats_server.url)
    items = PROCESSES * EACH

    def settled() -> bool:
        [found] = shop.json("status", SERVICE)
        own = found["logs"]["stock.main"]
        lags = [at["lag"] for f in found["followers"] for at in f["logs"]]
        return own["head"] == 2 * items and own["relay"]["lag"] == 0 and lags == [0, 0]

    with web(shop, run, EVSYNC_STOCK_RUN=run):
        if run == "none":
            [found] = shop.json("status", SERVICE)
            own = found["logs"]["stock.main"]
            assert (own["head"], own["relay"]["reason"]) == (items, "no relay has made the stream yet")
            assert [at["position"] for f in found["followers"] for at in f["logs"]] == [0, 0]
            with shop.running("run", SERVICE):
                until(settled, "the worker does not do it all")
        else:
            until(settled, "the processes do not do it all")
    shelves = shop.json("tail", SERVICE, "--type", "stock.Shelf.Built")
    assert len({e["stream"] for e in shelves}) == len(shelves) == items
    assert shop.json("verify", SERVICE)[0]["ok"]
    assert shop.json("stream", "check", SERVICE)[0]["ok"]
