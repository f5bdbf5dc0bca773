"""The code and the commands on the pages do what the pages say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import pages
from tests.docs.terminal import Terminal

_FOLLOWED = [p for p in pages() if p.blocks()]


@pytest.mark.parametrize("name", [p.name for p in _FOLLOWED])
def test_a_reader_who_follows_the_page_sees_what_it_says(name: str, tmp_path: Path) -> None:
    """Files as given, commands as typed, output as shown; fragments are at least Python."""
    [followed] = [p for p in _FOLLOWED if p.name == name]
    with Terminal(tmp_path / "reader") as terminal:
        terminal.follow(followed)
