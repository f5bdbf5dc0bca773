"""What every test may use."""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("evsync", deadline=None)  # how long an example takes depends on what else the machine does
settings.load_profile("evsync")
pytest.register_assert_rewrite("tests.relaying", "tests.spine")  # so that their failures show the values too


@pytest.fixture
def anyio_backend() -> str:
    """evsync runs on asyncio (nats-py does); trio is not offered."""
    return "asyncio"
