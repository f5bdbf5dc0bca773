"""Followers that were ahead of a log that was restored: what lets them follow it again."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from evsync.definition import shared_tables, tables_of
from evsync.errors import ConfigurationError, Conflict
from evsync.ports import LogReader
from evsync.projections import Projection, SqlModel
from evsync.records import Checkpoint, Commit, incarnation_at, new_command, service_of
from evsync.runtime import Runtime

_BOOKKEEPING = ("evsync_checkpoints", "evsync_leases")


async def reset_follower(runtime: Runtime, name: str) -> list[str]:
    """Let a projection begin anew, or a reaction go on where a restored log does; what was done, in lines for people.

    A projection's tables are dropped, with its checkpoints, and made anew by the process that runs it next. A
    reaction's checkpoint is set back to the last event that it has in common with the log. Raises ConfigurationError,
    StoreError, Conflict for a reaction that is at work.
    """
    service = runtime.service
    for projection in service.projections:
        if projection.name == name:
            return [await _reset_projection(runtime, projection)]
    for reaction in service.reactions:
        if reaction.name == name:
            return await _reset_reaction(runtime, name)
    names = [*(p.name for p in service.projections), *(r.name for r in service.reactions)]
    raise ConfigurationError(
        f"service {service.name!r} has no projection and no reaction {name!r}; it has {', '.join(names) or 'none'}"
    )


async def _reset_projection(runtime: Runtime, projection: Projection[Any]) -> str:
    model = projection.model
    if not isinstance(model, SqlModel) or runtime.views is None:
        return f"projection {projection.name} keeps its model in memory: start its processes again"
    tables = ", ".join(sorted(tables_of(projection)))
    if (shared := shared_tables(runtime.service, projection)) is not None:
        raise ConfigurationError(
            f"projections {projection.name!r} and {shared[0]!r} write to the same tables: stop the service, drop "
            f"{tables}, and delete the rows of both from {' and '.join(_BOOKKEEPING)}"
        )

    def drop(connection: sa.Connection) -> None:
        found = set(sa.inspect(connection).get_table_names())
        for table in _BOOKKEEPING:
            if table in found:  # without its lease, a worker that is at work rolls back and begins anew
                kept = sa.table(table, sa.column("projection"))
                connection.execute(sa.delete(kept).where(kept.c.projection == projection.name))
        model.metadata.drop_all(connection)

    await runtime.views.write(drop)
    return f"projection {projection.name}: its tables ({tables}) are gone, and are made anew"


async def _reset_reaction(runtime: Runtime, name: str) -> list[str]:
    done: list[str] = []
    for stored in await runtime.store.checkpoints(name):
        reader = await _reader_of(runtime, stored.log)
        incarnation = reader.incarnation
        if incarnation is None or incarnation_at(incarnation, reader.ancestry, stored.position) == stored.incarnation:
            done.append(f"reaction {name}: log {stored.log} is followed from position {stored.position}, as before")
            continue
        common = next((a.last for a in reader.ancestry if a.incarnation == stored.incarnation), None)
        if common is None:
            raise ConfigurationError(
                f"log {stored.log} (incarnation {incarnation}) was not restored from incarnation {stored.incarnation}, "
                f"which reaction {name!r} has answered up to position {stored.position}: they have nothing in common. "
                "Give the reaction another name: it then begins where since= says"
            )
        position = min(common, stored.position)
        back = Checkpoint(
            stored.log,
            stored.group,
            incarnation_at(incarnation, reader.ancestry, position) if position else "",
            position,
            stored.count,
            stored.digest,
        )
        [outcome] = await runtime.store.append([Commit(new_command(), (), name, back, stored.position)])
        if isinstance(outcome, Conflict):
            raise outcome
        done.append(
            f"reaction {name}: log {stored.log} is followed from position {position}; it had answered up to "
            f"{stored.position}. What it did for events beyond {position} that are no part of the log now is yours to "
            "look at"
        )
    return done or [f"reaction {name} has answered nothing yet"]


async def _reader_of(runtime: Runtime, log: str) -> LogReader:
    source = runtime.sources.get(service_of(log))
    for reader in await source.readers() if source is not None else ():
        if reader.log == log:
            return reader
    raise ConfigurationError(f"log {log} is not among those that the service reads")
