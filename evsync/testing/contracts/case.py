"""What every suite for stores asks of the class that inherits it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from evsync.ports import Store

DEADLINE_S = 60.0
"""How long a test waits for what must come; a machine under load may take its time."""


class StoreCase:
    """The makers that an adapter's test overrides. The suites close the stores they get."""

    pytestmark = pytest.mark.anyio

    opener = "evsync.opening:open_store"
    """`module:function` by which another process opens the URL of `url_of`, called with it, service= and shard=."""

    @pytest.fixture
    def anyio_backend(self) -> str:
        """The suites run on asyncio, as evsync does."""
        return "asyncio"

    async def new_store(self) -> Store:
        """A new, empty store; each call makes another."""
        raise NotImplementedError("override new_store: it makes an empty store")

    async def reopen(self, store: Store) -> Store:
        """The store once more, after it was closed: what was appended is there. Durable stores override this."""
        raise NotImplementedError("this store declares durable=True: override reopen")

    def url_of(self, store: Store) -> str:
        """Where another process finds the store. Stores for several processes override this."""
        raise NotImplementedError("this store declares several_processes=True: override url_of")

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Store]:
        """A new, empty store for the length of a block."""
        store = await self.new_store()
        try:
            yield store
        finally:
            await store.close()

    def require(self, store: Store, capability: str) -> None:
        """Skip the test if the adapter declares that it cannot do this."""
        if not getattr(store.capabilities, capability):
            pytest.skip(f"{type(store).__name__} declares {capability}=False")
