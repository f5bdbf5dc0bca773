"""Checkpoints and leases in the database of the read models: two tables beside the user's own.

    evsync_checkpoints   how far a projection has come, per log and group, with count and digest of what it applied
    evsync_leases        who works on a group, until when, under which token; what it said when it halted
    evsync_views         one row: the version of this layout

Every function works inside the transaction of the connection that it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from evsync.errors import ConfigurationError, WrongStore
from evsync.projections.read_model import Claim, Fenced, Holding, Observation
from evsync.projections.table_plan import TablePlan
from evsync.records import Checkpoint

SCHEMA_VERSION = 1
MAX_LEASE_S = 60.0
"""A lease that runs longer was written by a clock that has been set back since: it is not believed."""
_CREATION_LOCK = 0x65767379  # "evsy": any number that other users of PostgreSQL's advisory locks do not use

_schema = sa.MetaData()
_views = sa.Table("evsync_views", _schema, sa.Column("schema_version", sa.Integer, nullable=False))
_checkpoints = sa.Table(
    "evsync_checkpoints",
    _schema,
    sa.Column("projection", sa.String, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("log", sa.String, primary_key=True),
    sa.Column("group", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("incarnation", sa.String, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("count", sa.BigInteger, nullable=False),
    sa.Column("digest", sa.String(16), nullable=False),  # hexadecimal: no database has unsigned 64-bit integers
)
_leases = sa.Table(
    "evsync_leases",
    _schema,
    sa.Column("projection", sa.String, primary_key=True),
    sa.Column("group", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("token", sa.BigInteger, nullable=False),
    sa.Column("owner", sa.String, nullable=False),
    sa.Column("expires", sa.Double, nullable=False),  # seconds since 1970 by the database's clock; 0: released
    sa.Column("halted", sa.Text),
)
NAMES = frozenset(_schema.tables)


def create(connection: sa.Connection) -> None:
    """Make the tables of the bookkeeping if they are missing. Raises WrongStore for a layout of a newer evsync."""
    if connection.dialect.name == "postgresql":  # SQLite's writers are alone from the start of their transaction
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATION_LOCK)))
    _schema.create_all(connection)
    found = connection.scalar(sa.select(sa.func.max(_views.c.schema_version)))
    if found is None:
        connection.execute(sa.insert(_views).values(schema_version=SCHEMA_VERSION))
    elif found > SCHEMA_VERSION:
        raise WrongStore(
            f"the bookkeeping of {connection.engine.url!r} has layout {found}, and this evsync knows layouts up to "
            f"{SCHEMA_VERSION}: it was written by a newer evsync. Nothing was touched. Upgrade evsync here, or use "
            "another database."
        )


def enroll(connection: sa.Connection, claim: Claim, tables: Iterable[str]) -> bool:
    """Make the projection known; whether anything was applied for it already.

    Raises ConfigurationError for a read model made by another version, or with another number of groups. `tables` are
    named in what to do then.
    """
    mend = (
        f"To build the read model anew, stop its workers, drop its tables ({', '.join(tables)}), and delete the rows "
        f"of projection {claim.projection!r} from evsync_checkpoints and evsync_leases."
    )
    mine = _checkpoints.c.projection == claim.projection
    versions = connection.scalars(sa.select(_checkpoints.c.version).where(mine).distinct()).all()
    for version in versions:
        if version != claim.version:
            raise ConfigurationError(
                f"the read model of projection {claim.projection!r} was made by its version {version}, and this is "
                f"version {claim.version}. Nothing was touched. {mend}"
            )
    groups = connection.scalar(
        sa.select(sa.func.count()).select_from(_leases).where(_leases.c.projection == claim.projection)
    )
    if not groups:
        rows = [_lease(claim, group) for group in range(claim.groups)]
        connection.execute(sa.insert(_leases), rows)
    elif groups != claim.groups:
        raise ConfigurationError(
            f"the read model of projection {claim.projection!r} was made with groups={groups}, and this is "
            f"groups={claim.groups}. Nothing was touched. {mend}"
        )
    return bool(versions)


def take(connection: sa.Connection, claim: Claim) -> Holding | None:
    """Raise the tokens of all groups and read their checkpoints; None while another worker's lease is running."""
    mine = _leases.c.projection == claim.projection
    rows = connection.execute(sa.select(_leases).where(mine).order_by(_leases.c.group).with_for_update()).all()
    now = _time(connection)
    if len(rows) != claim.groups:
        return None  # somebody has deleted them: to be enrolled again
    if any(row.owner != claim.owner and _runs(row.expires, now) for row in rows):
        return None
    connection.execute(
        sa.update(_leases)
        .where(mine)
        .values(token=_leases.c.token + 1, owner=claim.owner, expires=now + claim.lease_s, halted=None)
    )
    return Holding({row.group: row.token + 1 for row in rows}, _read_checkpoints(connection, claim))


def check(connection: sa.Connection, claim: Claim, tokens: Mapping[int, int]) -> None:
    """Raise Fenced unless every token is still the stored one; nobody can raise one until the transaction ends."""
    rows = connection.execute(_TOKENS, {"projection": claim.projection}).all()
    if not tokens.items() <= {(row.group, row.token) for row in rows}:
        raise Fenced(f"another worker has taken projection {claim.projection!r} over")


def renew(connection: sa.Connection, claim: Claim, tokens: Mapping[int, int]) -> None:
    """Let the lease run for its full time again. Raises Fenced."""
    check(connection, claim, tokens)
    connection.execute(
        sa.update(_leases)
        .where(_leases.c.projection == claim.projection, _leases.c.group.in_(list(tokens)))
        .values(expires=_now(connection) + claim.lease_s)
    )


def release(connection: sa.Connection, claim: Claim, tokens: Mapping[int, int], halted: str | None) -> None:
    """End the lease now, and leave word why if the projection has halted. Raises Fenced."""
    check(connection, claim, tokens)
    connection.execute(
        sa.update(_leases)
        .where(_leases.c.projection == claim.projection, _leases.c.group.in_(list(tokens)))
        .values(expires=0, halted=halted)
    )


def store(connection: sa.Connection, claim: Claim, checkpoints: Iterable[Checkpoint], plan: TablePlan) -> None:
    """Store these checkpoints. `plan` is `plan_of_checkpoints` for the connection's dialect, kept by the caller."""
    rows = [
        {
            "projection": claim.projection,
            "version": claim.version,
            "log": c.log,
            "group": c.group,
            "incarnation": c.incarnation,
            "position": c.position,
            "count": c.count,
            "digest": f"{c.digest:016x}",
        }
        for c in checkpoints
    ]
    plan.write(connection, tuple(_checkpoints.c.keys()), (), rows)


def plan_of_checkpoints(dialect: sa.Dialect) -> TablePlan:
    """The statements that store checkpoints, compiled once."""
    return TablePlan(_checkpoints, dialect, referenced=False)


def observe(connection: sa.Connection, claim: Claim) -> Observation:
    """The projection as anybody may see it."""
    now = _time(connection)
    leases = connection.execute(
        sa.select(_leases.c.expires, _leases.c.halted).where(_leases.c.projection == claim.projection)
    ).all()
    return Observation(
        _read_checkpoints(connection, claim),
        any(_runs(row.expires, now) for row in leases),
        next((row.halted for row in leases if row.halted), None),
    )


_TOKENS = (
    sa.select(_leases.c.group, _leases.c.token)
    .where(_leases.c.projection == sa.bindparam("projection"))
    .with_for_update()  # in PostgreSQL; SQLite's writers are alone
)


def _read_checkpoints(connection: sa.Connection, claim: Claim) -> list[Checkpoint]:
    rows = connection.execute(
        sa.select(_checkpoints).where(
            _checkpoints.c.projection == claim.projection, _checkpoints.c.version == claim.version
        )
    )
    return [
        Checkpoint(r["log"], r["group"], r["incarnation"], r["position"], r["count"], int(r["digest"], 16))
        for r in rows.mappings()
    ]


def _lease(claim: Claim, group: int) -> dict[str, Any]:
    return {"projection": claim.projection, "group": group, "token": 0, "owner": "", "expires": 0.0}


def _runs(expires: float, now: float) -> bool:
    return now < expires <= now + MAX_LEASE_S


def _time(connection: sa.Connection) -> float:
    return connection.execute(sa.select(_now(connection))).scalar_one()


def _now(connection: sa.Connection) -> sa.ColumnElement[float]:
    """Seconds since 1970 by the database's own clock, at this moment rather than at the transaction's start."""
    if connection.dialect.name == "postgresql":
        return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Double)
    return sa.literal_column("((julianday('now') - 2440587.5) * 86400.0)", sa.Double)
