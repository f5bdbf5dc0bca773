"""The recorder test cases that the eventsourcing library ships in its wheel, and what of them is overridden.

Overridden, all in test_shipped_cases.py:

- the makers that are abstract there (`create_recorder`, `construct_event_counters_view`, `expected_…_class`, …);
- `optional_test_insert_subscribe` is run, under a name that begins with `test`: the library leaves it to recorders
  whether they have subscriptions, and these have;
- the view of the cases for projections is made of a process recorder, with events as its state: an evsync store keeps
  events and positions, not tables of one's own.

Not run: `TranscoderTestCase`, which tests the library's own JSON and no recorder, and the cases for DCB applications
(`TaggedDecisionCountersProjectionTestCase`), whose recorders are another interface.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

if importlib.util.find_spec("msgspec") is None:
    # The module with the cases for projections also declares DCB events, which are msgspec structs. They are not used
    # here; the name is enough for the module to be imported.
    stand_in = ModuleType("msgspec")
    stand_in.Struct = type("Struct", (), {"__struct_fields__": ()})  # type: ignore[attr-defined]
    sys.modules["msgspec"] = stand_in

from eventsourcing.tests import application, persistence, projection

__all__ = ["application", "persistence", "projection"]
