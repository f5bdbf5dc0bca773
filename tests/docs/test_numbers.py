"""Numbers that the pages promise are those of the code: a reader plans with them."""

from __future__ import annotations

import inspect

import pytest

from evsync import Projection, Reaction, Service
from evsync.aggregates import cache, repository, snapshots
from evsync.archive import backup, compression, directory, reader, rescue, segments
from evsync.homes import PATIENCE_S
from evsync.jetstream import messages, relay, sizes
from evsync.jetstream.store import stream
from evsync.liveness import IDLE_S
from evsync.projections.projection import MAX_GROUPS
from evsync.projections.rebuilding import exchange, rebuild
from evsync.projections.running import reaction_runner, runner, visibility
from evsync.records import MAX_STREAM_ID_BYTES, event_id, new_command
from evsync.sharding import handover, router, slots
from evsync.stores import plan
from evsync.stores.sqlite import pace
from tests.docs.pages import page

WORDS = {2: "two", 3: "three", 1_000: "a thousand", 2_000: "two thousand", 20_000: "twenty thousand"}
POLICY = relay.RelayPolicy()


def default(of: object, parameter: str) -> object:
    """What an argument is if nobody gives it."""
    assert callable(of)
    return inspect.signature(of).parameters[parameter].default


SAID = {
    "docs/guarantees.md": [
        f"decides again, up to {repository.ATTEMPTS} times",
        f"waits for it for up to {PATIENCE_S:g} seconds",
        f"reads the last {relay.TAIL:,} messages back",
        f"asks for the stream's state every {POLICY.look_s:g} seconds",
        f"still for {WORDS[int(POLICY.patience_s)]} seconds while the log is longer",
        f"is tried again ({default(Projection, 'retries')} times",
        f"(`groups=`, {default(Projection, 'groups')} unless told otherwise)",
        f"who was killed after about {runner.LEASE_S:g} seconds",
        f"after {IDLE_S} seconds, unless the server",
        f"its workers go on, after {exchange.FREEZE_S:g} seconds at most",
        f"when the time has run out ({default(Service.query, 'timeout_s'):g} seconds)",
        f"when the log is idle or {reaction_runner.LAZY_EVENTS} events later",
        f"1 to {MAX_STREAM_ID_BYTES} bytes of UTF-8",
        f"drawn at random ({8 * (len(event_id(new_command(), 0)) - 2)} bits)",
        f"{sizes.DEFAULT_MAX_PAYLOAD >> 20} MiB until a server has been met",
        f"| {plan.MAX_COMMIT_EVENTS:,}; {stream.MAX_COMMIT_EVENTS:,} where the store is on NATS |",
        f"{slots.SLOTS}, or as many as its router says ({router.MAX_SLOTS:,} at most)",
        f"| {MAX_GROUPS}; {default(Projection, 'groups')} unless told otherwise",
        f"after a second, then ever more rarely, down to {'once a minute' if pace.STALLED_AT_MOST_S == 60 else ''}",
    ],
    "docs/architecture.md": [
        f"{WORDS[POLICY.window]} in flight",
        f"About {WORDS[runner.BATCH]} events",
        f"every {visibility.POLL_S * 1000:g} ms",
        f"About {WORDS[backup.SEGMENT_EVENTS]} events",
    ],
    "docs/reference.md": [f"`Reaction(name, *, since, retries={default(Reaction, 'retries')})`"],
    "docs/glossary.md": [f"one transaction applies, about {WORDS[runner.BATCH]}"],
    "docs/benchmarks.md": [f"the mover rests {WORDS[int(handover.REST)]} times as long as it worked"],
    "docs/howto/deploy.md": [
        f"from {cache.WORTH_EVENTS}\nevents on",
        f"lease has run out, about {runner.LEASE_S:g} seconds",
    ],
    "docs/howto/back-up.md": [
        f"more than {rescue.MOST_EVENTS:,} events had to be brought back",
        f"more than {reader.WORTH_EVENTS:,} events behind",
        f"keeps a call for {WORDS[int(directory.PATIENCE_S / 60)]} minutes",
        f"backups take a {'tenth' if backup.GENTLE == 0.1 else ''} of its time",
    ],
    "docs/howto/rebuild.md": [f"is kept for `--grace` seconds ({rebuild.GRACE_S:g})"],
    "docs/wire-format.md": [
        f"An id has at most {MAX_STREAM_ID_BYTES} bytes; a subject has at most {messages.MAX_SUBJECT_BYTES:,}",
        f"({sizes.DEFAULT_MAX_PAYLOAD >> 20} MiB unless configured)",
    ],
    "docs/archive-format.md": [
        f"A header takes at most {segments.MAX_HEADER_BYTES >> 20} MiB, "
        f"a body at most {compression.MOST_BYTES >> 30} GiB unpacked",
    ],
    "docs/adr/0012-snapshots-are-folded-not-copied.md": [f"{snapshots.COMMANDS}"],
}


@pytest.mark.parametrize("name", SAID)
def test_numbers_on_the_pages_are_those_of_the_code(name: str) -> None:
    """Each phrase stands there, with what the code has; where lines are broken does not matter."""
    text = " ".join(page(name).text.split())
    assert [said for said in SAID[name] if " ".join(said.split()) not in text] == []
