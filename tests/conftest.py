"""What every test may use."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.relaying", "tests.spine")  # so that their failures show the values too


@pytest.fixture
def anyio_backend() -> str:
    """evsync runs on asyncio (nats-py does); trio is not offered."""
    return "asyncio"
