"""What a person asks of a read model: does it hold exactly the events, and which ones made this row."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from evsync.errors import ConfigurationError, EvsyncError, StoreUnavailable
from evsync.jetstream.source import JetStreamSource
from evsync.opening import shards_on_nats
from evsync.ports import LogReader, LogSource, Progress, unheard
from evsync.projections import MemoryModel, Projection, SqlModel
from evsync.projections.checking.applied import Applied, applied
from evsync.projections.checking.diff import LIMIT, Side, TableDifference, as_it_is, compare
from evsync.projections.checking.explain import Chosen, Explanation, parse_key
from evsync.projections.checking.explain import explain as explain_row
from evsync.projections.checking.fold import Fold, heads_of
from evsync.projections.checking.scratch import scratch
from evsync.projections.checking.verify import LogReport, Verification
from evsync.projections.failures import DatabaseAway
from evsync.projections.rebuilding.rebuild import GRACE_S, Rebuild, RebuildReport, log_waiting

if TYPE_CHECKING:
    from evsync.runtime import Runtime
    from evsync.service import Service

_CONNECT_S = 3.0
_FOUND_S = 5.0


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """A projection's checkpoints beside its logs."""

    projection: str
    logs: Sequence[LogReport]
    parked: int
    """Events up to the checkpoints that are parked, in all logs: counted in their reports, not applied."""
    skipped: int
    """And such as a person has skipped."""

    @property
    def ok(self) -> bool:
        """Whether exactly the logs' events were applied, once."""
        return all(log.ok for log in self.logs)


def projection_of(service: Service, name: str) -> Projection[Any]:
    """A projection of a service by its name. Raises ConfigurationError that says which there are."""
    for projection in service.projections:
        if projection.name == name:
            return projection
    names = ", ".join(p.name for p in service.projections) or "none"
    raise ConfigurationError(f"service {service.name!r} has no projection {name!r}; it has {names}")


def stored_projections(runtime: Runtime) -> list[Projection[Any]]:
    """Those whose read models are stored, rather than made anew in each process."""
    return [p for p in runtime.service.projections if not isinstance(p.model, MemoryModel)]


async def verify(runtime: Runtime, projection: Projection[Any], advance: Progress = unheard) -> VerifyReport:
    """Compare what a projection's checkpoints count with its logs.

    Raises ConfigurationError for a model in memory, StoreUnavailable where there is no read model to look at.
    """
    seen = await look_at(runtime, projection)
    verification = Verification(projection.handlers, seen, copies=_copies(runtime, projection), advance=advance)
    logs = await verification.run(_there(sources_of(runtime, projection)))
    return VerifyReport(projection.name, logs, len(seen.parked), len(seen.skipped))


def sources_of(runtime: Runtime, projection: Projection[Any]) -> list[LogSource]:
    """Where the projection's logs are read, as its runner reads them."""
    return [runtime.sources[service] for service in projection.sources]


async def look_at(runtime: Runtime, projection: Projection[Any]) -> Applied:
    """A projection's read model, by its own account. Raises as `verify`."""
    if isinstance(projection.model, MemoryModel) or runtime.views is None:
        raise ConfigurationError(
            f"projection {projection.name!r} keeps its model in the memory of each process, made from the logs' "
            "beginning at every start: nothing of it is stored, so there is nothing to look at from here"
        )
    try:
        return await runtime.views.read(lambda connection: applied(connection, projection.name))
    except DatabaseAway as e:
        raise StoreUnavailable(f"the read model of projection {projection.name!r} cannot be looked at: {e}") from e


def _copies(runtime: Runtime, projection: Projection[Any]) -> list[LogSource]:
    """The service's own logs are in its stores, and in streams beside these; but those that are streams themselves."""
    name, connection = runtime.service.name, runtime.connection
    mirrored = runtime.stores.keys() - shards_on_nats(runtime.settings["store"]).keys()
    if name not in projection.sources or connection is None or not mirrored:
        return []
    return [_IfThere(JetStreamSource(connection, name))]


def _there(sources: Sequence[LogSource]) -> list[LogSource]:
    return [_There(source) for source in sources]


class _There:
    """A source that must be there: for a person who waits for an answer. Implements LogSource."""

    def __init__(self, source: LogSource) -> None:
        self.service, self._source = source.service, source

    async def readers(self) -> Sequence[LogReader]:
        """What the source has. Raises StoreUnavailable if that is nothing for some seconds."""
        try:
            async with asyncio.timeout(_FOUND_S):
                return await self._source.readers()
        except TimeoutError:
            why = getattr(self._source, "waiting_for", "") or "its source says nothing"
            raise StoreUnavailable(
                f"no log of service {self.service!r} was found within {_FOUND_S:.0f} s: {why}. Nothing was changed; "
                "try again when it is there."
            ) from None


class _IfThere:
    """A source that may not exist: no readers then. Implements LogSource."""

    def __init__(self, source: LogSource) -> None:
        self.service, self._source = source.service, source

    async def readers(self) -> Sequence[LogReader]:
        """What is there within a few seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CONNECT_S):
                return await self._source.readers()
        return []


@dataclass(frozen=True, slots=True)
class RowReport:
    """A row of a read model, and what made it."""

    projection: str
    row: Mapping[str, Any] | None
    """As it is now; None if there is none."""
    explanation: Explanation


async def explain(
    runtime: Runtime,
    table: str,
    key: Sequence[str],
    *,
    chosen: Chosen = lambda event: True,
    advance: Progress = unheard,
) -> list[RowReport]:
    """Which events made the row of a table whose primary key is this, one report for each projection with the table.

    Raises ConfigurationError for a table that there is not, and a key that cannot be one.
    """
    reports = []
    for projection in runtime.service.projections:
        model = projection.model
        if not isinstance(model, SqlModel) or table not in model.metadata.tables or runtime.views is None:
            continue
        found = model.metadata.tables[table]
        parsed = parse_key(found, key)
        where = [found.c[name] == value for name, value in parsed.items()]
        seen = await look_at(runtime, projection)
        row = await runtime.views.read(partial(_row_of, table=found, where=where))
        explanation = await explain_row(
            projection,
            model.metadata,
            found,
            parsed,
            applied=seen,
            sources=_there(sources_of(runtime, projection)),
            place=runtime.views.place,
            dialect=runtime.views.dialect,
            chosen=chosen,
            advance=advance,
        )
        reports.append(RowReport(projection.name, row, explanation))
    if not reports:
        tables = sorted({t for p in runtime.service.projections for t in tables_of(p)})
        raise ConfigurationError(
            f"no projection of service {runtime.service.name!r} has a table {table!r}; there are "
            f"{', '.join(tables) or 'none'}"
        )
    return reports


def _row_of(connection: sa.Connection, table: sa.Table, where: Sequence[Any]) -> Mapping[str, Any] | None:
    """The row as it is; None also where the table is not made yet, or was dropped by `evsync reset`."""
    if not sa.inspect(connection).has_table(table.name, schema=table.schema):
        return None
    row = connection.execute(sa.select(table).where(*where)).mappings().one_or_none()
    return None if row is None else dict(row)


async def rebuild(
    runtime: Runtime,
    projection: Projection[Any],
    *,
    anew: bool = False,
    only_if_older: bool = False,
    grace_s: float = GRACE_S,
    timeout_s: float | None = None,
    advance: Progress = unheard,
    tell: Callable[[str], None] = log_waiting,
) -> RebuildReport:
    """Rebuild a projection's read model while the one that is there goes on being used (see `Rebuild`).

    Raises ConfigurationError for a model in memory, and for tables that another projection fills too.
    """
    for other in runtime.service.projections:
        if other is not projection and (shared := sorted({*tables_of(projection)} & {*tables_of(other)})):
            raise ConfigurationError(
                f"projection {projection.name!r} cannot be rebuilt alone: projection {other.name!r} fills table "
                f"{shared[0]!r} too, and what it has put there would be gone. Give each a MetaData of its own"
            )
    work = Rebuild(
        projection,
        runtime.views,
        sources_of(runtime, projection),
        anew=anew,
        only_if_older=only_if_older,
        grace_s=grace_s,
        timeout_s=timeout_s,
        advance=advance,
        tell=tell,
    )
    return await work.run()


@dataclass(frozen=True, slots=True)
class DiffReport:
    """What two codes make of the same history."""

    projection: str
    old: str
    """What is compared with the service's code: its read model as it is, or another module's code."""
    tables: Sequence[TableDifference]

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return all(table.same for table in self.tables)


async def diff(
    runtime: Runtime, projection: Projection[Any], *, limit: int = LIMIT, advance: Progress = unheard
) -> DiffReport:
    """Compare the read model as it is with what the projection's code makes of the same events.

    Events that are parked or were skipped are left out here as they are there.
    Workers may go on meanwhile: the read model is looked at in one moment. Raises ConfigurationError for a model in
    memory, EvsyncError for an event that the code cannot apply.
    """
    model, views, sources = _tables(projection), runtime.views, _there(sources_of(runtime, projection))
    assert views is not None
    loop = asyncio.get_running_loop()
    seen = await look_at(runtime, projection)
    with scratch(views.place, model) as connection:
        fold = Fold(projection, model, connection, seen.groups or projection.groups)
        # Most of it, before anything is held open.
        await fold.go_on(sources, seen.places, advance, without=seen.left_out)

        def look(live: sa.Connection) -> list[TableDifference]:
            now = applied(live, projection.name)
            if not seen.left_out <= now.left_out or (seen.version, seen.groups) != (now.version, now.groups):
                raise EvsyncError(
                    f"the read model of projection {projection.name!r} was rebuilt, or parked events of it were "
                    "retried, while it was looked at. Nothing was changed; try again"
                )
            rest = fold.go_on(sources, now.places, without=now.left_out)
            asyncio.run_coroutine_threadsafe(rest, loop).result()
            return compare(as_it_is(live, model), Side(connection, model), limit)

        return DiffReport(projection.name, "the read model as it is", await views.read(look))


async def diff_with(
    runtime: Runtime,
    projection: Projection[Any],
    other: Projection[Any],
    *,
    limit: int = LIMIT,
    advance: Progress = unheard,
) -> DiffReport:
    """Compare what another code of the projection makes of the whole history with what this one makes of it."""
    old, new, views = _tables(other), _tables(projection), runtime.views
    assert views is not None
    if unknown := set(other.sources) - runtime.sources.keys():
        raise ConfigurationError(
            f"the other projection {other.name!r} reads the logs of {', '.join(sorted(unknown))}, which service "
            f"{runtime.service.name!r} does not"
        )
    theirs, ours = _there(sources_of(runtime, other)), _there(sources_of(runtime, projection))
    end = await heads_of(list({id(s): s for s in (*theirs, *ours)}.values()), 1)
    with scratch(views.place, old) as before, scratch(views.place, new) as after:
        await Fold(other, old, before, 1).go_on(theirs, end, lambda done, total: advance(done, 2 * total))
        await Fold(projection, new, after, 1).go_on(ours, end, lambda done, total: advance(done + total, 2 * total))
        found = await asyncio.to_thread(compare, Side(before, old), Side(after, new), limit)
    return DiffReport(projection.name, f"version {other.version} of the other code", found)


def _tables(projection: Projection[Any]) -> sa.MetaData:
    if isinstance(projection.model, SqlModel):
        return projection.model.metadata
    raise ConfigurationError(f"projection {projection.name!r} keeps its model in memory: there are no rows to compare")


def tables_of(projection: Projection[Any]) -> list[str]:
    """The names of a projection's tables."""
    return list(projection.model.metadata.tables) if isinstance(projection.model, SqlModel) else []
