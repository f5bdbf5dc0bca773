"""What every test may use."""

from __future__ import annotations

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """evsync runs on asyncio (nats-py does); trio is not offered."""
    return "asyncio"
