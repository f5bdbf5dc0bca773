"""What a JetStream shard builds on, and what it could: fences under load on three servers, whose leaders change."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import fences

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("fence", ["sequence", "subject"])
async def test_no_append_is_stored_behind_the_seal_of_its_epoch(tmp_path: Path, fence: str) -> None:
    """Nor half, nor lost; none is refused for a seal that is not there. `python -m tests.fences` does it for longer."""
    found = await fences.run(fence, tmp_path, 4)
    assert found["events"] > 50
    assert found["seals"] > 3
    assert found["faults"]
    assert {what: found[what] for what in ("late", "half", "lost", "refused without a seal")} == {
        "late": 0,
        "half": 0,
        "lost": 0,
        "refused without a seal": 0,
    }
