"""The archives of a service's logs: what is written to them, and read from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from evsync.archive.backup import GENTLE, Backups
from evsync.archive.past import ArchivedPast
from evsync.archive.policy import BackupPolicy
from evsync.archive.schedule import ScheduledBackups
from evsync.archive.targets import opened_targets
from evsync.config import Deployment
from evsync.definition import Definition
from evsync.ports import BackupTarget, Store
from evsync.stores.trimmed import Trimmed


def read_past(service: Definition, settings: Deployment, stores: Mapping[str, Store]) -> None:
    """Let stores read from their archives what was trimmed from them, if the service says where these are."""
    archives: Any = settings.get("archives", {}).get(service.name) or ()
    urls = [archives] if isinstance(archives, str) else archives
    if not urls and service.backups is not None:
        urls = service.backups.targets
    for store in stores.values():
        if urls and isinstance(store, Trimmed):
            store.past = ArchivedPast(store.identity, urls)


async def scheduled_backups(
    service: Definition, stores: Mapping[str, Store], policy: BackupPolicy, stack: AsyncExitStack
) -> dict[str, ScheduledBackups]:
    """The backups of each shard that its policy asks for, to targets that are open as long as the stack is."""
    targets = await stack.enter_async_context(opened_targets(policy.targets))
    return {
        shard: ScheduledBackups(backups_of(service, store, targets, policy, GENTLE / len(stores)), policy.interval)
        for shard, store in stores.items()
    }


def backups_of(
    service: Definition, store: Store, targets: Sequence[BackupTarget], policy: BackupPolicy, share: float = 1.0
) -> Backups:
    """What archives one of the service's logs."""
    followers = [reaction.name for reaction in service.reactions]
    return Backups(store, targets, copies=policy.copies, keep=policy.keep, followers=followers, share=share)
