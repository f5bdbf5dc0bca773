"""What JetStream's numbers mean to whoever has sent a message."""

from __future__ import annotations

import pytest

from evsync.jetstream.client.refusals import Refused


@pytest.mark.parametrize(
    ("code", "err_code", "words", "meant"),
    [
        (400, 10071, "wrong last sequence: 7", {"is_conflict", "is_final"}),
        (400, 10164, "wrong last sequence", {"is_conflict"}),
        (503, 10077, "maximum messages per subject exceeded", {"is_conflict", "passes"}),
        (503, 10077, "maximum bytes exceeded", {"is_full", "passes"}),
        (503, 10023, "insufficient resources", {"is_full", "passes"}),
        (500, 10047, "insufficient storage resources available", {"is_full", "passes"}),
        (400, 10002, "resource limits exceeded for account", {"is_full"}),
        (400, 10176, "atomic publish batch is incomplete", {"passes"}),
        (503, 10008, "JetStream system temporarily unavailable", {"passes"}),
        (400, 10060, "expected stream does not match", set()),
        (400, 10109, "invalid operation on sealed stream", set()),
    ],
)
def test_a_refusal_means_what_its_number_and_words_say(code: int, err_code: int, words: str, meant: set[str]) -> None:
    """Somebody was first, there is no room, or it passes by itself; all else is for a person."""
    refused = Refused.of({"code": code, "err_code": err_code, "description": words})
    assert {name for name in ("is_conflict", "is_final", "is_full", "passes") if getattr(refused, name)} == meant
    assert (refused.error("a message").code, refused.error("a message").err_code) == (code, err_code)
