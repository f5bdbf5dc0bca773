"""What `evsync reset` does where there is little or nothing to do, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evsync import Event, MemoryModel, Projection, Reaction, Service
from evsync.errors import ConfigurationError
from evsync.operations.resets import reset_follower
from tests.rebuilt_bank import Account, Opened, made
from tests.relaying import eventually

pytestmark = pytest.mark.anyio


def bank() -> Service:
    """The bank with a model in memory, a second projection into the first one's tables, and a reaction."""
    first = made()[0].projections[0]
    twin = Projection("twin", model=first.model)
    twin.on(Opened)(lambda e, db: None)
    counts: Projection[dict[str, int]] = Projection("counts", model=MemoryModel(dict))
    counts.on(Opened)(lambda e, state: state.update({e.stream_id: 1}))
    gift = Reaction("gift", since="beginning")

    @gift.on(Opened)
    async def give(e: Event[Opened], service: Service) -> Account | None:
        if e.data.owner == "bank":
            return None
        return Account(f"gift-{e.stream_id}", "bank")

    return Service("bank", aggregates=[Account], projections=[first, twin, counts], reactions=[gift])


async def test_what_cannot_be_reset_is_refused_or_needs_nothing(tmp_path: Path) -> None:
    """Unknown names with those that there are, tables that two share; what is in memory, and what is in step."""
    urls: dict[str, Any] = {
        "store": f"sqlite:///{tmp_path}/bank.db", "views": f"sqlite:///{tmp_path}/views.db", "nats": "",
    }  # fmt: skip
    service = bank()
    async with service.open(**urls, run="none"):
        pass
    async with service.inspect(followers=True, **urls):
        assert await reset_follower(service.runtime, "gift") == ["reaction gift has answered nothing yet"]
    async with service.open(**urls):
        await service.save(Account("ada", "Ada"))

        async def answered() -> bool:
            return "gift-ada" in {e.stream_id async for e in service.log()}

        await eventually(answered, "the gift")
    async with service.inspect(followers=True, **urls):
        runtime = service.runtime
        [line] = await reset_follower(runtime, "gift")
        assert line.startswith("reaction gift: log bank.main is followed from position")
        assert line.endswith("as before")
        assert "keeps its model in memory" in (await reset_follower(runtime, "counts"))[0]
        with pytest.raises(
            ConfigurationError, match="'balances' and 'twin' write to the same tables: stop the service"
        ):
            await reset_follower(runtime, "balances")
        with pytest.raises(ConfigurationError, match="no reaction 'gifts'; it has balances, twin, counts, gift"):
            await reset_follower(runtime, "gifts")
