"""The laws of BackupTarget, as tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from evsync.ports import BackupTarget

NAME = "users.main/3f9a2b1c7d5e/000000000000001.segment"


class BackupTargetContract:
    """What every BackupTarget promises."""

    pytestmark = pytest.mark.anyio

    async def new_target(self) -> BackupTarget:
        """A target that holds nothing."""
        raise NotImplementedError

    @asynccontextmanager
    async def _target(self) -> AsyncIterator[BackupTarget]:
        target = await self.new_target()
        try:
            yield target
        finally:
            await target.close()

    async def test_what_was_put_is_there(self) -> None:
        """All of it, byte by byte, or its beginning."""
        async with self._target() as target:
            content = bytes(range(256)) * 4_000
            assert await target.put(NAME, content)
            assert await target.get(NAME) == content
            assert await target.get(NAME, most=100) == content[:100]
            assert await target.get(NAME, most=10**9) == content

    async def test_nothing_is_there_before(self) -> None:
        """An empty target is no error, nor is a name that it does not know."""
        async with self._target() as target:
            assert list(await target.list("")) == []
            assert list(await target.list("users.main/")) == []
            assert await target.get(NAME) is None
            assert await target.get(NAME, most=10) is None
            await target.delete(NAME)

    async def test_a_name_is_taken_once(self) -> None:
        """Who comes second learns of it, and changes nothing, unless it wants to replace."""
        async with self._target() as target:
            assert await target.put(NAME, b"first")
            assert not await target.put(NAME, b"second")
            assert await target.get(NAME) == b"first"
            assert await target.put(NAME, b"third", replace=True)
            assert await target.get(NAME) == b"third"

    async def test_of_many_at_once_one_is_first(self) -> None:
        """Whatever they write, the name has the content of the one that was told so."""
        async with self._target() as target:
            contents = [b"%d" % n * 1_000 for n in range(8)]
            outcomes = await asyncio.gather(*(target.put(NAME, content) for content in contents))
            assert sum(outcomes) == 1
            assert await target.get(NAME) == contents[outcomes.index(True)]

    async def test_names_are_listed_by_folder(self) -> None:
        """Sorted, and those of the folder alone."""
        async with self._target() as target:
            names = ["a/b/2.segment", "a/b/1.segment", "a/bb/3.segment", "a/c.json", "b/b/4.segment"]
            for name in names:
                assert await target.put(name, name.encode())
            assert list(await target.list("")) == sorted(names)
            assert list(await target.list("a/b/")) == ["a/b/1.segment", "a/b/2.segment"]
            assert list(await target.list("a/")) == sorted(names)[:4]

    async def test_what_is_deleted_is_gone(self) -> None:
        """And can be put again."""
        async with self._target() as target:
            assert await target.put(NAME, b"first")
            await target.delete(NAME)
            assert await target.get(NAME) is None
            assert list(await target.list("")) == []
            assert await target.put(NAME, b"again")
