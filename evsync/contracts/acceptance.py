"""Whether what one schema describes is accepted by whoever relies on another. Pure; says no where it cannot tell.

The writer's schema says which values come. The reader's says what a contract made from it takes: it ignores fields it
does not know, and fills in those that it has a default for. Two questions are asked, which differ in what a missing
field means:

    consumers   contracts made before the change meet events written after it. Whoever writes, writes every field.
    history     contracts made after the change meet events stored before it. They lack what was not required then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from evsync.contracts.document import EVENT, Schema, parts_of, resolve, values_of
from evsync.contracts.wire_schema import EXTENSION, KEYS

Question: TypeAlias = Literal["consumers", "history"]

_SAYS_NOTHING = {"title", "description", "default", "examples", "deprecated", "discriminator", EVENT, "$defs"}
_JUDGED = {"type", "properties", "required", "items", "prefixItems", "uniqueItems", "enum", "const", "anyOf", "oneOf"}
_JUDGED |= {"additionalProperties", KEYS, "format", "contentEncoding", EXTENSION, "$ref"}
_AT_LEAST = {"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"}
_AT_MOST = {"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"}


class Side(NamedTuple):
    """A schema in its document."""

    schema: Any
    document: Schema

    @property
    def resolved(self) -> Schema:
        """The schema, references followed."""
        return resolve(self.schema, self.document)

    def at(self, schema: Any) -> Side:
        """Another schema of the same document."""
        return Side(schema, self.document)

    @property
    def parts(self) -> list[Side] | None:
        """The parts of a union; None if it is none."""
        found = parts_of(self.resolved)
        return None if found is None else [self.at(part) for part in found]

    @property
    def values(self) -> list[Any] | None:
        """The values of an enum; None if it is none."""
        return values_of(self.resolved)


def accepts(reader: Side, writer: Side, question: Question) -> bool:
    """Whether every value of the writer is one that the reader takes."""
    return _Judge(question).accepts(reader, writer)


class _Judge:
    def __init__(self, question: Question) -> None:
        self._question = question
        self._asked: set[tuple[int, int]] = set()

    def accepts(self, reader: Side, writer: Side) -> bool:
        r, w = reader.resolved, writer.resolved
        if (id(r), id(w)) in self._asked:
            return True  # a class that holds itself: if it fails, it fails elsewhere
        self._asked.add((id(r), id(w)))
        try:
            return self._judge(reader, writer, r, w)
        finally:
            self._asked.discard((id(r), id(w)))

    def _judge(self, reader: Side, writer: Side, r: Schema, w: Schema) -> bool:
        if not meaning(r):
            return True
        if (several := writer.parts) is not None:
            return all(self.accepts(reader, part) for part in several)
        if (several := reader.parts) is not None:
            return any(self.accepts(part, writer) for part in several)
        if (values := reader.values) is not None:
            return writer.values is not None and all(any(_same(v, o) for o in values) for v in writer.values)
        if writer.values is not None:
            return _plain(r) and all(is_of(v, r["type"]) for v in writer.values)
        if not meaning(w) or not _kinds_fit(r, w) or not _limits_fit(r, w):
            return False
        match r.get("type"):
            case "array":
                return self._arrays(reader, writer, r, w)
            case "object":
                return self._objects(reader, writer, r, w)
        return True

    def _arrays(self, reader: Side, writer: Side, r: Schema, w: Schema) -> bool:
        if r.get("uniqueItems") and not w.get("uniqueItems"):
            return False
        first, other = r.get("prefixItems", []), w.get("prefixItems", [])
        if first and len(first) != len(other):
            return False
        fixed = all(
            self.accepts(reader.at(first[i] if first else r.get("items", {})), writer.at(o))
            for i, o in enumerate(other)
        )
        if "items" not in w and (other or w.get("maxItems") == 0):
            return fixed  # no others follow
        return fixed and self.accepts(reader.at(r.get("items", {})), writer.at(w.get("items", {})))

    def _objects(self, reader: Side, writer: Side, r: Schema, w: Schema) -> bool:
        if ("properties" in r) != ("properties" in w):
            return False
        if "properties" not in r:
            keys = self.accepts(reader.at(_keys(r)), writer.at(_keys(w)))
            values = r.get("additionalProperties", {}), w.get("additionalProperties", {})
            return keys and self.accepts(reader.at(values[0]), writer.at(values[1]))
        return all(
            not is_missing(r, w, name, self._question)
            and (name not in w["properties"] or self.accepts(reader.at(of), writer.at(w["properties"][name])))
            for name, of in r["properties"].items()
        )


def is_missing(reader: Schema, writer: Schema, name: str, question: Question) -> bool:
    """Whether a field that the reader needs may be missing from what the writer has written."""
    if name not in reader.get("required", ()):
        return False
    return name not in (writer.get("required", ()) if question == "history" else writer["properties"])


def meaning(schema: Schema) -> dict[str, Any]:
    """The keywords of a schema that say something about the values."""
    return {k: v for k, v in schema.items() if k not in _SAYS_NOTHING}


def _keys(schema: Schema) -> Any:
    return schema.get(KEYS, {"type": "string"})


def _kinds_fit(r: Schema, w: Schema) -> bool:
    if r.get("type") != w.get("type") and (r.get("type"), w.get("type")) != ("number", "integer"):
        return False
    # A UUID, a decimal and a text are all strings in JSON, and never one another on the wire.
    return all(r.get(k) == w.get(k) for k in ("format", "contentEncoding", EXTENSION))


def limits_of(schema: Schema) -> dict[str, Any]:
    """The keywords that limit what a type allows: `maxLength`, and all that are not known here."""
    return {k: v for k, v in meaning(schema).items() if k not in _JUDGED}


def _limits_fit(r: Schema, w: Schema) -> bool:
    for limit, value in limits_of(r).items():
        other = w.get(limit)
        if limit in _AT_LEAST | _AT_MOST and isinstance(other, (int, float)):
            if other < value if limit in _AT_LEAST else other > value:
                return False
        elif other != value:
            return False
    return True


def _plain(schema: Mapping[str, Any]) -> bool:
    """Whether it is a type and nothing else, so that a value can be judged by its type."""
    return set(meaning(schema)) == {"type"}


def is_of(value: Any, type: str) -> bool:
    """Whether a value in its JSON form is of one of JSON's plain types."""
    match type:
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, (int, float)) and not isinstance(value, bool)
    return False


def _same(one: Any, other: Any) -> bool:
    """Equal in JSON, where 1 is not true."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)
