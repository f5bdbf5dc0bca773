"""A store whose caller is killed between two steps: for tests of what must happen then."""

from __future__ import annotations

import inspect
from typing import Any

from evsync.ports import Store


class Killed(Exception):
    """A mover has ended."""


class Budget:
    """How many more calls a mover makes before it is killed."""

    def __init__(self, calls: int) -> None:
        self.left = calls


class Dying:
    """A store whose caller is killed when its budget is spent: what it has called is done then, and nothing after."""

    def __init__(self, store: Store, budget: Budget) -> None:
        self._store, self._budget = store, budget

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not inspect.iscoroutinefunction(found):
            return found

        async def call(*arguments: Any) -> Any:
            if self._budget.left == 0:
                raise Killed
            self._budget.left -= 1
            return await found(*arguments)

        return call
