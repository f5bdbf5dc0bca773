"""What every test may use."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# Tests start hundreds of processes; each would compile all of evsync anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

settings.register_profile("evsync", deadline=None)  # how long an example takes depends on what else the machine does
settings.load_profile("evsync")
# So that their failures show the values too.
pytest.register_assert_rewrite("tests.projection_processes", "tests.relaying", "tests.spine")


@pytest.fixture
def anyio_backend() -> str:
    """evsync runs on asyncio (nats-py does); trio is not offered."""
    return "asyncio"


@pytest.fixture(params=["the quick way", "nats-py's own calls"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs twice: as with the nats-py that is installed, and as with one that nobody has tried."""
    from evsync.jetstream.client import quick_session

    if request.param != "the quick way":
        monkeypatch.setattr(quick_session, "INSTALLED", "2.99.0")
