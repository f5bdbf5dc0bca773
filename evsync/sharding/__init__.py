"""Which slot a stream belongs to, and which shard is planned to hold a slot: pure, the same on every machine."""

from evsync.sharding.ranges import RangeRouter
from evsync.sharding.ring import HashRing
from evsync.sharding.router import Router
from evsync.sharding.slots import slot_of

__all__ = ["HashRing", "RangeRouter", "Router", "slot_of"]
