"""The parts of a service: which of them a process runs, whose logs they read, and how far they are."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from evsync.archive.backup import GENTLE, Backups
from evsync.archive.past import ArchivedPast
from evsync.archive.policy import BackupPolicy
from evsync.archive.schedule import BackupStatus, ScheduledBackups
from evsync.archive.targets import opened_targets
from evsync.config import Deployment
from evsync.errors import ConfigurationError
from evsync.jetstream.relay import RelayStatus
from evsync.ports import BackupTarget, Store
from evsync.projections import Projection, Reaction
from evsync.projections.contracts import matches
from evsync.projections.status import FollowerStatus
from evsync.records import service_of
from evsync.stores.trimmed import Trimmed

if TYPE_CHECKING:
    from evsync.service import Service

logger = logging.getLogger("evsync")


@dataclass(frozen=True, slots=True)
class OwnLogStatus:
    """One of a service's own logs at one moment."""

    incarnation: str
    head: int
    relay: RelayStatus | None
    """None where this process runs none."""


@dataclass(frozen=True, slots=True)
class Status:
    """A service at one moment."""

    service: str
    logs: Mapping[str, OwnLogStatus]
    """By name: one for each shard."""
    nats: str | None
    """Where the broker is, and why it is not reached if it is not; None without one."""
    followers: Sequence[FollowerStatus] = field(default_factory=tuple)
    backups: Mapping[str, BackupStatus] = field(default_factory=dict)
    """Of this process, by log; empty where it makes none."""


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
    """The services whose logs its projections and reactions follow, itself among them if they do.

    Raises ConfigurationError for one without handlers, which would follow nothing.
    """
    parts: list[Projection[Any] | Reaction] = [*service.projections, *service.reactions]
    for part in parts:
        if not part.sources:
            raise ConfigurationError(
                f"{type(part).__name__.lower()} {part.name!r} has no handlers: it would follow nothing. Register them "
                "before the service is opened: @….on(Contract)"
            )
    return tuple(dict.fromkeys(s for part in parts for s in part.sources))


def tell_of_unknown(reader: Service, of: Service) -> None:
    """A warning for each contract of `reader` that names no event of `of`, by today's name or an earlier one.

    Nothing ever comes to a handler whose event is misspelt, which looks like a read model that stays empty.
    """
    names = [*of.codec.types, *of.codec.renamed]
    parts: list[Projection[Any] | Reaction] = [*reader.projections, *reader.reactions]
    for part in parts if of.codec.types else ():
        for contract in part.handlers.contracts:
            type = contract.__event_type__
            known = any(matches(type, name) for name in names) or type.rpartition(".")[0] in of.codec.renamed
            if service_of(type) == of.name and not known:
                logger.warning(
                    "%s %s of service %s handles %s (contract %s), and service %s has no such event: it has %s",
                    *(part.__class__.__name__.lower(), part.name, reader.name, type, contract.__name__, of.name),
                    ", ".join(of.codec.types),
                )


def read_past(service: Service, settings: Deployment, stores: Mapping[str, Store]) -> None:
    """Let stores read from their archives what was trimmed from them, if the service says where these are."""
    archives: Any = settings.get("archives", {}).get(service.name) or ()
    urls = [archives] if isinstance(archives, str) else archives
    if not urls and service.backups is not None:
        urls = service.backups.targets
    for store in stores.values():
        if urls and isinstance(store, Trimmed):
            store.past = ArchivedPast(store.identity, urls)


async def scheduled_backups(
    service: Service, stores: Mapping[str, Store], policy: BackupPolicy, stack: AsyncExitStack
) -> dict[str, ScheduledBackups]:
    """The backups of each shard that its policy asks for, to targets that are open as long as the stack is."""
    targets = await stack.enter_async_context(opened_targets(policy.targets))
    return {
        shard: ScheduledBackups(backups_of(service, store, targets, policy, GENTLE / len(stores)), policy.interval)
        for shard, store in stores.items()
    }


def backups_of(
    service: Service, store: Store, targets: Sequence[BackupTarget], policy: BackupPolicy, share: float = 1.0
) -> Backups:
    """What archives one of the service's logs."""
    followers = [reaction.name for reaction in service.reactions]
    return Backups(store, targets, copies=policy.copies, keep=policy.keep, followers=followers, share=share)
