"""A router plans which shard holds which slot. It only plans: what is so stands in the stores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable
from uuid import UUID

from evsync.errors import ConfigurationError
from evsync.records import check_name
from evsync.sharding.slots import slot_of

Placement = tuple[str, ...]
"""The shard of every slot, by the slot's number."""

MAX_SLOTS = 65_536


@runtime_checkable
class Router(Protocol):
    """A plan: slot → shard. Pure and immutable; two that were made alike are equal, on every machine."""

    @property
    def slots(self) -> int:
        """How many slots there are. Never changes in the life of a service."""
        ...

    @property
    def shards(self) -> tuple[str, ...]:
        """The shards by name, each of which holds one slot at least."""
        ...

    @property
    def placement(self) -> Placement:
        """The shard of every slot."""
        ...

    def shard_of(self, key: UUID | str) -> str:
        """The shard of an aggregate's id."""
        ...

    def plan(self, now: Sequence[str]) -> Placement:
        """Where each slot should be, given where it is `now`. The slots that differ are to be moved, no others.

        A plan that is asked to plan on from itself changes nothing.
        """
        ...


class Placed:
    """What every router does once it knows its placement."""

    __slots__ = ("_named", "_placement")

    def __init__(self, placement: Placement, named: tuple[str, ...]) -> None:
        self._placement, self._named = placement, named

    @property
    def slots(self) -> int:
        """How many slots there are."""
        return len(self._placement)

    @property
    def shards(self) -> tuple[str, ...]:
        """The shards, in the order in which they were named."""
        return self._named

    @property
    def placement(self) -> Placement:
        """The shard of every slot, by the slot's number."""
        return self._placement

    def shard_of(self, key: UUID | str) -> str:
        """The shard of an aggregate's id, from the id alone: nothing is asked or opened."""
        placement = self._placement
        return placement[slot_of(key if type(key) is str else str(key), len(placement))]

    def slots_of(self, shard: str) -> tuple[int, ...]:
        """The slots of a shard. Raises ConfigurationError for one that this router does not know."""
        self._check_known(shard)
        return tuple(slot for slot, owner in enumerate(self._placement) if owner == shard)

    def _check_slots(self, now: Sequence[str]) -> None:
        if len(now) != self.slots:
            raise ConfigurationError(
                f"a placement of {len(now)} slots cannot be planned on by {self!r}: the number of slots never changes"
            )

    def _check_known(self, shard: str) -> None:
        if shard not in self._named:
            raise ConfigurationError(f"there is no shard {shard!r} in {self!r}")

    def _check_new(self, shard: str) -> None:
        if shard in self._named:
            raise ConfigurationError(f"there is a shard {shard!r} in {self!r} already")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and repr(other) == repr(self) and other._placement == self._placement

    def __hash__(self) -> int:
        return hash((repr(self), self._placement))


def check_shards(names: Sequence[str], slots: int) -> tuple[str, ...]:
    """The names, if they can be the shards of a router with so many slots. Raises ConfigurationError."""
    if isinstance(names, str):
        raise ConfigurationError(f"{names!r} is one name: give the shards as a list, such as [{names!r}]")
    if isinstance(slots, bool) or not isinstance(slots, int) or not 1 <= slots <= MAX_SLOTS:
        raise ConfigurationError(f"slots={slots!r}: there are 1 to {MAX_SLOTS:,} slots, chosen once for a service")
    if not names:
        raise ConfigurationError("a router needs at least one shard")
    found = tuple(check_name("shard", name) for name in names)
    for twice in {name for name in found if found.count(name) > 1}:
        raise ConfigurationError(f"shard {twice!r} is named twice")
    if len(found) > slots:
        raise ConfigurationError(
            f"{len(found)} shards cannot share {slots} slots: a slot is on one shard. Have fewer shards; the number of "
            "slots is chosen once, when the service's stores are made"
        )
    return found
