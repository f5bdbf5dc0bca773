"""Two services for fault tests, each a process of its own: a bank under load, and a desk that follows it.

    python -m tests.spine_services bank TAG    saves, many in flight, and writes down what was acknowledged
    python -m tests.spine_services desk        follows the bank: two read models and a reaction

Where they run comes from the environment, as for any service. A line on stdin that says `quiet` ends the load; the end
of stdin ends the process, so that none outlives its test. Lines on stdout:

    open                      the service is open
    ok TOKEN POSITION         that save was acknowledged
    failed TOKEN TYPE TEXT    that save was not
    quiet                     no save is in flight any more
    ended TYPE TEXT           `serve()` raised; the process then ends with code 1
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
from collections.abc import Callable

import sqlalchemy as sa

from evsync import (
    Aggregate,
    Conflict,
    Contract,
    Event,
    EvsyncError,
    NamedAggregate,
    Position,
    Projection,
    Reaction,
    Service,
    SqlModel,
    Tables,
    event,
)

ACCOUNTS = (
    "plain", "with.dots.", "*", ">", "with space", "zwei\r\nZeilen: evil", "üñï-✓-𝄞", "{tag}.a", "{tag}.b", "%2E",
    "x" * 512, "'; DROP TABLE accounts; --",
)  # fmt: skip
"""Ids that somebody has to escape: in subjects, header lines, SQL or URLs."""
WORKERS = 8
PAUSE_S = 0.005
"""Between two saves of a worker: a load, not a race for the disk."""
TRAIL = 1_000_003
FAILING_TOKEN = "SPINE_FAILING_TOKEN"
"""Environment variable: the desk's handler raises at the event with this token."""


class Account(NamedAggregate):
    """Money; every command of the load moves it so that the sum over all accounts stays zero."""

    @event("Opened")
    def __init__(self, id: str, owner: str) -> None:
        self.owner, self.balance = owner, 0

    @event("Moved")
    def move(self, amount: int, token: str) -> None:
        """Take or give."""
        self.balance += amount

    def turn_over(self, amount: int, token: str) -> None:
        """Give and take: two events of one commit."""
        self.move(amount, token)
        self.move(-amount, token)


class Note(Aggregate):
    """What the desk's reaction makes of some moves."""

    @event("Taken")
    def __init__(self, account: str, token: str) -> None:
        self.account, self.token = account, token


class AccountOpened(Contract, type="bank.Account.Opened"):
    """A new account."""

    owner: str


class AccountMoved(Contract, type="bank.Account.Moved"):
    """Money moved."""

    amount: int
    token: str


class NoteTaken(Contract, type="desk.Note.Taken"):
    """A note of the desk's own."""

    account: str


account_tables, trail_tables = sa.MetaData(), sa.MetaData()
accounts = sa.Table(
    "accounts",
    account_tables,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("owner", sa.String),
    sa.Column("balance", sa.Integer),
    sa.Column("moves", sa.Integer),
    sa.Column("notes", sa.Integer),
    sa.Column("version", sa.Integer),
)
trails = sa.Table(
    "trails",
    trail_tables,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("trail", sa.Integer, nullable=False),
)
STEP = sa.text(
    f"INSERT INTO trails VALUES (:id, (:amount + 100) % {TRAIL}) "
    f"ON CONFLICT (id) DO UPDATE SET trail = (trail * 31 + :amount + 100) % {TRAIL}"
)
account_view = Projection("accounts", model=SqlModel(account_tables), retries=1)
trail_view = Projection("trails", model=SqlModel(trail_tables))
notes = Reaction("notes", since="beginning")
bank = Service("bank", aggregates=[Account])
desk = Service("desk", aggregates=[Note], projections=[account_view, trail_view], reactions=[notes])


@account_view.on(AccountOpened)
def opened(e: Event[AccountOpened], db: Tables) -> None:
    """Gathered: an upsert."""
    db.upsert(accounts, id=e.stream_id, owner=e.data.owner, version=e.version)


@account_view.on(AccountMoved)
def moved(e: Event[AccountMoved], db: Tables) -> None:
    """Gathered: a sum (which a doubled or lost event changes) and the last version (which a late one does)."""
    db.increment(accounts, id=e.stream_id, balance=e.data.amount, moves=1)
    db.upsert(accounts, id=e.stream_id, version=e.version)
    if e.data.token == os.environ.get(FAILING_TOKEN):
        raise ValueError(f"token {e.data.token} is not to my taste")


@account_view.on(NoteTaken)
def taken(e: Event[NoteTaken], db: Tables) -> None:
    """From a second source, the desk's own log."""
    db.increment(accounts, id=e.data.account, notes=1)


@trail_view.on(AccountMoved)
def trailed(e: Event[AccountMoved], db: Tables) -> None:
    """One statement per event, and an effect that neither commutes nor may be repeated: order shows."""
    db.execute(STEP.bindparams(id=e.stream_id, amount=e.data.amount))


@notes.on(AccountMoved)
async def take_note(e: Event[AccountMoved], _: Service) -> Note | None:
    """Of one move in ten, so that most events need no commit."""
    return Note(e.stream_id, e.data.token) if is_noted(e.data.amount) else None


def is_noted(amount: int) -> bool:
    """Whether the desk takes a note of a move by this amount."""
    return amount > 0 and amount % 10 == 0


def say(*words: object) -> None:
    """One line on stdout, at once."""
    sys.stdout.write(" ".join(str(w).replace("\n", " ") for w in words) + "\n")
    sys.stdout.flush()


async def save_without_end(worker: str, until: asyncio.Event) -> None:
    """One command after the other, each under a token of its own, until told to stop."""
    n = 0
    while not until.is_set():
        n += 1
        token = f"{worker}-{n}"
        try:
            say("ok", token, (await _command(token)).number)
        except EvsyncError as e:
            say("failed", token, type(e).__name__, e)
        await asyncio.sleep(PAUSE_S)


async def _command(token: str) -> Position:
    """Move money around within one account, or from one to another in one commit."""
    one, other = random.sample(ACCOUNTS, 2)
    amount = random.randint(1, 99)
    if random.random() < 0.5:
        return await bank.execute(Account, one, Account.turn_over, amount, token)
    while True:
        pair = [await bank.get(Account, id) for id in (one, other)]
        pair[0].move(amount, token)
        pair[1].move(-amount, token)
        try:
            return await bank.save(*pair)
        except Conflict:
            await asyncio.sleep(random.random() * 0.01)


async def run_bank(tag: str, quiet: asyncio.Event) -> None:
    """Make the accounts, keep saving until it is quiet, and go on relaying until the end."""
    async with bank.open():
        say("open")
        for id in ACCOUNTS:
            try:
                await bank.save(Account(id, f"owner of {id}"))
            except Conflict:
                continue  # an earlier process made it
        load = asyncio.create_task(_load(tag, quiet))
        try:
            await bank.serve()
        finally:
            quiet.set()
            await load


async def _load(tag: str, quiet: asyncio.Event) -> None:
    await asyncio.gather(*(save_without_end(f"{tag}.{w}", quiet) for w in range(WORKERS)))
    say("quiet")


async def run_desk() -> None:
    """Follow until the end."""
    async with desk.open():
        say("open")
        await desk.serve()


async def main(role: str, tag: str) -> int:
    """Run one of the services. Returns the exit code."""
    quiet = asyncio.Event()
    _listen(asyncio.get_running_loop(), quiet.set)
    try:
        await (run_bank(tag, quiet) if role == "bank" else run_desk())
    except EvsyncError as e:
        say("ended", type(e).__name__, e)
        return 1
    return 0


def _listen(loop: asyncio.AbstractEventLoop, be_quiet: Callable[[], None]) -> None:
    def read() -> None:
        for line in sys.stdin:
            if line.strip() == "quiet":
                loop.call_soon_threadsafe(be_quiet)
        os._exit(3)  # whoever started this process is gone

    threading.Thread(target=read, daemon=True).start()


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "")))
