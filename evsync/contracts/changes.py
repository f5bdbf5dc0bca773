"""What has changed between two documents, and what that means to those who read the events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from evsync.contracts.acceptance import Question, Side, accepts, is_missing, limits_of, meaning
from evsync.contracts.document import EVENT, Schema, events_of, service_of, type_today
from evsync.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between two documents."""

    event: str
    """The event type."""
    field: tuple[str, ...]
    """The way to the field: its name, then those inside of it; `[]` is an array's items, `{}` a map's values."""
    what: str
    """What has changed: "field removed"."""
    detail: str
    """From what to what."""
    breaks: tuple[Question, ...] = ()
    """Whom it breaks: `consumers`, that is contracts made before, at new events; `history`, contracts made after the
    change at events that are stored already. Nobody: it is compatible."""

    @property
    def where(self) -> str:
        """The field as text: `address.street`, `lines[].price`."""
        return ".".join(self.field).replace(".[]", "[]").replace(".{}", "{}")


def changes(old: Schema, new: Schema) -> list[Change]:
    """All differences, those of one event type together. Raises ConfigurationError for two different services."""
    if service_of(old) != service_of(new):
        raise ConfigurationError(
            f"these are documents of two services, {service_of(old)} and {service_of(new)}: there is nothing to compare"
        )
    before, after = events_of(old), events_of(new)
    found: list[Change] = []
    for type in sorted({*before, *after}):
        if type not in after:
            found.append(_gone(type, new))
        elif type not in before:
            found.append(Change(type, (), "event type added", ""))
        else:
            found += _of_version(type, before[type][EVENT]["schema"], after[type][EVENT]["schema"])
            found += _Walk(type).fields((), Side(before[type], old), Side(after[type], new))
    return found


def is_breaking(found: list[Change]) -> bool:
    """Whether any of them breaks anybody."""
    return any(change.breaks for change in found)


def _gone(type: str, new: Schema) -> Change:
    if (today := type_today(new, type)) is not None:
        return Change(type, (), "event type renamed", f"to {today}; register the handler for both", ("consumers",))
    return Change(type, (), "event type removed", "no such event will come", ("consumers",))


def _of_version(type: str, old: int, new: int) -> Iterator[Change]:
    if new < old:
        detail = f"from {old} back to {new}: an upcaster is gone, and old events cannot be read"
        yield Change(type, (), "schema version lowered", detail, ("history",))
    elif new > old:
        yield Change(type, (), "schema version raised", f"from {old} to {new}")


class _Walk:
    """Walks the two schemas of one event type side by side."""

    def __init__(self, type: str) -> None:
        self._type = type
        self._inside: set[tuple[int, int]] = set()
        """The pairs of schemas that it is in: a class may hold itself."""

    def fields(self, path: tuple[str, ...], old: Side, new: Side) -> Iterator[Change]:
        """The differences of two objects with fields."""
        before, after = old.resolved, new.resolved
        for name in dict.fromkeys((*before["properties"], *after["properties"])):
            at = (*path, name)
            was, now = before["properties"].get(name), after["properties"].get(name)
            if now is None:
                yield Change(self._type, at, "field removed", f"it was {show(old.at(was))}", ("consumers",))
            elif was is None:
                lacking = name in after.get("required", ())
                detail = "stored events lack it, and it has no default" if lacking else f"it is {show(new.at(now))}"
                yield Change(self._type, at, "field added", detail, ("history",) if lacking else ())
            else:
                yield from self._default(at, before, after)
                yield from self.value(at, old.at(was), new.at(now))

    def _default(self, path: tuple[str, ...], before: Schema, after: Schema) -> Iterator[Change]:
        name = path[-1]
        was, now = before["properties"][name], after["properties"][name]
        if is_missing(after, before, name, "history"):
            yield Change(self._type, path, "default lost", "stored events may lack the field", ("history",))
        elif name in before.get("required", ()) and name not in after.get("required", ()):
            yield Change(self._type, path, "default added", f"it is {_shown_default(now)}")
        elif _shown_default(was) != _shown_default(now):
            yield Change(self._type, path, "default changed", f"from {_shown_default(was)} to {_shown_default(now)}")

    def value(self, path: tuple[str, ...], old: Side, new: Side) -> Iterator[Change]:
        """The differences of two values' schemas: as far inside as both are built alike."""
        old, new = _without_null(old, new)
        before, after = old.resolved, new.resolved
        pair = id(before), id(after)
        if pair in self._inside:
            return
        self._inside.add(pair)
        if _alike(before, after, {"properties", "required"}) and "properties" in before and "properties" in after:
            yield from self.fields(path, old, new)
        elif _alike(before, after, {"items"}) and before.get("type") == "array" and "prefixItems" not in before:
            yield from self.value((*path, "[]"), old.at(before.get("items")), new.at(after.get("items")))
        elif _alike(before, after, {"additionalProperties"}) and before.get("type") == "object":
            values = before.get("additionalProperties"), after.get("additionalProperties")
            yield from self.value((*path, "{}"), old.at(values[0]), new.at(values[1]))
        else:
            yield from self._leaf(path, old, new)
        self._inside.discard(pair)

    def _leaf(self, path: tuple[str, ...], old: Side, new: Side) -> Iterator[Change]:
        breaks: list[Question] = []
        if not accepts(old, new, "consumers"):
            breaks.append("consumers")
        if not accepts(new, old, "history"):
            breaks.append("history")
        before, after = old.values, new.values
        if before is not None and after is not None and breaks:
            if added := [v for v in after if v not in before]:
                yield Change(self._type, path, "enum value added", _listed(added), ("consumers",))
            if removed := [v for v in before if v not in after]:
                yield Change(self._type, path, "enum value removed", _listed(removed), ("history",))
            return
        if breaks:
            what = "changed" if len(breaks) == 2 else "widened" if "consumers" in breaks else "narrowed"
            yield Change(self._type, path, f"type {what}", f"from {show(old)} to {show(new)}", tuple(breaks))


def _alike(before: Schema, after: Schema, but_for: set[str]) -> bool:
    """Whether two schemas differ in nothing else than these keywords."""
    was, now = ({k: v for k, v in meaning(s).items() if k not in but_for} for s in (before, after))
    return was == now


def _without_null(old: Side, new: Side) -> tuple[Side, Side]:
    """What both are if they are not null, where both may be."""
    found = []
    for side in (old, new):
        parts = side.parts or []
        others = [part for part in parts if part.resolved.get("type") != "null"]
        if len(others) != 1 or len(parts) != 2:
            return old, new
        found += others
    return found[0], found[1]


def _shown_default(schema: Schema) -> str:
    return json.dumps(schema["default"], ensure_ascii=False) if "default" in schema else "unknown"


def _listed(values: list[Any]) -> str:
    return ", ".join(json.dumps(v, ensure_ascii=False) for v in values)


def show(side: Side) -> str:
    """A type in a few words: `uuid`, `array of string`, `Address or null`."""
    schema = side.resolved
    if (parts := side.parts) is not None:
        return " or ".join(map(show, parts))
    if (values := side.values) is not None:
        return f"one of {_listed(values)}"
    limits = [f"{k} {json.dumps(v)}" for k, v in limits_of(schema).items()]
    return " ".join([_kind(side, schema), *limits])


def _kind(side: Side, schema: Schema) -> str:
    match schema.get("type"):
        case "string":
            return "bytes" if "contentEncoding" in schema else str(schema.get("format", "string"))
        case "array" if "prefixItems" in schema:
            return f"array of {', '.join(show(side.at(part)) for part in schema['prefixItems'])}"
        case "array":
            return f"{'set' if schema.get('uniqueItems') else 'array'} of {show(side.at(schema.get('items')))}"
        case "object" if "properties" in schema:
            return str(schema.get("title", "object"))
        case "object":
            return f"map of {show(side.at(schema.get('additionalProperties')))}"
        case None:
            return "anything"
        case simple:
            return str(simple)
