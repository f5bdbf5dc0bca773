"""A service for the tests of `evsync shards`: `tests.sharded_shop:shop`, its router from the environment."""

from __future__ import annotations

import os

from evsync import NamedAggregate, Service, event
from evsync.sharding import HashRing, RangeRouter, Router


class Cart(NamedAggregate):
    """A cart."""

    @event("Begun")
    def __init__(self, id: str) -> None:
        pass


def _router() -> Router | None:
    if shards := os.environ.get("RING"):
        return HashRing(shards.split(","))
    return RangeRouter.even(os.environ["RANGES"].split(",")) if "RANGES" in os.environ else None


shop = Service("shop", aggregates=[Cart], router=_router())
