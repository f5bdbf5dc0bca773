"""Where every slot is, by what the stores themselves say."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from evsync.errors import WrongStore
from evsync.ports import SlotStore
from evsync.records import SlotState


class Held(NamedTuple):
    """The newest that any store says of a slot."""

    shard: str
    state: SlotState

    @property
    def is_open(self) -> bool:
        """Whether the slot is open there; if not, it is on its way to `state.to`."""
        return self.state.to is None

    @property
    def bound_for(self) -> str:
        """The shard that holds it, or will when its move is finished."""
        return self.state.to or self.shard


async def truth(stores: Mapping[str, SlotStore]) -> dict[int, Held]:
    """Where each slot is, as far as stores that are asked one after the other can tell.

    Raises WrongStore when the stores cannot be those of one service.
    """
    said = dict(zip(stores, await asyncio.gather(*(s.slot_states() for s in stores.values())), strict=True))
    found: dict[int, Held] = {}
    for shard, states in said.items():
        for slot, state in states.items():
            before = found.get(slot)
            if before is not None and before.is_open and state.to is None and before.state.epoch == state.epoch:
                raise WrongStore(
                    f"slot {slot} is open in shard {before.shard!r} and in shard {shard!r}: their stores were not made "
                    "as shards of one service. Nothing was touched; give each shard the store that it was made with."
                )
            # At one epoch a slot is closed for a shard, and then open there: open is the later.
            if before is None or (state.epoch, state.to is None) > (before.state.epoch, before.is_open):
                found[slot] = Held(shard, state)
    slots = next(iter(stores.values())).identity.slots
    if len(found) < slots:
        missing = next(slot for slot in range(slots) if slot not in found)
        raise WrongStore(
            f"slot {missing} is in none of the shards {', '.join(stores)}: a shard is missing. Name the stores of all "
            "shards that the service ever had, also of those that were drained."
        )
    return found
