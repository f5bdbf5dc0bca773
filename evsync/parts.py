"""The parts of a service: which of them a process runs, and whose logs they read."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from evsync.archive.backup import GENTLE, Backups
from evsync.archive.policy import BackupPolicy
from evsync.archive.schedule import ScheduledBackups
from evsync.archive.targets import opened_targets
from evsync.config import Deployment
from evsync.errors import ConfigurationError
from evsync.ports import Store
from evsync.projections import Projection, Reaction

if TYPE_CHECKING:
    from evsync.service import Service


def parts_to_run(service: Service, settings: Deployment) -> frozenset[str]:
    """The names of the parts that `run=` asks for. Raises ConfigurationError for one that the service does not have."""
    names = {"relay", *(p.name for p in service.projections), *(r.name for r in service.reactions)}
    if service.backups is not None:
        names.add("backup")
    run = settings["run"]
    if run == "all":
        return frozenset(names)
    if run == "none":
        return frozenset()
    if isinstance(run, str) or (unknown := set(run) - names):
        raise ConfigurationError(
            f"run={run!r}: service {service.name!r} has no part named "
            f"{', '.join(sorted(unknown)) if not isinstance(run, str) else repr(run)}; use 'all', 'none' or a list of "
            f"{', '.join(sorted(names))}"
        )
    return frozenset(run)


def services_read_by(service: Service) -> tuple[str, ...]:
    """The services whose logs its projections and reactions follow, itself among them if they do."""
    parts: list[Projection[Any] | Reaction] = [*service.projections, *service.reactions]
    return tuple(dict.fromkeys(s for part in parts for s in part.sources))


async def scheduled_backups(
    service: Service, stores: Mapping[str, Store], policy: BackupPolicy, stack: AsyncExitStack
) -> ScheduledBackups:
    """The backups that its policy asks for, to targets that are open as long as the stack is."""
    if len(stores) > 1:
        raise ConfigurationError(
            f"service {service.name!r} has {len(stores)} shards and a BackupPolicy, and shards are not archived in "
            "this version: back their databases up by the databases' own means, and leave backups= out"
        )
    (store,) = stores.values()
    targets = await stack.enter_async_context(opened_targets(policy.targets))
    followers = [reaction.name for reaction in service.reactions]
    backups = Backups(store, targets, copies=policy.copies, keep=policy.keep, followers=followers, share=GENTLE)
    return ScheduledBackups(backups, policy.interval)
