"""Opening the shards of a service: their stores, and where its slots are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack

from evsync.control import FENCES_STREAM
from evsync.errors import ConfigurationError, StoreUnavailable
from evsync.homes import ShardedStores, one_number_of_slots
from evsync.opening import open_store
from evsync.ports import Store
from evsync.records import LogIdentity, new_incarnation
from evsync.sharding import HashRing, Router
from evsync.sharding.handover import bring_about
from evsync.sharding.slots import SLOTS
from evsync.sharding.truth import check_all_there, truth
from evsync.stores.group_commit import GroupCommit
from evsync.stores.memory import MemoryStore
from evsync.stores.slot_steps import Fence, check_fence


async def open_shards(
    urls: Mapping[str, str],
    service: str,
    stack: AsyncExitStack,
    *,
    create: bool,
    router: Router | None = None,
    planned: str | None = None,
) -> dict[str, Store]:
    """The stores of all shards by name, made where they are not there and `create` allows it, and the router fits.

    Where none is there, all slots are open in the first; a shard that joins later begins without any. For one that is
    `planned`, and not there, an empty store in memory stands. Raises as `open_store`, and ConfigurationError for stores
    that cannot be those of one service.
    """
    if not urls:
        raise ConfigurationError(f"service {service!r} has no shards: store={{}} names none")

    async def opened(shard: str, *, create: bool, owns_slots: bool = True, slots: int = SLOTS) -> Store:
        store = await open_store(
            urls[shard], service=service, shard=shard, create=create, owns_slots=owns_slots, slots=slots
        )
        stack.push_async_callback(store.close)
        return store

    found: dict[str, Store] = {}
    missing: list[str] = []
    in_memory = [shard for shard, url in urls.items() if url.partition(":")[0] == "memory"]
    if in_memory and len(in_memory) < len(urls):
        raise ConfigurationError(
            f"service {service!r}: shard {in_memory[0]!r} is in memory, and others are not: slots that lie in it would "
            "be gone with the process, and the others could not be opened without them. Use memory:// for all or none"
        )
    for shard in urls:
        if in_memory:
            missing.append(shard)  # it is always a new one
            continue
        try:
            found[shard] = await opened(shard, create=False)
        except StoreUnavailable:
            if not create and shard != planned:
                raise
            missing.append(shard)
    # Chosen once, with the first stores.
    slots = next((store.identity.slots for store in found.values()), SLOTS if router is None else router.slots)
    if missing and router is not None:  # before anything is made
        check_fits(router, urls, slots)
    for shard in missing:
        if shard == planned:
            found[shard] = MemoryStore(LogIdentity(service, shard, new_incarnation(), slots), owns_slots=False)
        else:
            found[shard] = await opened(shard, create=True, owns_slots=not found, slots=slots)
    stores = {shard: found[shard] for shard in urls}
    one_number_of_slots(list(stores.values()))
    return stores


async def open_only_shard(
    url: str, service: str, stack: AsyncExitStack, *, create: bool, router: Router | None = None
) -> Store:
    """The store of a service that has one, made where it is not there and `create` allows it, and the router fits."""
    if router is not None:  # before anything is made
        check_fits(router, ["main"], router.slots)
    store = await open_store(url, service=service, create=create, slots=SLOTS if router is None else router.slots)
    stack.push_async_callback(store.close)
    if router is not None:
        check_fits(router, ["main"], store.identity.slots)
    return store


async def open_home(
    stores: Mapping[str, Store], router: Router | None, stack: AsyncExitStack, *, place: bool
) -> ShardedStores:
    """Where the streams are. Slots of a service that has no events yet are placed as the router plans, if `place`.

    Raises WrongStore, StoreUnavailable where a shard's store is not among them.
    """
    plan = plan_of(stores, router)
    now = await truth(stores)
    if place and {held.state.epoch for held in now.values()} == {1}:
        await _place(stores, plan)
        now = await truth(stores)
    commits = {}
    for shard, store in stores.items():
        commits[shard] = GroupCommit(store)
        stack.push_async_callback(commits[shard].close)
    home = ShardedStores(stores, commits, now)
    await check_all_there(stores)
    await _check_fences(stores)
    return home


async def _check_fences(stores: Mapping[str, Store]) -> None:
    """Raise WrongStore for a store in whose place another one was restored, beside the others."""
    for store in stores.values():
        for event in (await store.read_stream(FENCES_STREAM))[-1:]:
            for other in stores.values():
                check_fence(Fence(event.version, event.incarnation, event.data), store.identity, other.identity)


async def _place(stores: Mapping[str, Store], plan: Router) -> None:
    """The first placement is an ordinary move, and as good as free while there is nothing to copy."""
    if any([await store.head() for store in stores.values()]):
        return  # a service that has grown: `evsync shards rebalance`, when its operator says so
    await bring_about(stores, plan.placement)


def plan_of(stores: Mapping[str, Store], router: Router | None) -> Router:
    """The router of a service, if it fits the stores; a HashRing of all shards where none is given."""
    slots = next(iter(stores.values())).identity.slots
    if router is None:
        return HashRing(list(stores), slots=slots)
    check_fits(router, stores, slots)
    return router


def check_fits(router: Router, shards: Collection[str], slots: int) -> None:
    """Raise ConfigurationError for a router of other shards, or another number of slots."""
    if unknown := [shard for shard in router.shards if shard not in shards]:
        raise ConfigurationError(
            f"the router plans for shard {unknown[0]!r}, and store= names {', '.join(map(repr, shards))} only: give "
            "it a URL for each shard by name; one URL alone is that of shard 'main'"
        )
    if router.slots != slots:
        raise ConfigurationError(
            f"the router has {router.slots} slots, and the service's stores have {slots}: the number is chosen once, "
            "when the stores are made"
        )
