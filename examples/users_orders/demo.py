"""The demo: a nats-server and both services as processes of their own, and eighteen months of a music shop's orders."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from evsync import Position
from evsync.jetstream.server import EmbeddedServer
from examples.users_orders.purchases import Malformed, Purchase, read

SAMPLE = Path(__file__).parent / "data" / "cdnow_sample.txt"
COMMANDS_PER_REQUEST = 500
REQUESTS_IN_FLIGHT = 4
PATIENCE_S = 30.0
MADE_HERE = ("users.db", "users-*.db", "orders.db", "orders_view.db")
USERS = "examples.users_orders.users:users"
MARK = ".users_orders_demo"


class DemoFailed(Exception):
    """The demo cannot go on; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Result:
    """What the demo did."""

    users: int
    orders: int
    events: int
    seconds: float
    events_per_second: float


def run(data: Path, directory: Path, console: Console, shards: int = 1, *, grow: bool = False) -> tuple[Result, int]:
    """Run the demo on one file, in one directory. Returns what it did and how many lines could not be read.

    Users are spread over `shards` stores; with `grow` they begin in one, and the others join while customers register.
    """
    purchases: list[Purchase] = []
    malformed = 0
    try:
        with data.open(encoding="utf-8-sig", errors="replace") as lines:
            for found in read(lines):
                if isinstance(found, Malformed):
                    malformed += 1
                    console.print(
                        f"{data.name}:{found.line}: {found.reason}: {found.text[:80]!r}", style="yellow", markup=False
                    )
                else:
                    purchases.append(found)
    except OSError as e:
        raise DemoFailed(f"{data} cannot be read: {e.strerror or e}") from e
    _make_fresh(directory, console)
    with ExitStack() as stack:
        server = stack.enter_context(EmbeddedServer.start(directory / "nats"))
        console.print(f"nats-server listens on {server.url}, everything is stored in {directory}/", markup=False)
        place = f"sqlite:///{directory.resolve()}"
        stores = {"main": f"{place}/users.db", **{f"s{n}": f"{place}/users-s{n}.db" for n in range(2, shards + 1)}}
        where = {
            "EVSYNC_NATS": server.url, "EVSYNC_ORDERS_RUN": "relay,customers",
            "EVSYNC_USERS_STORE": json.dumps(stores) if shards > 1 else stores["main"],
            "EVSYNC_ORDERS_STORE": f"{place}/orders.db", "EVSYNC_ORDERS_VIEWS": f"{place}/orders_view.db",
        }  # fmt: skip
        users = stack.enter_context(_service("users", directory, where))
        orders = stack.enter_context(_service("orders", directory, where))
        joining = [_Joining(shard, where) for shard in stores if shard != "main"] if grow else []
        result = asyncio.run(_load(purchases, users, orders, joining, console))
    if shards > 1:
        shown = f"EVSYNC_USERS_STORE='{where['EVSYNC_USERS_STORE']}' evsync shards show {USERS}"
        console.print(f"What is where:  {shown}", markup=False, soft_wrap=True)
    return result, malformed


def _make_fresh(directory: Path, console: Console) -> None:
    mark = directory / MARK
    try:
        directory.mkdir(parents=True, exist_ok=True)
        found = [path.name for name in (*MADE_HERE, "nats") for path in directory.glob(name)]
        if found and not mark.exists():
            raise DemoFailed(f"{directory} holds {', '.join(found)}, which this demo did not make: give another --dir")
        if found:
            console.print("Removing what the last run left.", style="dim")
        for name in MADE_HERE:
            for path in directory.glob(name + "*"):
                path.unlink()
        shutil.rmtree(directory / "nats", ignore_errors=True)
        mark.touch()
    except OSError as e:
        raise DemoFailed(f"{directory} cannot be used: {e.strerror or e}; give another --dir") from e


@contextmanager
def _service(name: str, directory: Path, environment: dict[str, str]) -> Iterator[str]:
    """One service as a process of its own, stopped at the end. Gives its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    with listener:
        port = listener.getsockname()[1]
        log = directory / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "examples.users_orders", name, "--fd", str(listener.fileno())],
                env=os.environ | environment,
                pass_fds=[listener.fileno()],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the demo alone, which then ends them in order
            )
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + PATIENCE_S
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise DemoFailed(
                        f"the {name} service did not start; its log {log} ends:\n{log.read_text()[-2000:]}"
                    )
                time.sleep(0.02)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url + "/openapi.json", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


@dataclass(frozen=True, slots=True)
class _Joining:
    """A shard that users gets while it is written to, by the command that its operator would give."""

    shard: str
    environment: Mapping[str, str]

    async def leave(self) -> None:
        """Take the shard's slots away, as long as nothing is in them: it has not joined then."""
        await self.end(await self.begin("drain"))

    async def begin(self, what: str = "add") -> asyncio.subprocess.Process:
        """Begin to move slots; returns when the plan is made."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "evsync.cli", "shards", what, USERS, self.shard),
            env=os.environ | self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert process.stdout is not None
        await process.stdout.readline()
        return process

    async def end(self, process: asyncio.subprocess.Process) -> None:
        """Wait until they have moved."""
        said, _ = await process.communicate()
        if process.returncode:
            raise DemoFailed(f"the slots of shard {self.shard} could not be moved: {said.decode()}")


async def _load(
    purchases: Sequence[Purchase], users_url: str, orders_url: str, joining: Sequence[_Joining], console: Console
) -> Result:
    numbers = sorted({p.customer for p in purchases})
    async with (
        httpx.AsyncClient(base_url=users_url, timeout=60) as users,
        httpx.AsyncClient(base_url=orders_url, timeout=60) as orders,
    ):
        for shard in joining:
            await shard.leave()
        began = time.monotonic()
        people = [{"name": f"Customer {n}", "email": f"customer{n}@example.org"} for n in numbers]
        with _progress(console) as bar:
            answers, registered = await _register(users, people, joining, bar("Registering customers", len(people)))
            ids = dict(zip(numbers, (id for answer in answers for id in answer), strict=True))
            bodies = [
                {"customer_id": ids[p.customer], "cds": p.cds, "price_cents": p.price_cents, "on": p.on.isoformat()}
                for p in purchases
            ]
            _, placed = await _send(orders, "/orders/bulk", bodies, bar("Placing orders", len(bodies)), "customer_id")
            written = _last((*registered, *placed))
            await _until_current(orders, written, bar("Projecting events", sum(p.number for p in written)))
        seconds = time.monotonic() - began
        if written:
            await _read_ones_own_writes(orders, ids[numbers[0]], written, console)
    events = len(people) + len(bodies)  # one each
    return Result(len(numbers), len(bodies), events, round(seconds, 3), round(events / seconds, 1))


async def _register(
    users: httpx.AsyncClient, people: Sequence[Any], joining: Sequence[_Joining], advance: Callable[[int], None]
) -> tuple[list[Any], list[Position]]:
    """Register everybody: a part beforehand, one while each shard joins, and a part when all have."""
    size = -(-len(people) // (len(joining) + 2)) if joining else len(people)
    answers, positions = await _send(users, "/users/bulk", people[:size], advance)
    for n, shard in enumerate(joining, 1):
        moving = await shard.begin()
        more, later = await _send(users, "/users/bulk", people[n * size : (n + 1) * size], advance)
        await shard.end(moving)
        answers, positions = answers + more, _last((*positions, *later))
    more, later = await _send(users, "/users/bulk", people[(len(joining) + 1) * size :], advance)
    return answers + more, _last((*positions, *later))


def _last(positions: Iterable[Position]) -> list[Position]:
    """The last position of each log."""
    return list({p.log: p for p in sorted(positions, key=lambda p: p.number)}.values())


async def _send(
    client: httpx.AsyncClient, path: str, commands: Sequence[Any], advance: Callable[[int], None], of: str = "email"
) -> tuple[list[Any], list[Position]]:
    """All commands, in requests of a few hundred, some of them in flight. Answers in order, and the logs' positions.

    Neighbours that agree in the field `of` are sent together, for only so are they saved in their order.
    """
    slots = asyncio.Semaphore(REQUESTS_IN_FLIGHT)

    async def one(part: Sequence[Any]) -> tuple[Any, list[Position]]:
        async with slots:
            reply = await client.post(path, json=part)
        if reply.status_code != 201:
            raise DemoFailed(f"{path} answered {reply.status_code}: {reply.text[:500]}")
        advance(len(part))
        return reply.json(), [Position.parse(text) for text in reply.headers["Position"].split(",")]

    parts: list[list[Any]] = []
    for command in commands:
        if not parts or (len(parts[-1]) >= COMMANDS_PER_REQUEST and command[of] != parts[-1][-1][of]):
            parts.append([])
        parts[-1].append(command)
    replies = await asyncio.gather(*map(one, parts))
    return [answer for answer, _ in replies], _last(p for _, positions in replies for p in positions)


async def _until_current(
    orders: httpx.AsyncClient, written: Sequence[Position], advance: Callable[[int], None]
) -> None:
    """Watch the projection come to these positions."""
    done, deadline = 0, time.monotonic() + PATIENCE_S
    while True:
        status = (await orders.get("/status")).json()
        view = next(f for f in status["followers"] if f["name"] == "customers")
        logs = {at["log"]: at["position"] for at in view["logs"]}
        now = sum(min(logs.get(p.log, 0), p.number) for p in written)
        if view["state"] == "halted":
            raise DemoFailed(f"the projection has halted: {view['reason']}")
        if now > done:
            advance(now - done)
            done, deadline = now, time.monotonic() + PATIENCE_S
        if done == sum(p.number for p in written):
            return
        if time.monotonic() > deadline:
            raise DemoFailed(f"the read model stands still at {logs}: see the services' logs; status: {status}")
        await asyncio.sleep(0.05)


async def _read_ones_own_writes(
    orders: httpx.AsyncClient, id: str, written: Sequence[Position], console: Console
) -> None:
    for position in written:  # one of each log: the header takes any
        reply = await orders.get(f"/customers/{id}", headers={"Position": str(position)})
        if reply.status_code != 200:
            raise DemoFailed(f"orders does not show what was written up to {position}: {reply.text[:500]}")
        console.print(f"GET /customers/{id} with Position: {position} -> {reply.json()['name']!r}", markup=False)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """Gives a function that begins a bar and answers the function that advances it."""
    columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:

        def begin(what: str, total: int) -> Callable[[int], None]:
            task = bars.add_task(what, total=total)
            return lambda n: bars.advance(task, n)

        yield begin


def report(result: Result, view: Path, console: Console) -> None:
    """The final tables."""
    with sqlite3.connect(f"file:{view}?mode=ro", uri=True) as db:
        best = db.execute(
            "SELECT name, orders, cds, spent_cents, last_order_on FROM customers "
            "ORDER BY spent_cents DESC, name LIMIT 5"
        ).fetchall()
    table = Table(title="What orders knows of its best customers, whose names only users owns", title_justify="left")
    for column in ("customer", "orders", "CDs", "spent", "last order"):
        table.add_column(column, justify="left" if column in ("customer", "last order") else "right")
    for name, count, cds, cents, on in best:
        table.add_row(name, str(count), str(cds), f"${cents / 100:,.2f}", on)
    console.print(table)
    console.print(
        f"{result.users:,} customers and {result.orders:,} orders: {result.events:,} events saved, relayed and "
        f"projected in {result.seconds:.1f} s ({result.events_per_second:,.0f} a second).",
        style="bold",
    )
