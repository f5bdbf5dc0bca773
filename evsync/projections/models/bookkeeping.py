"""Checkpoints in the database of the read models, and the layout of what evsync keeps there beside the user's tables.

    evsync_checkpoints   how far a projection has come, per log and group, with count and digest of what it applied
    evsync_leases        who works on a group, until when, under which token; what it said when it halted
    evsync_workers       who is there to work on a projection, until when, and what stands in its way
    evsync_parked        events that were set aside, and the record of those that a person has skipped
    evsync_views         one row: the version of this layout

Every function works inside the transaction of the connection that it is given.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from evsync.errors import ConfigurationError, WrongStore
from evsync.projections.models.claims import Claim
from evsync.projections.models.table_plan import TablePlan
from evsync.records import STORE_FILE_ID, Checkpoint

SCHEMA_VERSION = 2
_CREATION_LOCK = 0x65767379  # "evsy": any number that other users of PostgreSQL's advisory locks do not use

_schema = sa.MetaData()
_views = sa.Table("evsync_views", _schema, sa.Column("schema_version", sa.Integer, nullable=False))
CHECKPOINTS = sa.Table(
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
LEASES = sa.Table(
    "evsync_leases",
    _schema,
    sa.Column("projection", sa.String, primary_key=True),
    sa.Column("group", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("token", sa.BigInteger, nullable=False),
    sa.Column("owner", sa.String, nullable=False),
    sa.Column("expires", sa.Double, nullable=False),  # seconds since 1970 by the database's clock; 0: released
    sa.Column("halted", sa.Text),
)
WORKERS = sa.Table(
    "evsync_workers",
    _schema,
    sa.Column("projection", sa.String, primary_key=True),
    sa.Column("owner", sa.String, primary_key=True),
    sa.Column("expires", sa.Double, nullable=False),  # as in evsync_leases
    sa.Column("reason", sa.Text),
)
PARKED = sa.Table(
    "evsync_parked",
    _schema,
    # The order of parking, which is that of the stream: within a group one worker adds at a time.
    sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("projection", sa.String, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("log", sa.String, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("commit_end", sa.BigInteger, nullable=False),  # position of the last event of its commit
    sa.Column("service", sa.String, nullable=False),
    sa.Column("stream", sa.String, nullable=False),
    sa.Column("stream_version", sa.BigInteger, nullable=False),
    sa.Column("slot", sa.Integer, nullable=False),
    sa.Column("group", sa.Integer, nullable=False),
    sa.Column("incarnation", sa.String, nullable=False),
    sa.Column("type", sa.String, nullable=False),
    sa.Column("time_us", sa.BigInteger, nullable=False),
    sa.Column("id", sa.LargeBinary, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("meta", sa.Text),
    sa.Column("reason", sa.Text),  # NULL: it only stands behind another one
    sa.Column("parked", sa.Double, nullable=False),  # seconds since 1970 by the database's clock
    sa.Column("skipped", sa.Double),  # as parked; NULL: it is still to be applied
    sa.UniqueConstraint("projection", "version", "log", "position"),
    sa.Index("evsync_parked_streams", "projection", "version", "service", "stream"),
)
NAMES = frozenset(_schema.tables)


def create(connection: sa.Connection) -> None:
    """Make the tables of the bookkeeping if they are missing. Raises WrongStore for a layout of a newer evsync."""
    if connection.dialect.name == "postgresql":  # SQLite's writers are alone from the start of their transaction
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_CREATION_LOCK)))
    elif connection.exec_driver_sql("PRAGMA application_id").scalar_one() == STORE_FILE_ID:
        raise ConfigurationError(
            f"{connection.engine.url!r} is an event store, and read models need a database of their own, which can be "
            "thrown away: give views= another file"
        )
    _schema.create_all(connection)
    found = connection.scalar(sa.select(sa.func.max(_views.c.schema_version)))
    if found is None:
        connection.execute(sa.insert(_views).values(schema_version=SCHEMA_VERSION))
    elif found < SCHEMA_VERSION:  # tables were added, and an older evsync must not work beside who uses them
        connection.execute(sa.update(_views).values(schema_version=SCHEMA_VERSION))
    elif found > SCHEMA_VERSION:
        raise WrongStore(
            f"the bookkeeping of {connection.engine.url!r} has layout {found}, and this evsync knows layouts up to "
            f"{SCHEMA_VERSION}: it was written by a newer evsync. Nothing was touched. Upgrade evsync here, or use "
            "another database."
        )


def exists(connection: sa.Connection) -> bool:
    """Whether there is any bookkeeping, of this layout. Where nothing has been made, there is nothing to be seen."""
    return sa.inspect(connection).has_table(PARKED.name)


def version_of(connection: sa.Connection, projection: str) -> int | None:
    """The version of the projection that has made the read model; None if nothing was applied yet."""
    if not sa.inspect(connection).has_table(CHECKPOINTS.name):
        return None
    mine = CHECKPOINTS.c.projection == projection
    found: int | None = connection.scalar(sa.select(sa.func.max(CHECKPOINTS.c.version)).where(mine))
    return found


def made_by(connection: sa.Connection, projection: str) -> Claim | None:
    """Version and number of groups of the projection that has made a read model; None if nothing was applied yet."""
    if (version := version_of(connection, projection)) is None:
        return None
    return Claim(projection, version, _groups_of(connection, projection), "", 0.0)


def enroll(connection: sa.Connection, claim: Claim) -> bool:
    """Make the projection known; whether anything was applied for it already. Raises as `check_model`."""
    begun = check_model(connection, claim)
    if not _groups_of(connection, claim.projection):
        rows = [_lease(claim, group) for group in range(claim.groups)]
        connection.execute(sa.insert(LEASES), rows)
        # Left by somebody who has deleted the other rows, to build the read model anew.
        connection.execute(sa.delete(PARKED).where(PARKED.c.projection == claim.projection))
    return begun


def check_model(connection: sa.Connection, claim: Claim) -> bool:
    """Whether anything was applied by this version of the projection, in so many groups.

    Raises ConfigurationError if it was another version, or another number of groups: that is so too for a worker that
    was at work when the model was rebuilt.
    """
    mine = CHECKPOINTS.c.projection == claim.projection
    versions = connection.scalars(sa.select(CHECKPOINTS.c.version).where(mine).distinct()).all()
    for version in versions:
        if version != claim.version:
            newer = "Start this process again with the code of that version."
            raise ConfigurationError(
                f"the read model of projection {claim.projection!r} was made by its version {version}, and this is "
                f"version {claim.version}. Nothing was touched. "
                f"{newer if version > claim.version else mend(claim.projection)}"
            )
    if (groups := _groups_of(connection, claim.projection)) not in (0, claim.groups):
        raise ConfigurationError(
            f"the read model of projection {claim.projection!r} was made with groups={groups}, and this is "
            f"groups={claim.groups}. Nothing was touched. Start this process again if its code is the older one; else "
            f"{mend(claim.projection)}"
        )
    return bool(versions)


def superseded(connection: sa.Connection, claim: Claim) -> ConfigurationError | None:
    """Why nothing of this claim can be seen any more, if the read model was made anew by later code."""
    try:
        check_model(connection, claim)
    except ConfigurationError as e:
        return e if (version_of(connection, claim.projection) or 0) >= claim.version else None
    return None


def mend(projection: str) -> str:
    """What to do about a read model that this code cannot go on with."""
    return f"`evsync rebuild module:service {projection}` makes the read model anew, while the old one is in use."


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
    plan.write(connection, tuple(CHECKPOINTS.c.keys()), (), rows)


def add(connection: sa.Connection, claim: Claim, applied: Checkpoint, plan: TablePlan) -> None:
    """Count events that were applied behind a checkpoint's back: it keeps its position."""
    [found] = [c for c in read_checkpoints(connection, claim) if (c.log, c.group) == (applied.log, applied.group)]
    digest = (found.digest + applied.digest) % 2**64
    store(connection, claim, [replace(found, count=found.count + applied.count, digest=digest)], plan)


def plan_of_checkpoints(dialect: sa.Dialect) -> TablePlan:
    """The statements that store checkpoints, compiled once."""
    return TablePlan(CHECKPOINTS, dialect, referenced=False)


def read_checkpoints(connection: sa.Connection, claim: Claim) -> list[Checkpoint]:
    """All checkpoints of the projection."""
    rows = connection.execute(
        sa.select(CHECKPOINTS).where(
            CHECKPOINTS.c.projection == claim.projection, CHECKPOINTS.c.version == claim.version
        )
    )
    return [_checkpoint(claim.projection, *row) for row in rows]


def taken_groups(connection: sa.Connection, claim: Claim) -> dict[int, bool]:
    """The groups that a worker has had at some time: group → whether it has halted, and none took its place."""
    taken = sa.select(LEASES.c.group, LEASES.c.halted.is_not(None))
    rows = connection.execute(taken.where(LEASES.c.projection == claim.projection, LEASES.c.token > 0))
    return {group: bool(halted) for group, halted in rows}


def are_stored(connection: sa.Connection, claim: Claim, checkpoints: Collection[Checkpoint]) -> bool:
    """Whether the database has just these for their logs and groups: none where nothing was applied yet."""
    rows = connection.execute(
        _SOME,
        {
            "projection": claim.projection,
            "version": claim.version,
            "logs": list({c.log for c in checkpoints}),
            "groups": list({c.group for c in checkpoints}),
        },
    )
    stored = {(c.log, c.group): c for c in (_checkpoint(claim.projection, *row) for row in rows)}
    return all(stored.get((c.log, c.group), Checkpoint(c.log, c.group, "", 0)) == c for c in checkpoints)


_SOME = sa.select(CHECKPOINTS).where(
    CHECKPOINTS.c.projection == sa.bindparam("projection"),
    CHECKPOINTS.c.version == sa.bindparam("version"),
    CHECKPOINTS.c.log.in_(sa.bindparam("logs", expanding=True)),
    CHECKPOINTS.c.group.in_(sa.bindparam("groups", expanding=True)),
)


def _checkpoint(projection: str, *row: Any) -> Checkpoint:
    _, _, log, group, incarnation, position, count, digest = row
    try:
        return Checkpoint(log, int(group), incarnation, int(position), int(count), int(digest, 16))
    except (TypeError, ValueError) as e:
        raise WrongStore(
            f"the checkpoint of projection {projection!r} for group {group!r} of log {log!r} cannot be read: its "
            f"position is {position!r}, its count {count!r}, its digest {digest!r}. evsync writes no such row of "
            f"{CHECKPOINTS.name}: somebody has altered it. Bring the row back, or make the read model anew: `evsync "
            "reset module:service NAME`, with the name of the projection."
        ) from e


def _groups_of(connection: sa.Connection, projection: str) -> int:
    groups = sa.select(sa.func.count()).select_from(LEASES).where(LEASES.c.projection == projection)
    return connection.execute(groups).scalar_one()


def _lease(claim: Claim, group: int) -> dict[str, Any]:
    return {"projection": claim.projection, "group": group, "token": 0, "owner": "", "expires": 0.0}


def tables_of_models() -> list[sa.Table]:
    """The tables whose rows belong each to a projection's model, not to its workers: a rebuild makes such rows anew."""
    return [t for t in _schema.sorted_tables if "projection" in t.c and t not in (LEASES, WORKERS)]
