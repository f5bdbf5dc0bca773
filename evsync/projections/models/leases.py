"""Leases on the groups of a projection: who works, who may take over, and who is there.

Every function works inside the transaction of the connection that it is given. Who changes leases or applies a batch
first locks the rows of its own groups, in their order; rows of others it takes only where nobody has them locked. So no
two workers can wait for each other here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import sqlalchemy as sa

from evsync.liveness import END_SILENT
from evsync.projections.failures import DatabaseAway, Fenced
from evsync.projections.halt import write_note
from evsync.projections.models import parked_rows
from evsync.projections.models.bookkeeping import LEASES, WORKERS, are_stored, check_model, read_checkpoints, superseded
from evsync.projections.models.claims import Claim, Holding, Observation, Worker
from evsync.projections.models.shares import Lease, decide
from evsync.projections.models.table_plan import TablePlan
from evsync.projections.parking import ParkedStream
from evsync.records import Checkpoint

MAX_LEASE_S = 60.0
"""A lease that runs longer was written by a clock that has been set back since: it is not believed."""


def balance(
    connection: sa.Connection, claim: Claim, holding: Holding | None, reason: str | None, plan: TablePlan
) -> Holding:
    """Show a sign of life, give back what is beyond the fair share, take what is free within it; what is held then.

    Tokens of groups that are taken are raised first and their checkpoints read afterwards, in this one transaction.
    Without a holding nothing is taken to be held: groups that still stand under the claim's name are taken anew.
    `plan` is `plan_of_workers`. Raises Fenced, DatabaseAway where the read model is to be prepared anew, and
    ConfigurationError where other code has made the model since: who cannot work on it is not to be counted among its
    workers.
    """
    held = dict(holding.tokens) if holding is not None else {}
    known = holding.checkpoints if holding is not None else ()
    check(connection, claim, held, known)
    if not held:
        check_model(connection, claim)
    now = time(connection)
    worker = {"projection": claim.projection, "owner": claim.owner, "expires": now + claim.lease_s, "reason": reason}
    plan.write(connection, tuple(WORKERS.c.keys()), (), [worker])
    _let_run(connection, claim, held, now)
    leases = _read_leases(connection, claim, now)
    if len(leases) != claim.groups:
        raise DatabaseAway(f"the leases of projection {claim.projection!r} are gone: lost, or deleted by a reset")
    change = decide(claim.owner, _present(connection, claim, now), leases, held)
    if change.give:
        connection.execute(_of(claim, change.give).where(LEASES.c.owner == claim.owner).values(expires=0))
    taken = _take(connection, claim, change.take, now) if change.take else {}
    tokens = {group: token for group, token in held.items() if group not in change.give} | taken
    if taken:
        check_model(connection, claim)  # again: it may have been exchanged before these were locked
        _forget_the_dead(connection, claim, now)
    checkpoints = [c for c in known if c.group in tokens]
    parked: list[ParkedStream] = []
    if taken:
        checkpoints += [c for c in read_checkpoints(connection, claim) if c.group in taken]
        parked = parked_rows.streams(connection, claim, taken)
    return Holding(dict(sorted(tokens.items())), checkpoints, parked)


def check(
    connection: sa.Connection, claim: Claim, tokens: Mapping[int, int], checkpoints: Collection[Checkpoint]
) -> None:
    """Raise Fenced unless every token and each of these checkpoints is the stored one.

    Nobody can raise or move one until the transaction ends. That checkpoints are others under the same token is the
    database's doing: a server that was killed has lost the last commits, or one that was behind has taken its place.
    """
    if not tokens:
        return
    rows = connection.execute(_TOKENS, {"projection": claim.projection, "groups": list(tokens)}).all()
    if {row.group: row.token for row in rows} != tokens:
        raise Fenced(f"another worker has taken over groups of projection {claim.projection!r}")
    if not are_stored(connection, claim, checkpoints):  # once the locks are there
        raise Fenced(f"the database has lost batches of projection {claim.projection!r} that it had stored")


def renew(connection: sa.Connection, claim: Claim, tokens: Mapping[int, int]) -> None:
    """Let the leases run for their full time again, after `check` in the same transaction."""
    now = time(connection)
    _let_run(connection, claim, tokens, now)
    mine = (WORKERS.c.projection == claim.projection, WORKERS.c.owner == claim.owner)
    connection.execute(sa.update(WORKERS).where(*mine).values(expires=now + claim.lease_s))


def leave(connection: sa.Connection, claim: Claim, halted: str | None) -> None:
    """End all leases under the claim's name, so that others may take over at once; leave word why, if halted.

    Also those of which the caller does not know: a balance that was cancelled may have taken them.
    """
    mine = (LEASES.c.projection == claim.projection, LEASES.c.owner == claim.owner)
    groups = connection.scalars(sa.select(LEASES.c.group).where(*mine).order_by(LEASES.c.group).with_for_update()).all()
    connection.execute(_of(claim, groups).values(expires=0, halted=halted))
    connection.execute(
        sa.delete(WORKERS).where(WORKERS.c.projection == claim.projection, WORKERS.c.owner == claim.owner)
    )


def observe(connection: sa.Connection, claim: Claim) -> Observation:
    """The projection as anybody may see it."""
    now = time(connection)
    leases = connection.execute(sa.select(LEASES).where(LEASES.c.projection == claim.projection)).all()
    rows = connection.execute(
        sa.select(WORKERS).where(WORKERS.c.projection == claim.projection).order_by(WORKERS.c.owner)
    ).all()
    running = [lease for lease in leases if _runs(lease.expires, now)]
    halted = next((lease.halted for lease in leases if lease.halted and lease not in running), None)
    checkpoints = read_checkpoints(connection, claim)
    if (not checkpoints or len(leases) != claim.groups) and (error := superseded(connection, claim)) is not None:
        checkpoints, halted = [], write_note(error)
    return Observation(
        checkpoints=checkpoints,
        parked=parked_rows.count(connection, claim),  # afterwards: none is missing that a checkpoint has passed
        held=any(lease.owner != claim.owner for lease in running),
        halted=halted,
        workers=[
            Worker(row.owner, sum(lease.owner == row.owner for lease in running), row.reason)
            for row in rows
            if _runs(row.expires, now)
        ],
    )


def plan_of_workers(dialect: sa.Dialect) -> TablePlan:
    """The statement that stores a sign of life, compiled once."""
    return TablePlan(WORKERS, dialect, referenced=False)


_TOKENS = (
    sa.select(LEASES.c.group, LEASES.c.token)
    .where(
        LEASES.c.projection == sa.bindparam("projection"), LEASES.c.group.in_(sa.bindparam("groups", expanding=True))
    )
    .order_by(LEASES.c.group)
    .with_for_update()  # in PostgreSQL; SQLite's writers are alone
)


def _take(connection: sa.Connection, claim: Claim, groups: Collection[int], now: float) -> dict[int, int]:
    """Raise the tokens of those of the groups that nobody has, and that nobody is at work on: group → token."""
    # A row that is locked belongs to a batch that is being committed, or to somebody who takes it just now.
    rows = connection.execute(
        sa.select(LEASES)
        .where(LEASES.c.projection == claim.projection, LEASES.c.group.in_(groups))
        .order_by(LEASES.c.group)
        .with_for_update(skip_locked=True)
    ).all()
    if len(rows) < len(groups) and connection.dialect.name == "postgresql":
        connection.exec_driver_sql(END_SILENT)  # the next balance finds the locks gone
    taken = {row.group: row.token + 1 for row in rows if row.owner == claim.owner or not _runs(row.expires, now)}
    if taken:
        connection.execute(
            _of(claim, taken).values(
                token=LEASES.c.token + 1, owner=claim.owner, expires=now + claim.lease_s, halted=None
            )
        )
    return taken


def _let_run(connection: sa.Connection, claim: Claim, groups: Collection[int], now: float) -> None:
    if groups:
        connection.execute(_of(claim, groups).values(expires=now + claim.lease_s))


def _of(claim: Claim, groups: Iterable[int]) -> sa.Update:
    return sa.update(LEASES).where(LEASES.c.projection == claim.projection, LEASES.c.group.in_(list(groups)))


def _read_leases(connection: sa.Connection, claim: Claim, now: float) -> list[Lease]:
    rows = connection.execute(sa.select(LEASES).where(LEASES.c.projection == claim.projection).order_by(LEASES.c.group))
    return [Lease(row.group, row.token, row.owner, _runs(row.expires, now)) for row in rows]


def _present(connection: sa.Connection, claim: Claim, now: float) -> list[str]:
    rows = connection.execute(
        sa.select(WORKERS.c.owner, WORKERS.c.expires).where(WORKERS.c.projection == claim.projection)
    )
    return [row.owner for row in rows if _runs(row.expires, now)]


def _forget_the_dead(connection: sa.Connection, claim: Claim, now: float) -> None:
    long_ago = now - MAX_LEASE_S
    connection.execute(sa.delete(WORKERS).where(WORKERS.c.projection == claim.projection, WORKERS.c.expires < long_ago))


def _runs(expires: float, now: float) -> bool:
    return now < expires <= now + MAX_LEASE_S


def time(connection: sa.Connection) -> float:
    """Seconds since 1970 by the database's own clock, at this moment rather than at the transaction's start."""
    now: sa.ColumnElement[float] = sa.literal_column("((julianday('now') - 2440587.5) * 86400.0)", sa.Double)
    if connection.dialect.name == "postgresql":
        now = sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Double)
    return connection.execute(sa.select(now)).scalar_one()
