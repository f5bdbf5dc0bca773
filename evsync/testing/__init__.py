"""For the tests of those who build on evsync.

facts, given      aggregates: given these facts, when this command, then these facts
world             whole services in one process without servers, run until nothing is left to do
contracts         the suites that every adapter passes, for adapters of one's own (evsync.testing.contracts)
fixtures          a real nats-server and PostgreSQL as pytest fixtures; loaded by itself as a pytest plugin
"""

from evsync.testing.facts import facts, given
from evsync.testing.world import World, world

__all__ = ["World", "facts", "given", "world"]
