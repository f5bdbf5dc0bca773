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
    return _newest(await _said(stores), next(iter(stores.values())).identity.slots)


async def check_all_there(stores: Mapping[str, SlotStore]) -> None:
    """Raise WrongStore if the stores speak of a shard that is not among them, or a slot came from none of them."""
    for last in (False, False, True):  # stores that are asked one after the other while slots move say odd things
        said = await _said(stores)
        missing = _missing(said, _newest(said, next(iter(stores.values())).identity.slots))
        if missing is None:
            return
        if last:
            raise WrongStore(f"{missing}, and of the service's shards only {', '.join(stores)} are named: {_NAME_ALL}")


_NAME_ALL = (
    "a shard is missing. Name the stores of all shards that the service ever had, also of those that were drained."
)

Said = Mapping[str, Mapping[int, SlotState]]


async def _said(stores: Mapping[str, SlotStore]) -> Said:
    """What each store says of its slots."""
    return dict(zip(stores, await asyncio.gather(*(s.slot_states() for s in stores.values())), strict=True))


def _missing(said: Said, now: Mapping[int, Held]) -> str | None:
    """What only a shard that is not there can explain."""
    for shard, states in said.items():
        for slot, state in states.items():
            if state.to is not None and state.to not in said:
                return f"slot {slot} went from shard {shard!r} to shard {state.to!r}"
    for slot, held in now.items():
        epoch = held.state.epoch
        before = {(epoch, held.shard), (epoch - 1, None)}  # closed for the move by which it came, or not just yet
        if held.is_open and epoch > 1 and not any(_row(states.get(slot)) in before for states in said.values()):
            return f"slot {slot} came to shard {held.shard!r} from another one"
    return None


def _row(state: SlotState | None) -> tuple[int, str | None] | None:
    return (state.epoch, state.to) if state is not None else None


def _newest(said: Said, slots: int) -> dict[int, Held]:
    """Where each slot is, by the newest that any store says of it."""
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
    if len(found) < slots:
        slot = next(slot for slot in range(slots) if slot not in found)
        raise WrongStore(f"slot {slot} is in none of the shards {', '.join(said)}: {_NAME_ALL}")
    return found
