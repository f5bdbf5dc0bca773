"""What `make mutants` breaks: one small change for each, and the tests that must fail then.

The changes are such as a tired person makes: a comparison that is left out, a step in the wrong order, a value that is
forgotten. A law that no change here breaks is not tested by this table, whatever its tests are called.
"""

from __future__ import annotations

from dataclasses import dataclass

_MEMORY = "tests/contracts/test_memory.py::TestMemoryStore::"
_SQLITE = "tests/contracts/test_sqlite.py::TestSqliteStore::"
_POSTGRES = "tests/contracts/test_postgres.py::TestPostgresStore::"
_JETSTREAM = "tests/contracts/test_jetstream_store.py::TestJetStreamStore::"


@dataclass(frozen=True, slots=True)
class Mutation:
    """One change that breaks one law."""

    law: str
    file: str
    change: str
    """In a few words."""
    old: str
    """Text that stands in the file exactly once."""
    new: str
    tests: tuple[str, ...]
    """One of these fails."""

    def applied_to(self, text: str) -> str:
        """The file's text with the change."""
        found = text.count(self.old)
        assert found == 1, f"{self.file}: {self.old!r} stands there {found} times; let tests/mutation_table.py follow"
        return text.replace(self.old, self.new)

    @property
    def test_names(self) -> list[str]:
        """The tests without the files that they stand in."""
        return list(dict.fromkeys(test.rpartition("::")[2] for test in self.tests))


def _break(law: str, file: str, change: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(law, file, change, old, new, tests)


# fmt: off
MUTATIONS: tuple[Mutation, ...] = (
    # ---- stores
    _break(
        "Of many writers exactly one wins each version",
        "evsync/stores/plan.py", "a version that is behind the expected one is no conflict",
        "if actual != append.expected_version:", "if actual > append.expected_version:",
        _MEMORY + "test_an_expected_version_is_met_exactly",
    ),
    _break(
        "Of many writers exactly one wins each version",
        "evsync/stores/plan.py", "a version that is beyond the expected one is no conflict",
        "if actual != append.expected_version:", "if actual < append.expected_version:",
        _MEMORY + "test_of_many_writers_exactly_one_wins_each_version",
    ),
    _break(
        "Of many writers exactly one wins each version",
        "evsync/stores/postgres/schema.py", "appends do not lock the counter",
        "moved FROM {schema}.log FOR UPDATE;", "moved FROM {schema}.log;",
        _POSTGRES + "test_an_append_waits_for_one_that_was_begun_before_it",
    ),
    _break(
        "Of many writers exactly one wins each version",
        "evsync/stores/postgres/schema.py", "a version that is beyond the expected one is no conflict",
        "WHERE v.actual <> a.expected", "WHERE v.actual < a.expected",
        _POSTGRES + "test_a_conflict_keeps_out_its_own_commit_only",
    ),
    _break(
        "Positions are contiguous",
        "evsync/stores/plan.py", "a commit takes a position too many",
        "    return head + size\n", "    return head + size + 1\n",
        _MEMORY + "test_a_store_does_what_the_laws_say",
    ),
    _break(
        "A commit is all or none; a conflict keeps out its own commit only",
        "evsync/stores/plan.py", "a commit that is kept out moves the versions of its streams",
        "_conflict(commit, key, versions, positions, taken, moved))",
        "_conflict(commit, key, versions, positions, taken, versions))",
        _MEMORY + "test_a_store_does_what_the_laws_say",
    ),
    _break(
        "Reads end at the end of a commit",
        "evsync/stores/plan.py", "every event says that it is the last of its commit",
        "remaining = size - index", "remaining = 0",
        _MEMORY + "test_reads_end_at_the_end_of_a_commit",
    ),
    _break(
        "A checkpoint is stored with its commit, and only from the place that it presupposes",
        "evsync/stores/plan.py", "a checkpoint that has moved on is no conflict",
        "(actual := positions.get(key, 0)) != commit.after", "(actual := positions.get(key, 0)) < commit.after",
        _MEMORY + "test_two_processes_cannot_react_twice",
    ),
    _break(
        "A checkpoint is stored with its commit, and only from the place that it presupposes",
        "evsync/stores/postgres/schema.py", "a checkpoint that has moved on is no conflict",
        "WHERE coalesce(c.position, 0) <> k.after", "WHERE coalesce(c.position, 0) < k.after",
        _POSTGRES + "test_two_processes_cannot_react_twice",
    ),
    _break(
        "A checkpoint is stored with its commit, and only from the place that it presupposes",
        "evsync/stores/postgres/schema.py", "the checkpoint of a commit that is kept out is stored",
        "        WHERE commits IS NULL OR k.commit <> ALL (commits)\n", "",
        _POSTGRES + "test_a_conflict_of_a_stream_keeps_the_checkpoint_out",
    ),
    _break(
        "Versions that are given need only be free",
        "evsync/stores/plan.py", "a commit may give a version twice",
        "if (stream, version) in taken or (stream, version) in placed:", "if (stream, version) in taken:",
        _MEMORY + "test_a_commit_may_give_versions_of_one_stream_twice",
        _MEMORY + "test_given_versions_need_only_be_free",
    ),
    _break(
        "What was acknowledged is on the disk",
        "evsync/stores/sqlite/schema.py", "commits do not wait for the disk",
        "PRAGMA synchronous = FULL", "PRAGMA synchronous = NORMAL",
        "tests/faults/test_sqlite_faults.py::test_a_commit_is_on_the_disk_when_it_returns",
    ),
    _break(
        "An outcome that is not known has an error of its own",
        "evsync/stores/sqlite/store.py", "a disk that fails within a commit is said to have stored nothing",
        "if primary_code(e) in BUSY or primary_code(e) == sqlite3.SQLITE_FULL:", "if primary_code(e):",
        "tests/faults/test_sqlite_faults.py::test_a_disk_that_fails_within_a_commit_leaves_its_outcome_unknown",
    ),
    _break(
        "An outcome that is not known has an error of its own",
        "evsync/stores/postgres/store.py", "a connection that broke in an append is said to have stored nothing",
        "if c.closed or not state or state.startswith(_GOING_DOWN):", "if False:",
        "tests/faults/test_postgres_faults.py::test_a_process_killed_between_commit_and_reply_finds_its_command",
    ),
    _break(
        "A file that is replaced under a store takes no commits",
        "evsync/stores/sqlite/store.py", "the file is not looked at",
        "if _file_id(self._where) != self._file:", "if False:",
        "tests/faults/test_sqlite_faults.py::test_a_file_that_is_replaced_while_open_is_noticed",
    ),
    _break(
        "The latest snapshot of a stream is kept, and one of another shape takes its place",
        "evsync/stores/sqlite/statements.py", "an older snapshot takes the place of a newer one",
        "snapshots.shape <> excluded.shape OR snapshots.version < excluded.version", "true",
        _SQLITE + "test_the_latest_snapshot_of_a_stream_is_kept",
    ),
    _break(
        "The latest snapshot of a stream is kept, and one of another shape takes its place",
        "evsync/stores/sqlite/statements.py", "shapes are not compared",
        "snapshots.shape <> excluded.shape OR snapshots.version < excluded.version",
        "snapshots.version < excluded.version",
        _SQLITE + "test_a_snapshot_of_another_shape_takes_the_place",
    ),
    _break(
        "A store that is the stream expects where each aggregate's stream ends",
        "evsync/jetstream/store/append.py", "what is remembered of a stream makes a conflict",
        "if unsure := {*streams_of(refused)} - self._looked_up:", "if unsure := set():",
        "tests/faults/test_jetstream_store.py::test_what_one_process_remembers_another_may_have_changed",
        _JETSTREAM + "test_several_processes_append_to_one_log",
    ),
    _break(
        "A store that is the stream expects where each aggregate's stream ends",
        "evsync/jetstream/store/append.py", "a commit whose answer was lost is taken for one that was not sent",
        "if stored is None or stored.id != row.id:", "if True:",
        _JETSTREAM + "test_an_unknown_outcome_is_found_by_its_command",
        "tests/faults/test_jetstream_store.py::test_what_gets_lost_on_the_way_is_found_out",
    ),
    _break(
        "A store of another service or a newer evsync is refused",
        "evsync/stores/sqlite/schema.py", "nobody looks whose store it is",
        "if identity.name != expected.name:", "if False:",
        "tests/faults/test_sqlite_files.py::test_a_store_of_another_service_or_shard_is_refused",
    ),
    _break(
        "A store of another service or a newer evsync is refused",
        "evsync/stores/sqlite/schema.py", "nobody looks who wrote it",
        "    if schema > SCHEMA:\n", "    if False:\n",
        "tests/faults/test_sqlite_files.py::test_a_store_of_a_newer_evsync_is_refused",
    ),
    _break(
        "Who waits for a log's end is woken by the next append",
        "evsync/stores/tail.py", "nobody is woken",
        "            if after < head:\n", "            if False:\n",
        _SQLITE + "test_own_appends_wake_those_who_wait_without_the_poll",
    ),
    # ---- group commit
    _break(
        "Group commit: bounded, in order, nobody fails for a neighbour",
        "evsync/stores/group_commit.py", "bytes are not counted",
        "if group and (events > self._max_events or size_bytes > self._max_bytes):",
        "if group and events > self._max_events:",
        "tests/unit/test_group_commit.py::test_a_group_is_bounded_by_events_and_bytes",
    ),
    _break(
        "Group commit: bounded, in order, nobody fails for a neighbour",
        "evsync/stores/group_commit.py", "a commit that cannot be stored fails its group",
        "            if len(group) == 1:\n", "            if group:\n",
        "tests/unit/test_group_commit.py::test_a_commit_that_cannot_be_stored_does_not_fail_its_neighbours",
    ),
    _break(
        "Group commit: bounded, in order, nobody fails for a neighbour",
        "evsync/stores/group_commit.py", "two appends are in flight at once",
        "while self._queue and self._writer is None:", "while self._queue:",
        "tests/unit/test_group_commit.py::test_what_does_not_fit_into_a_group_waits_for_its_end",
    ),
    _break(
        "Group commit: bounded, in order, nobody fails for a neighbour",
        "evsync/stores/group_commit.py", "a caller that was cancelled in the queue is sent",
        "            if future.cancelled():\n", "            if False:\n",
        "tests/unit/test_group_commit.py::test_a_cancelled_caller_in_the_queue_is_not_sent",
    ),
    _break(
        "Group commit: bounded, in order, nobody fails for a neighbour",
        "evsync/stores/group_commit.py", "an append that was interrupted is said to have stored nothing",
        '_fail(group, OutcomeUnknown(f"interrupted', '_fail(group, StoreUnavailable(f"interrupted',
        "tests/unit/test_group_commit.py::test_an_event_loop_that_ends_leaves_nobody_in_doubt",
    ),
    # ---- load and save
    _break(
        "Who stops in the middle of a transaction of PostgreSQL does not keep what it has locked",
        "evsync/liveness.py", "nobody ends the session of who stops within a pipeline",
        "AND state <> 'idle' AND", "AND state = 'idle' AND",
        "tests/faults/test_postgres_liveness.py::"
        "test_a_worker_that_stops_between_the_statements_of_a_pipeline_is_taken_over_from",
    ),
    _break(
        "An unknown outcome is found again by its command",
        "evsync/aggregates/repository.py", "execute does not look for its command",
        "if decided_at is not None and (stored := await self._find(stream, command, decided_at)) is not None:",
        "if False and (stored := None):",
        "tests/integration/test_repository.py::test_execute_looks_for_its_command_after_an_unknown_outcome",
    ),
    _break(
        "An unknown outcome is found again by its command",
        "evsync/aggregates/repository.py", "a repeated save does not look for the first one",
        "settled = await self._settle(streams) if self._unsettled else None", "settled = None",
        "tests/integration/test_repository.py::test_a_save_repeated_after_an_unknown_outcome_stores_once",
    ),
    _break(
        "An unknown outcome is found again by its command",
        "evsync/aggregates/repository.py",
        "a save that was late, and conflicts with the repeated one, is not looked for",
        "                settled = await self._settle(changed)\n", "                settled = None\n",
        "tests/integration/test_repository.py::test_a_save_whose_first_try_arrives_late_stores_once",
    ),
    _break(
        "In a process, one save per stream is in flight, and who is cancelled stops nobody",
        "evsync/aggregates/stream_locks.py", "who is cancelled as its turn comes keeps it",
        "            if not turn.cancelled():\n", "            if False:\n",
        "tests/unit/test_stream_locks.py::test_who_is_cancelled_as_its_turn_comes_passes_it_on",
    ),
    _break(
        "In a process, one save per stream is in flight, and who is cancelled stops nobody",
        "evsync/aggregates/stream_locks.py", "who is cancelled while it waits for a second stream keeps the first",
        "            self.release(held)\n            raise\n", "            raise\n",
        "tests/unit/test_stream_locks.py::"
        "test_who_is_cancelled_while_it_waits_for_a_second_stream_gives_the_first_back",
    ),
    _break(
        "A failed save keeps the pending events",
        "evsync/aggregates/repository.py", "they are taken from the aggregate before the commit",
        "            position = await self._home.commit(commit)\n",
        "            [a.pending_events.clear() for a in changed.values()]\n"
        "            position = await self._home.commit(commit)\n",
        "tests/integration/test_repository.py::test_a_failed_save_keeps_the_pending_events",
    ),
    _break(
        "What is decided during a save stays pending",
        "evsync/aggregates/repository.py", "everything that is pending is taken for saved",
        "del changed[append.stream].pending_events[: len(append.events)]",
        "changed[append.stream].pending_events.clear()",
        "tests/integration/test_repository.py::test_what_is_decided_during_a_save_stays_pending",
    ),
    _break(
        "An event too large for the broker is refused at save",
        "evsync/aggregates/repository.py", "sizes are not checked",
        "        self._check_size(append)\n", "",
        "tests/integration/test_repository.py::test_an_event_too_large_is_refused_before_anything_is_stored",
    ),
    _break(
        "Loading with a snapshot is a full replay; one that does not fit is void",
        "evsync/aggregates/snapshots.py", "a snapshot of another shape is used",
        "if cls is None or snapshot.shape != shape_of(cls):", "if cls is None:",
        "tests/integration/test_snapshots.py::test_a_snapshot_of_another_shape_is_void",
    ),
    _break(
        "Loading with a snapshot is a full replay; one that does not fit is void",
        "evsync/aggregates/repository.py", "a snapshot that is later than the time asked for is used",
        "return base.aggregate if until is None or base.snapshot.latest_us <= until else None", "return base.aggregate",
        "tests/integration/test_snapshots.py::test_loading_with_a_snapshot_is_a_full_replay",
    ),
    _break(
        "Loading with a snapshot is a full replay; one that does not fit is void",
        "evsync/aggregates/snapshots.py", "a save of several events steps over the boundary",
        "return after // self.every_events > before // self.every_events", "return after % self.every_events == 0",
        "tests/integration/test_snapshots.py::test_a_save_of_several_events_does_not_step_over_a_boundary",
    ),
    _break(
        "Loading with a snapshot is a full replay; one that does not fit is void",
        "evsync/aggregates/snapshots.py", "a snapshot carries the first commands, not the last",
        "for e in events)]))[-COMMANDS:]", "for e in events)]))[:COMMANDS]",
        "tests/integration/test_snapshots.py::test_a_snapshot_carries_the_last_commands_only",
    ),
    _break(
        "Loading with a cache is a full replay, whoever wrote and whatever was done to what was loaded",
        "evsync/aggregates/repository.py", "the past is kept in the cache",
        "if self._cache is not None and version is None and until is None:", "if self._cache is not None:",
        "tests/integration/test_cache.py::test_the_past_is_not_kept",
        "tests/integration/test_cache.py::test_loading_with_a_cache_is_a_full_replay",
    ),
    _break(
        "State that would not come back as it is, is not kept",
        "evsync/codec/state.py", "an object that stands in two places is written twice",
        "    if id(value) in seen:\n", "    if False:\n",
        "tests/integration/test_snapshots.py::test_state_refuses_what_would_come_back_as_two",
    ),
    # ---- codec and replay
    _break(
        "The compiled fold, the library's own path and the live state are the same",
        "evsync/aggregates/replay.py", "the compiled fold does not set modified_on",
        "aggregate._modified_on = time_us if dated else to_datetime(time_us)", "dated = dated or None",
        "tests/properties/test_replay.py::test_fold_library_and_live_state_are_the_same",
    ),
    _break(
        "A stream with a missing version is not folded",
        "evsync/aggregates/replay.py", "the compiled fold does not compare versions",
        "if function is not None and version == due:", "if function is not None:",
        "tests/unit/test_codec.py::test_a_stream_with_a_missing_version_is_not_folded",
    ),
    _break(
        "Decoding undoes encoding",
        "evsync/codec/values.py", "a decimal comes back as a float would",
        '2: lambda b: Decimal(b.decode("ascii")),', '2: lambda b: Decimal(float(b.decode("ascii"))),',
        "tests/properties/test_replay.py::test_decode_undoes_encode",
    ),
    _break(
        "Decoding undoes encoding",
        "evsync/codec/values.py", "a set is written in the order in which Python has it",
        "parts = sorted(pack(v) for v in values)", "parts = [pack(v) for v in values]",
        "tests/unit/test_codec.py::test_the_same_set_is_written_as_the_same_bytes",
    ),
    _break(
        "What would not come back fails at save, with the field's name",
        "evsync/codec/values.py", "a subclass is written as its parent",
        "strict_types=True", "strict_types=False",
        "tests/unit/test_codec.py::test_a_value_that_would_not_come_back_fails_at_save_with_the_fields_name",
    ),
    _break(
        "Upcasters bring old events to today's schema, each from where it stands",
        "evsync/codec/events.py", "all of them are applied to every event",
        "enumerate(coding.upcasters[written - 1 :], written)", "enumerate(coding.upcasters, written)",
        "tests/unit/test_codec.py::test_upcasters_bring_old_events_to_todays_schema",
    ),
    _break(
        "Upcasters bring old events to today's schema, each from where it stands",
        "evsync/aggregates/replay.py", "the second event of a type is folded without them",
        "if not coding.readers and not coding.upcasters:", "if not coding.readers:",
        "tests/unit/test_codec.py::test_every_old_event_of_a_stream_is_upcast",
    ),
    _break(
        "The slot of an id never changes, in no language",
        "evsync/sharding/slots.py", "another checksum",
        "return crc32(key.encode()) % slots", "return (crc32(key.encode()) >> 1) % slots",
        "tests/unit/test_slots.py::test_the_slot_of_a_key_never_changes",
        "tests/unit/test_sharding.py::test_a_slot_is_the_same_in_every_language",
    ),
    _break(
        "The slot of an id never changes, in no language",
        "evsync/sharding/slots.py", "a tag in braces counts with its braces",
        "        key = tag[1]\n", "        key = tag[0]\n",
        "tests/unit/test_slots.py::test_a_tag_in_braces_is_hashed_alone",
    ),
    _break(
        "A message is read as it was written, and nothing else is read",
        "evsync/jetstream/messages.py", "a dot in an id is a dot in the subject",
        '.replace(".", "%2E")', "",
        "tests/unit/test_messages.py::test_nothing_in_an_event_can_leave_its_place",
        "tests/unit/test_messages.py::test_every_text_has_one_token",
    ),
    _break(
        "A message is read as it was written, and nothing else is read",
        "evsync/jetstream/messages.py", "a type in the header may differ from that of the subject",
        "        if ce_type != expected:\n", "        if False:\n",
        "tests/unit/test_messages.py::test_a_header_with_another_value_is_refused",
    ),
    _break(
        "A message is read as it was written, and nothing else is read",
        "evsync/jetstream/messages.py", "a version in the subject may differ from that of the header",
        'if place is not None and (place != version or position != "0"):', "if False:",
        "tests/unit/test_jetstream_store_messages.py::test_a_message_that_contradicts_itself_is_refused",
    ),
    _break(
        "A change that is called compatible breaks neither contracts made before nor those made after",
        "evsync/contracts/acceptance.py", "a field that stored events lack is taken to be there",
        'writer.get("required", ()) if question == "history" else writer["properties"]', 'writer["properties"]',
        "tests/properties/test_contracts.py::test_a_change_that_is_called_compatible_breaks_nobody",
        "tests/unit/test_contract_changes.py::test_changes_of_defaults_are_found",
    ),
    _break(
        "A change that is called compatible breaks neither contracts made before nor those made after",
        "evsync/contracts/acceptance.py", "limits are not compared",
        "if other < value if limit in _AT_LEAST else other > value:", "if False:",
        "tests/unit/test_contract_changes.py::test_limits_of_a_type_are_compared",
    ),
    # ---- slots that move
    _break(
        "An append is refused where its slot is not open",
        "evsync/stores/plan.py", "a slot that has left takes appends",
        "        if state is None or state.to is not None:\n", "        if state is None:\n",
        _MEMORY + "test_an_append_to_a_slot_that_has_left_is_refused",
    ),
    _break(
        "An append is refused where its slot is not open",
        "evsync/stores/plan.py", "a slot that never came takes appends",
        "        if state is None or state.to is not None:\n",
        "        if state is not None and state.to is not None:\n",
        _MEMORY + "test_an_append_to_a_slot_that_has_left_is_refused",
    ),
    _break(
        "An append is refused where its slot is not open",
        "evsync/stores/sqlite/slots.py", "versions that came with a slot do not count",
        "statements.VERSION_MOVED, [(s, s) for s in streams]", "statements.VERSION, [(s,) for s in streams]",
        _SQLITE + "test_a_slot_moves_with_its_history",
    ),
    _break(
        "Each step of a move is a compare-and-set",
        "evsync/stores/slot_steps.py", "a slot is closed whatever its epoch",
        " or s.epoch + 1 != e for slot", " for slot",
        _MEMORY + "test_closing_is_a_compare_and_set",
    ),
    _break(
        "Each step of a move is a compare-and-set",
        "evsync/stores/slot_steps.py", "imports do not look at what has arrived",
        "    if dict(found.arrived) != dict(expected):\n        return None\n", "",
        _MEMORY + "test_an_import_is_a_compare_and_set",
    ),
    _break(
        "Each step of a move is a compare-and-set",
        "evsync/stores/slot_steps.py", "a slot is opened whatever has arrived of it",
        "    if dict(found.arrived) != {slot: o.history for slot, o in opening.items()}:\n        return None\n", "",
        _MEMORY + "test_opening_demands_the_whole_history",
    ),
    _break(
        "Each step of a move is a compare-and-set",
        "evsync/stores/slot_steps.py", "a slot that has been opened is opened again",
        "found.states[slot].epoch >= o.epoch for slot", "found.states[slot].epoch > o.epoch for slot",
        _MEMORY + "test_a_slot_without_events_is_opened_once",
    ),
    _break(
        "Each step of a move is a compare-and-set",
        "evsync/stores/slot_steps.py", "what was appended during the copy is not part of the history",
        "full = _longer({slot: histories[slot] for slot in closing}, found.later)",
        "full = _longer({slot: histories[slot] for slot in closing}, [])",
        _MEMORY + "test_closing_is_a_compare_and_set",
        _MEMORY + "test_slots_move_under_writers",
    ),
    _break(
        "A slot whose copy differs is not moved on",
        "evsync/sharding/handover.py", "the copy is not compared",
        "self._seen[slot].length == self._arrived[slot].length and self._seen[slot] != self._arrived[slot]", "False",
        "tests/integration/test_shards.py::test_a_copy_that_differs_stops_the_move",
    ),
    _break(
        "A process with one of the stores reads nothing old",
        "evsync/homes.py", "it does not ask whether the slot is still there",
        "            await _check_open_in(self._store, stream, slot_of(stream, self.slots))\n", "            pass\n",
        "tests/integration/test_shards.py::test_a_process_with_one_store_reads_nothing_old",
    ),
    _break(
        "A process with an old map is told, and reads what is new",
        "evsync/homes.py", "it reads where the slot was",
        "                await _check_open_in(self.stores[shard], stream, slot)\n", "",
        "tests/integration/test_shards.py::test_a_process_with_an_old_map_reads_nothing_old",
    ),
    _break(
        "A process with an old map is told, and reads what is new",
        "evsync/homes.py", "it folds what is left where the slot was",
        "    if state is None or state.to is not None:\n        raise SlotMoved",
        "    if False:\n        raise SlotMoved",
        "tests/integration/test_shards.py::test_a_process_with_an_old_map_reads_nothing_old",
    ),
    _break(
        "An append is refused where its slot is not open",
        "evsync/stores/postgres/schema.py", "a slot that never came takes appends",
        """WHERE s.slot IS NULL OR s."to" IS NOT NULL""", """WHERE s."to" IS NOT NULL""",
        _POSTGRES + "test_an_append_to_a_slot_that_has_left_is_refused",
    ),
    _break(
        "An append is refused where its slot is not open",
        "evsync/stores/postgres/schema.py", "versions that came with a slot do not count",
        "    IF moved THEN\n        {conflicts_over_imports}\n", "    IF moved THEN\n        {conflicts}\n",
        _POSTGRES + "test_a_slot_moves_with_its_history",
    ),
    _break(
        "A follower waits where a slot came from, until that log is applied up to there",
        "evsync/projections/running/barrier.py", "the barrier is met at once",
        "if not applied(closed.log, event.slot, closed):", "if False:",
        "tests/unit/test_projection_barrier.py::"
        "test_nothing_is_given_from_where_a_slot_came_until_it_is_applied_there",
    ),
    _break(
        "A shard that joins only takes, one that leaves only gives",
        "evsync/sharding/ring.py", "a ring with one shard less is made without looking at the one before",
        "self._placement = self.plan(before.placement)", "self._placement = self._placement",
        "tests/properties/test_sharding.py::test_a_shard_that_leaves_only_gives",
    ),
    # ---- the relay
    _break(
        "Event n stands at sequence n",
        "evsync/jetstream/flight.py", "no last sequence is expected",
        "%b%bNats-Expected-Last-Sequence: %d%b", "%b%bExpected-Last-Sequence: %d%b",
        "tests/faults/test_relay_strangers.py::test_foreign_messages_in_mid_stream_take_no_event_with_them",
    ),
    _break(
        "A relay of another incarnation publishes nothing",
        "evsync/jetstream/flight.py", "no stream is expected",
        'b"\\r\\nNats-Expected-Stream: %b\\r\\n%b"', 'b"\\r\\nExpected-Stream: %b\\r\\n%b"',
        "tests/faults/test_relay_strangers.py::"
        "test_a_relay_of_another_incarnation_publishes_nothing_into_the_new_stream",
    ),
    _break(
        "Only the exact acknowledgement counts",
        "evsync/jetstream/flight.py", "an acknowledgement confirms whatever is due",
        'if body == self._ack_head + number + b"}" and number == b"%d" % due:',
        'if body == self._ack_head + number + b"}":',
        "tests/faults/test_relay_answers.py::test_a_foreign_message_is_found_although_the_refusal_got_lost",
    ),
    _break(
        "Only the exact acknowledgement counts",
        "evsync/jetstream/flight.py", "the sequence in an acknowledgement is not compared",
        "elif stream != self._stream or sequence != position or answer", "elif stream != self._stream or answer",
        "tests/faults/test_relay_answers.py::test_any_acknowledgement_but_the_exact_one_halts",
    ),
    _break(
        "Only the exact acknowledgement counts",
        "evsync/jetstream/flight.py", "a message that the server calls a duplicate is confirmed",
        ' or answer.get("duplicate"):', ":",
        "tests/faults/test_relay_answers.py::test_any_acknowledgement_but_the_exact_one_halts",
    ),
    _break(
        "What is published over a connection was verified over it",
        "evsync/jetstream/flight.py", "a flight goes on over another connection",
        "        if self._conn.epoch != self._epoch:\n", "        if False:\n",
        "tests/integration/test_relay.py::test_a_flight_ends_with_its_connection",
    ),
    _break(
        "A store that was put back is noticed",
        "evsync/jetstream/relay.py", "the stream's end is not read back",
        "        await verify(self._log, self._conn, max(start, stream.first), stream.last)\n", "",
        "tests/faults/test_relay_strangers.py::test_a_store_put_back_and_written_since_is_noticed",
    ),
    _break(
        "A damaged stream is noticed",
        "evsync/jetstream/relay.py", "what the scrub finds is forgotten",
        "                self._found = error\n", "                self._found = None\n",
        "tests/faults/test_relay_server.py::test_the_scrub_finds_what_the_server_does_not_tell",
    ),
    _break(
        "A foreign message halts the relay",
        "evsync/jetstream/relay.py", "an idle relay does not look where the stream ends",
        "stream.same_as(self._seen) and stream.last == flight.confirmed", "stream.same_as(self._seen)",
        "tests/faults/test_relay_strangers.py::test_a_foreign_message_halts_an_idle_relay_until_the_rebuild",
    ),
    _break(
        "Of two relays one stands by",
        "evsync/jetstream/relay.py", "who lost the race goes on racing",
        "return RelayState.STANDBY if lost_race else RelayState.PROBE", "return RelayState.PROBE",
        "tests/faults/test_relay_strangers.py::test_of_two_relays_one_stands_by_and_takes_over",
    ),
    _break(
        "Settings that break the law are refused",
        "evsync/jetstream/stream_settings.py", "the settings of a stream that exists are not looked at",
        "        if not (found in NOTHING if value in NOTHING else found == value):\n", "        if False:\n",
        "tests/faults/test_relay_strangers.py::test_a_stream_with_settings_that_break_the_law_is_refused",
    ),
    _break(
        "The stream of another history is not replaced",
        "evsync/jetstream/relay.py", "a stream that holds something else is deleted",
        "if not isinstance(last, int) or not await holds_same(self._log, self._conn, name, last):",
        "if not isinstance(last, int):",
        "tests/faults/test_relay_strangers.py::test_the_stream_of_another_history_is_not_replaced",
    ),
    # ---- the consumer
    _break(
        "What gets lost on the way is read again",
        "evsync/jetstream/consumer.py", "a jump in the count of deliveries is passed over",
        "        if delivery != self._delivery:\n", "        if False:\n",
        "tests/faults/test_consumer_server.py::test_a_message_that_is_lost_on_the_way",
    ),
    _break(
        "A hole stops the reader, at the end too",
        "evsync/jetstream/consumer.py", "a jump in the stream's sequence is passed over",
        "        if sequence != self._sequence + 1:\n", "        if False:\n",
        "tests/faults/test_consumer_stream.py::test_a_deleted_message_stops_the_reader",
    ),
    _break(
        "A hole stops the reader, at the end too",
        "evsync/jetstream/consumer.py", "nobody asks for what does not come",
        "            if state.last < due:\n", "            if True:\n",
        "tests/faults/test_consumer_stream.py::test_a_deleted_end_stops_the_reader",
    ),
    _break(
        "A hole stops the reader, at the end too",
        "evsync/jetstream/consumer.py", "a stream that begins later is read from there",
        "        if consumer.first > self._next:\n", "        if False:\n",
        "tests/faults/test_consumer_stream.py::test_a_trimmed_stream_is_not_read_from_its_middle",
    ),
    _break(
        "What is not the event at its position stops the reader",
        "evsync/jetstream/consumer.py", "an event of another position is taken",
        "            if event.position != sequence:\n", "            if False:\n",
        "tests/faults/test_consumer_stream.py::test_an_event_at_another_sequence_stops_the_reader",
    ),
    _break(
        "What is not the event at its position stops the reader",
        "evsync/jetstream/consumer.py", "an event of another incarnation is taken",
        "if event.incarnation != incarnation and event.incarnation != self._incarnation_at(sequence):", "if False:",
        "tests/faults/test_consumer_stream.py::test_an_event_of_another_incarnation_stops_the_reader",
    ),
    _break(
        "What is not the event at its position stops the reader",
        "evsync/jetstream/consumer.py", "a message that cannot be read is passed over",
        "                self._failure = foreign(self._stream, sequence, str(e))\n"
        "                self._failure.__cause__ = e\n"
        "                break\n",
        "                continue\n",
        "tests/faults/test_consumer_stream.py::test_a_message_of_a_stranger_stops_the_reader",
    ),
    _break(
        "A stream that is filled again gives nothing twice",
        "evsync/jetstream/consumer.py", "what was read before is given again",
        "            if sequence < self._next:\n                continue",
        "            if False:\n                continue",
        "tests/faults/test_consumer_server.py::test_a_stream_that_was_put_back_is_waited_for",
        "tests/faults/test_consumer_server.py::test_a_server_that_begins_earlier_than_asked",
    ),
    _break(
        "Readers give whole commits",
        "evsync/jetstream/consumer.py", "a commit is given before its end has come",
        "            if event.remaining == 0:\n", "            if True:\n",
        "tests/integration/test_consumer.py::test_a_commit_is_held_back_until_its_end_is_there",
    ),
    # ---- projections
    _break(
        "A gap or another history stops before anything is applied",
        "evsync/projections/running/continuity.py", "gaps are not looked for",
        "if begin > after + 1 or last - begin + 1 != len(events) + left_out:", "if False:",
        "tests/integration/test_projection_runner.py::TestSources::test_a_gap_or_another_history_stops_before_anything_is_applied",
    ),
    _break(
        "A gap or another history stops before anything is applied",
        "evsync/projections/running/continuity.py", "another incarnation is gone on with",
        "            raise other_incarnation(log, after, known, event.incarnation)\n", "",
        "tests/integration/test_projection_runner.py::TestSources::test_a_gap_or_another_history_stops_before_anything_is_applied",
    ),
    _break(
        "A worker that reads only its groups' events misses none, nor evsync's own, and sees what is missing",
        "evsync/projections/running/followed_log.py", "a batch is applied for groups that it was not read for",
        "and (share is None or self.checkpoints.keys() <= share.groups)", "",
        "tests/unit/test_projection_feed.py::test_what_was_read_for_the_groups_of_before_is_not_applied_to_those_of_now",
    ),
    _break(
        "A worker that reads only its groups' events misses none, nor evsync's own, and sees what is missing",
        "evsync/projections/running/feed.py", "what was read ahead for fewer groups is used",
        " and (share is None or share.serves(self.share))", "",
        "tests/unit/test_projection_feed.py::test_what_was_read_ahead_for_fewer_groups_is_read_anew",
    ),
    _break(
        "A worker that reads only its groups' events misses none, nor evsync's own, and sees what is missing",
        "evsync/stores/database.py", "what is neither given nor counted is passed over",
        " if len(events) + others == end - after else Stretch(())", "",
        "tests/integration/test_archive_trim.py::test_every_read_of_a_trimmed_log_is_whole",
    ),
    _break(
        "A worker that reads only its groups' events misses none, nor evsync's own, and sees what is missing",
        "evsync/stores/sqlite/statements.py", "evsync's own events are left out",
        "WHERE stream >= ?3 AND stream < ?4 AND +position > ?1", "WHERE false",
        "tests/contracts/test_sqlite.py::TestSqliteStore::test_what_is_read_for_a_share_of_the_groups_has_all_of_it",
    ),
    _break(
        "Each event takes effect once",
        "evsync/projections/batch.py", "an event that was applied is applied again",
        "position <= passed(group, beyond):", "group not in positions:",
        "tests/properties/test_projection_batches.py::"
        "test_any_cut_redelivery_failure_and_takeover_gives_the_same_tables",
    ),
    _break(
        "Each event takes effect once",
        "evsync/projections/batch.py", "events of groups that others have are applied too",
        "passed(group, beyond)", "passed(group, 0)",
        "tests/integration/test_projection_runner.py::TestWorkers::"
        "test_two_share_the_groups_and_the_one_that_is_left_has_them_all",
    ),
    _break(
        "Each event takes effect once",
        "evsync/projections/running/followed_log.py", "reading goes on at the greatest of the checkpoints",
        "return min((c.position for c in", "return max((c.position for c in",
        "tests/integration/test_projection_runner.py::TestWorkers::test_a_group_that_is_taken_over_far_behind_is_caught_up",
    ),
    _break(
        "The checkpoint moves in the transaction of the batch",
        "evsync/projections/models/sql_model.py", "the batch is committed before its checkpoint",
        "        bookkeeping.store(connection, self._claim, applied.checkpoints",
        "        connection.commit()\n        bookkeeping.store(connection, self._claim, applied.checkpoints",
        "tests/integration/test_projection_runner.py::TestDatabase::test_a_batch_and_its_checkpoint_are_stored_in_one_transaction",
    ),
    _break(
        "What a database has lost of its last commits is applied again",
        "evsync/projections/models/leases.py", "checkpoints are not compared with the stored ones",
        "if not are_stored(connection, claim, checkpoints):", "if False:",
        "tests/faults/test_postgres_lost_commits.py::"
        "test_what_a_killed_server_has_lost_is_applied_again_also_by_a_worker_that_did_not_notice",
    ),
    _break(
        "What a database has lost of its last commits is applied again",
        "evsync/projections/running/tenure.py", "a token that was raised again says what has been applied",
        "            for log in self.logs.values():\n                log.forget()\n", "            pass\n",
        "tests/integration/test_projection_lost.py::test_a_token_that_was_raised_again_says_nothing_of_what_was_applied",
    ),
    _break(
        "A worker that was taken over from applies nothing more",
        "evsync/projections/models/leases.py", "tokens are not compared",
        "if {row.group: row.token for row in rows} != tokens:", "if False:",
        "tests/integration/test_projection_runner.py::TestWorkers::test_a_worker_is_out_as_soon_as_another_has_taken_its_groups",
    ),
    _break(
        "A worker that was taken over from applies nothing more",
        "evsync/projections/models/leases.py", "who takes a group does not raise its token",
        "row.token + 1 for row in rows if row.owner == claim.owner or not _runs(row.expires, now)}\n"
        "    if taken:\n"
        "        connection.execute(\n"
        "            _of(claim, taken).values(\n"
        "                token=LEASES.c.token + 1, owner=claim.owner",
        "row.token for row in rows if row.owner == claim.owner or not _runs(row.expires, now)}\n"
        "    if taken:\n"
        "        connection.execute(\n"
        "            _of(claim, taken).values(\n"
        "                owner=claim.owner",
        "tests/integration/test_projection_runner.py::TestWorkers::test_a_worker_is_out_as_soon_as_another_has_taken_its_groups",
    ),
    _break(
        "A worker that ends gives all of its groups back, and its word why it halted stays",
        "evsync/projections/running/tenure.py", "who has halted takes groups once more",
        "            if self._over:  #", "            if False:  #",
        "tests/integration/test_projection_runner.py::TestWorkers::test_who_has_halted_takes_no_group_and_leaves_its_note",
    ),
    _break(
        "A worker that ends gives all of its groups back, and its word why it halted stays",
        "evsync/projections/models/leases.py", "leases stay until they run out",
        "_of(claim, groups).values(expires=0, halted=halted)", "_of(claim, groups).values(halted=halted)",
        "tests/integration/test_projection_runner.py::TestWorkers::"
        "test_groups_that_a_cancelled_balance_has_taken_are_given_back",
    ),
    _break(
        "A worker that ends gives all of its groups back, and its word why it halted stays",
        "evsync/projections/models/leases.py", "a lease of one's own is taken for another worker's",
        "any(lease.owner != claim.owner for lease in running)", "bool(running)",
        "tests/integration/test_projection_runner.py::TestWorkers::test_a_halt_is_told_where_its_note_could_not_be_left",
    ),
    _break(
        "Leases run by the database's clock, and one of a wrong clock is not believed",
        "evsync/projections/models/leases.py", "a lease may run for ever",
        "return now < expires <= now + MAX_LEASE_S", "return now < expires",
        "tests/integration/test_projection_runner.py::TestWorkers::"
        "test_a_lease_that_was_written_by_a_clock_set_back_since_is_not_believed",
    ),
    _break(
        "Workers share the groups evenly",
        "evsync/projections/models/shares.py", "nobody gives anything back",
        "kept = sorted(held)[:share]", "kept = sorted(held)",
        "tests/unit/test_projection_shares.py::test_groups_are_spread_evenly_and_move_no_more_than_they_must",
    ),
    _break(
        "Workers of an older version touch nothing of a newer model",
        "evsync/projections/models/leases.py", "who has no groups does not look which version made the model",
        "    if not held:\n        check_model(connection, claim)\n", "",
        "tests/integration/test_projection_upgrade.py::"
        "test_an_old_worker_is_not_counted_among_the_new_ones",
    ),
    _break(
        "What is counted is what was applied",
        "evsync/projections/batch.py", "the digest leaves out the data",
        "digest.update(content)", "digest.update(content[:16])",
        "tests/integration/test_verify.py::test_an_altered_event_is_found_where_another_copy_of_the_log_is",
    ),
    _break(
        "What is counted is what was applied",
        "evsync/projections/batch.py", "the digest is not added to",
        "            digests[group] += _share(id + key + content)\n", "",
        "tests/integration/test_verify.py::test_exactly_these_events_once",
    ),
    _break(
        "What is counted is what was applied",
        "evsync/projections/models/bookkeeping.py", "events that are retried are not counted",
        "replace(found, count=found.count + applied.count, digest=digest)", "found",
        "tests/properties/test_projection_parking.py::test_a_stream_is_applied_up_to_its_bad_event_and_others_whole",
    ),
    _break(
        "evsync's own events reach no handler",
        "evsync/projections/handlers.py", "a contract for a whole service catches them",
        " and not is_control(event_type)", "",
        "tests/unit/test_projection_contracts.py::TestHandlers::test_no_handler_catches_events_of_evsyncs_own",
    ),
    _break(
        "A stream is applied up to its bad event, and others whole",
        "evsync/projections/parking.py", "later events of a parked stream are applied",
        "                streams.add(e.stream)\n", "",
        "tests/properties/test_projection_parking.py::test_a_stream_is_applied_up_to_its_bad_event_and_others_whole",
    ),
    _break(
        "A stream is applied up to its bad event, and others whole",
        "evsync/projections/models/parked_rows.py", "parked events are tried in the wrong order",
        "sa.select(PARKED).where(*_waiting(claim)).order_by(PARKED.c.number)",
        "sa.select(PARKED).where(*_waiting(claim)).order_by(PARKED.c.number.desc())",
        "tests/properties/test_projection_parking.py::test_a_stream_is_applied_up_to_its_bad_event_and_others_whole",
    ),
    _break(
        "A stream is applied up to its bad event, and others whole",
        "evsync/projections/models/parked_streams.py", "who retries does not fence off the worker",
        "        parked_rows.raise_token(connection, self._claim, self._find(connection, service, "
        "stream)[0].group)\n",
        "",
        "tests/integration/test_projection_parking.py::test_a_stream_that_was_given_up_is_free_for_the_worker_that_parked_it",
    ),
    _break(
        "Whoever waits for a parked event is told",
        "evsync/projections/models/parked_rows.py", "only who waits for that very position",
        "PARKED.c.commit_end >= position.number", "PARKED.c.position >= position.number",
        "tests/integration/test_projection_parking.py::test_whoever_waits_for_a_commit_hears_of_each_of_its_events",
    ),
    _break(
        "A query after a position shows everything up to it",
        "evsync/projections/running/visibility.py", "the group that is furthest speaks for all",
        "least = min(known.values(), key=lambda c: c.position)",
        "least = max(known.values(), key=lambda c: c.position)",
        "tests/integration/test_projection_runner.py::TestWorkers::"
        "test_two_share_the_groups_and_the_one_that_is_left_has_them_all",
        "tests/integration/test_projection_runner.py::TestWorkers::test_a_group_that_is_taken_over_far_behind_is_caught_up",
    ),
    _break(
        "A query after a position shows everything up to it",
        "evsync/projections/running/visibility.py", "who waits is woken one event too soon",
        "elif shown.number >= position.number:", "elif shown.number >= position.number - 1:",
        "tests/integration/test_projection_runner.py::TestVisible::"
        "test_history_and_new_events_are_applied_and_waited_for",
    ),
    _break(
        "A query can change nothing",
        "evsync/projections/models/engines.py", "the connections of queries may write",
        "PRAGMA query_only = ON", "PRAGMA query_only = OFF",
        "tests/integration/test_projection_runner.py::TestDatabase::test_a_query_can_change_nothing",
    ),
    # ---- reactions
    _break(
        "Each event is answered exactly once",
        "evsync/projections/running/reaction_runner.py", "an answer is saved wherever the checkpoint is",
        "await self._commit(changed, self.reaction.name, checkpoint, log.stored.position)",
        "await self._commit(changed, self.reaction.name, checkpoint, None)",
        "tests/integration/test_projection_reactions.py::TestTwoProcesses::test_each_event_is_answered_once_and_one_of_them_stands_by",
        "tests/properties/test_projection_reactions.py::"
        "test_each_event_is_answered_exactly_once_through_lost_replies_conflicts_and_rivals",
    ),
    _break(
        "Each event is answered exactly once",
        "evsync/projections/running/reaction_runner.py", "an event that was seen is answered again",
        "            if event.position <= log.seen.position:\n                continue\n", "",
        "tests/properties/test_projection_reactions.py::"
        "test_each_event_is_answered_exactly_once_through_lost_replies_conflicts_and_rivals",
    ),
    _break(
        "Each event is answered exactly once",
        "evsync/projections/running/answered_log.py", "what others have stored is not gone on from",
        "if stored.position != self.stored.position or not self.seen.incarnation:", "if not self.seen.incarnation:",
        "tests/integration/test_projection_reactions.py::TestFailures::"
        "test_a_reply_that_is_lost_later_on_is_made_up_for_without_a_restart",
    ),
    # ---- rebuild
    _break(
        "Readers of a model that is rebuilt meet the old one or the new one, never less than before",
        "evsync/projections/rebuilding/exchange.py", "a shadow that is behind the live model takes its place",
        "if not reaches(shown_by(connection, self.projection, self.shadow, groups=self.groups), "
        "self.shown(connection)):",
        "if False:",
        "tests/integration/test_rebuild.py::test_an_exchange_that_finds_the_model_changed_changes_nothing",
    ),
    _break(
        "Readers of a model that is rebuilt meet the old one or the new one, never less than before",
        "evsync/projections/rebuilding/exchange.py", "the exchange does not look whether its groups were taken back",
        "        if any(owner != self.owner for owner in owners):\n", "        if False:\n",
        "tests/integration/test_rebuild.py::test_an_exchange_that_finds_the_model_changed_changes_nothing",
    ),
    _break(
        "Readers of a model that is rebuilt meet the old one or the new one, never less than before",
        "evsync/projections/rebuilding/exchange.py", "tokens begin anew with the new model",
        '"token": (last or 0) + 1, "owner": ""', '"token": 0, "owner": ""',
        "tests/integration/test_rebuild.py::test_tokens_go_on_rising_through_an_exchange",
    ),
    # ---- backups and restores
    _break(
        "Any damage to a segment or to its chain is found and named",
        "evsync/archive/segments.py", "the hash is not compared",
        "if sha256(view[:-HASH_BYTES]).digest() != own:", "if False:",
        "tests/properties/test_archive_segments.py::test_any_bit_that_is_flipped_is_found",
    ),
    _break(
        "Any damage to a segment or to its chain is found and named",
        "evsync/archive/segments.py", "a segment may follow any other",
        " and header.previous in (self.sha256, *self.header.stands_for)", "",
        "tests/properties/test_archive_segments.py::test_damage_to_a_chain_is_found_and_named",
    ),
    _break(
        "Retention never breaks a chain",
        "evsync/archive/merging.py", "a merged segment does not say what it stands for",
        "stands_for=(last.sha256, *last.header.stands_for),", "stands_for=(),",
        "tests/integration/test_archive_backup.py::test_retention_merges_and_never_breaks_a_chain",
    ),
    _break(
        "Retention never breaks a chain",
        "evsync/archive/merging.py", "pieces are deleted before the merged segment is written",
        "    await copy.target.put(headers[0].name, content, replace=True)\n"
        "    copy.forget()\n"
        "    for header in headers[1:]:\n"
        "        await copy.target.delete(header.name)\n",
        "    for header in headers[1:]:\n"
        "        await copy.target.delete(header.name)\n"
        "    await copy.target.put(headers[0].name, content, replace=True)\n"
        "    copy.forget()\n",
        "tests/integration/test_archive_backup.py::test_a_merge_broken_off_anywhere_leaves_a_whole_chain",
    ),
    _break(
        "A store that was put back is not archived over its history",
        "evsync/archive/backup.py", "the log is not compared with what is archived",
        "        if what is not None:\n", "        if False:\n",
        "tests/integration/test_archive_backup.py::test_a_store_that_was_put_back_is_noticed",
    ),
    _break(
        "The number of copies is the least that is enough",
        "evsync/archive/policy.py", "what is exactly enough is not enough",
        "if all_lost <= allowed:", "if all_lost < allowed:",
        "tests/integration/test_archive_backup.py::test_the_number_of_copies_is_the_least_that_is_enough",
        "tests/integration/test_archive_backup.py::test_importance_becomes_a_number_of_copies",
    ),
    _break(
        "A restored log is a new incarnation, and says which part of which one it has",
        "evsync/archive/restore.py", "it keeps its incarnation",
        "identity = identity or parent.restored(position, new_incarnation())",
        "identity = parent.restored(position, parent.incarnation)",
        "tests/integration/test_archive_restore.py::test_followers_that_are_ahead_stop_and_a_command_mends_it",
    ),
    _break(
        "A restored log is a new incarnation, and says which part of which one it has",
        "evsync/records.py", "a restore of a restore has all of the first one",
        "Ancestor(a, min(last, at)) for a, last", "Ancestor(a, last) for a, last",
        "tests/integration/test_archive_restore.py::test_restores_of_restores_remember_where_they_come_from",
    ),
    _break(
        "Restored shards fit: no slot is open twice, or nowhere, or without its history",
        "evsync/archive/ownership.py", "no end is lowered",
        "    return lowered({shard: log.end for shard, log in logs.items()}, dependents)\n",
        "    return {shard: log.end for shard, log in logs.items()}\n",
        "tests/properties/test_shards_restored.py::test_shards_restored_from_backups_of_any_times_fit",
    ),
    _break(
        "Restored shards fit: no slot is open twice, or nowhere, or without its history",
        "evsync/archive/ownership.py", "a slot that was there before brings its whole history again",
        "            if e > known:\n", "            if True:\n",
        "tests/properties/test_shards_restored.py::test_what_a_store_says_of_slots_is_a_fold_over_its_log",
    ),
    _break(
        "Restored shards fit: no slot is open twice, or nowhere, or without its history",
        "evsync/sharding/handover.py", "a slot that a restore finds closed is said to be of the new incarnation",
        "log.incarnation_at(s.position)", "log.incarnation",
        "tests/integration/test_shards_restored.py::test_a_restored_service_is_marked_and_restored_again",
    ),
    _break(
        "Restored shards fit: no slot is open twice, or nowhere, or without its history",
        "evsync/projections/running/barrier.py", "what was applied before a restore counts for a barrier",
        "        return False  # ahead of a log that was restored", "        pass  # ahead of a log that was restored",
        "tests/unit/test_projection_barrier.py"
        "::test_what_was_applied_of_a_log_before_it_was_put_back_does_not_count",
    ),
    _break(
        "A shard that is restored alone has all that is anywhere of it, and nothing is taken from the lost store",
        "evsync/archive/rescue.py", "what others hold from behind the end is not brought back",
        "                    stay.found.append(event)\n", "                    pass\n",
        "tests/properties/test_shard_restored_alone.py"
        "::test_a_shard_restored_alone_has_all_that_is_anywhere_of_it",
    ),
    _break(
        "A shard that is restored alone has all that is anywhere of it, and nothing is taken from the lost store",
        "evsync/archive/rescue.py", "what a slot had when it left is not told",
        "                        if stay.left is not None and stay.end is not None and at < stay.left.said.position:\n",
        "                        if False:\n",
        "tests/properties/test_shard_restored_alone.py"
        "::test_a_shard_restored_alone_has_all_that_is_anywhere_of_it",
    ),
    _break(
        "A shard that is restored alone has all that is anywhere of it, and nothing is taken from the lost store",
        "evsync/archive/restore.py", "the other shards are not fenced",
        "        await store.fence(identity)\n", "        pass\n",
        "tests/integration/test_shard_restored_alone.py::test_what_others_hold_of_a_lost_shard_comes_back_with_it",
    ),
    _break(
        "A shard that is restored alone has all that is anywhere of it, and nothing is taken from the lost store",
        "evsync/archive/rescue.py", "a commit may wait for what waits for itself",
        "            elif before is None:\n", "            elif False:\n",
        "tests/integration/test_shard_restored_alone.py"
        "::test_a_shard_whose_slots_came_and_went_both_ways_is_not_restored_alone",
    ),
    _break(
        "A shard that is restored alone has all that is anywhere of it, and nothing is taken from the lost store",
        "evsync/projections/running/barrier.py",
        "a slot that was closed in what a log has lost is waited for where it stood",
        "closed.number if last is None else last + 1", "closed.number",
        "tests/unit/test_projection_barrier.py::test_where_a_slot_was_closed_in_what_a_log_has_lost_"
        "the_commit_of_the_restore_is_waited_for",
        "tests/integration/test_shard_restored_alone.py"
        "::test_who_follows_a_shard_that_was_restored_alone_goes_on_unless_it_is_ahead",
    ),
    _break(
        "A shard that is restored alone has all that is anywhere of it, and nothing is taken from the lost store",
        "evsync/projections/running/barrier.py", "positions of the lost store are taken for those of the restored one",
        "    if incarnation in closed.ancestry:\n", "    if False:\n",
        "tests/properties/test_shard_restored_alone.py"
        "::test_who_follows_the_lost_store_still_waits_for_what_came_from_the_restored_one",
    ),
    _break(
        "A shard that is restored alone has all that is anywhere of it, and nothing is taken from the lost store",
        "evsync/archive/rescue.py", "a slot's history is that of any shard that said it was open there",
        "            _, is_open, source = max(found, default=(0, False, \"\"))\n",
        "            is_open, source = max(((o, s) for _, o, s in found), key=lambda f: f[0], default=(False, \"\"))\n",
        "tests/properties/test_shard_restored_alone.py"
        "::test_slots_that_move_while_the_others_are_asked_are_no_reason_to_refuse",
    ),
    _break(
        "A process that has slept through a restore changes nothing",
        "evsync/stores/postgres/schema.py", "appends do not look which store it is",
        "    IF replaced THEN\n", "    IF false THEN\n",
        "tests/integration/test_shards_restored.py::test_a_process_that_has_slept_through_a_restore_changes_nothing",
    ),
    _break(
        "Who is not ahead of a restored log goes on; who is stops",
        "evsync/restores.py", "any incarnation is taken for the one before",
        "return incarnation == self.parent", "return True",
        "tests/integration/test_archive_restore.py::test_a_batch_passes_a_restore_of_its_own_history_only",
    ),
    _break(
        "Who is not ahead of a restored log goes on; who is stops",
        "evsync/projections/running/continuity.py",
        "a follower does not ask when the log has grown beyond its position again",
        "if incarnation and incarnation_of(reader, position) not in (None, incarnation):", "if False:",
        "tests/integration/test_archive_restore.py::test_followers_that_are_ahead_stop_and_a_command_mends_it",
        "tests/integration/test_projection_runner.py::TestSources::"
        "test_a_log_of_another_incarnation_is_found_out_without_an_event",
    ),
    _break(
        "Who is not ahead of a restored log goes on; who is stops",
        "evsync/jetstream/consumer.py", "a reader that is ahead goes over to the new stream",
        "if after and identity.incarnation_at(after) != self._incarnation_at(after):", "if False:",
        "tests/integration/test_archive_stream.py::test_relay_and_consumers_that_are_ahead_stop",
    ),
    _break(
        "A stream that does not answer is not taken for an empty one",
        "evsync/archive/restore.py", "what the archive has is restored, and no more",
        "    if last is None:\n        raise _silent(archive, after)\n", "    if last is None:\n        return\n",
        "tests/integration/test_archive_stream.py::test_a_stream_that_does_not_answer_is_no_empty_one",
    ),
    # ---- secrets
    _break(
        "No secret is shown",
        "evsync/jetstream/client/settings.py", "addresses are shown with user and password",
        'return [f"{u.scheme}://{_address(u)}" for u in self._split()]',
        "return [u.geturl() for u in self._split()]",
        "tests/integration/test_connection_security.py::test_a_refused_login_is_told_without_the_secret",
        "tests/integration/test_cli_loading.py::test_secrets_are_never_printed",
    ),
    _break(
        "No secret is shown",
        "evsync/opening.py", "a store's URL that is not understood is shown as it is",
        "shown = url if \"@\" not in url else f\"{url.partition('://')[0]}://…\"", "shown = url",
        "tests/unit/test_open_store.py::test_what_may_be_a_password_is_not_repeated",
    ),
)
