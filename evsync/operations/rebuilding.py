"""Read models made anew while they are in use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from evsync.definition import Definition, shared_tables
from evsync.errors import ConfigurationError
from evsync.ports import LogSource, Progress, unheard
from evsync.projections import Projection, ViewsDatabase
from evsync.projections.rebuilding.rebuild import GRACE_S, Rebuild, RebuildReport, log_waiting


async def rebuild(
    service: Definition,
    projection: Projection[Any],
    views: ViewsDatabase | None,
    sources: Mapping[str, LogSource],
    *,
    anew: bool = False,
    only_if_older: bool = False,
    grace_s: float = GRACE_S,
    timeout_s: float | None = None,
    advance: Progress = unheard,
    tell: Callable[[str], None] = log_waiting,
) -> RebuildReport:
    """Rebuild a projection's read model while the one that is there goes on being used (see `Rebuild`).

    `sources`: where logs are read, by service. Raises ConfigurationError for a model in memory,
    and for tables that another projection fills too.
    """
    if (shared := shared_tables(service, projection)) is not None:
        other, tables = shared
        raise ConfigurationError(
            f"projection {projection.name!r} cannot be rebuilt alone: projection {other!r} fills table "
            f"{tables[0]!r} too, and what it has put there would be gone. Give each a MetaData of its own"
        )
    work = Rebuild(
        projection,
        views,
        [sources[name] for name in projection.sources],
        anew=anew,
        only_if_older=only_if_older,
        grace_s=grace_s,
        timeout_s=timeout_s,
        advance=advance,
        tell=tell,
    )
    return await work.run()
