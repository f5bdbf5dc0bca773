"""What `evsync status` prints for people, from what it knows."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from evsync.cli.status import _duration, _rendered


def shown(found: dict[str, Any], *, groups: bool = False) -> str:
    """As a wide pipe gets it, runs of spaces as one."""
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(*_rendered(found, groups=groups), sep="\n")
    return "\n".join(" ".join(line.split()) for line in capture.get().splitlines())


def follower(**more: Any) -> dict[str, Any]:
    """A projection that is idle."""
    at = {"log": "bank.main", "position": 40, "head": 42, "lag": 2, "lag_s": 90.0, "state": "running", "reason": None}
    at["groups"] = [{"group": 3, "position": 40, "lag": 2, "lag_s": 7_000.0, "count": 9}]
    return {"name": "view", "reason": None, "waiting_for": [], "workers": [], "parked": 0, "logs": [at]} | more


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "0"), (3.21, "3.2 s"), (240, "4 min"), (5_999, "100 min"), (18_000, "5 h"), (1_000_000, "12 d")],
)
def test_a_time_is_as_short_as_a_person_wants_it(seconds: float | None, text: str) -> None:
    """In a unit that keeps the number short."""
    assert _duration(seconds) == text


def test_everything_that_stands_in_the_way_is_told_once() -> None:
    """Of the relay, of a follower and of its logs; who waits for a log that is not there has a row too."""
    relay = {"confirmed": 40, "lag": 2, "state": "halted", "reason": "stream is full"}
    found = {
        "nats": None,
        "logs": {"bank.main": {"incarnation": "abc", "head": 42, "relay": relay}},
        "followers": [follower(reason="stuck", waiting_for=["post"], parked=3), follower(name="other", reason="stuck")],
    }
    text = shown(found)
    assert "log bank.main, incarnation abc, head 42" in text
    assert "NATS none: EVSYNC_NATS is not set" in text
    assert "relay bank.main 40 42 2 halted" in text
    assert "view bank.main 40 42 2 2 min running" in text
    assert "view post.? - - - - waiting" in text
    assert "view: 3 events are parked; see `evsync parked list`" in text
    for reason in ("relay: stream is full", "view: stuck", "other: stuck"):
        assert text.count(reason) == 1


def test_groups_are_shown_where_they_are_asked_for() -> None:
    """Each below its log."""
    found = {"nats": "127.0.0.1:4222", "logs": {}, "followers": [follower()]}
    assert "group 3" not in shown(found)
    assert "group 3 40 2 2 h" in shown(found, groups=True)
