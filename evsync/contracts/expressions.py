"""Schemas → Python: the annotation of a schema's values, a default as a literal, the name of a field."""

from __future__ import annotations

import keyword
import re
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from pydantic import BaseModel, TypeAdapter

from evsync.contracts.acceptance import is_of
from evsync.contracts.document import Schema, parts_of, referred, resolve, values_of
from evsync.contracts.wire_schema import KEYS

_TEXTS = {
    "uuid": "UUID",
    "decimal": "Decimal",
    "date-time": "dt.datetime",
    "date": "dt.date",
    "time": "dt.time",
    "duration": "dt.timedelta",
}
_BUILTIN = {"bool", "bytes", "dict", "float", "int", "list", "set", "str", "tuple"}
_SIMPLE = {"integer": "int", "number": "float", "boolean": "bool", "null": "None"}


class Expressions:
    """The Python of a document's schemas, where the classes in them have these names.

    No field gets one of the names `taken`: what annotations and defaults name is read inside of a class, where a field
    of that name would hide it.
    """

    def __init__(self, document: Schema, classes: Mapping[str, str], taken: set[str]) -> None:
        self._document, self._classes, self._taken = document, classes, taken | _BUILTIN

    def annotation(self, schema: Any) -> str:
        """The type of a schema's values."""
        if not isinstance(schema, dict):
            return "Any"
        if (name := referred(schema)) is not None:
            return self._classes[name]
        if (parts := parts_of(schema)) is not None:
            found = dict.fromkeys(map(self.annotation, parts))
            return "Any" if "Any" in found else " | ".join(sorted(found, key="None".__eq__))  # None stands last
        if (values := values_of(schema)) is not None:
            return self._values(values)
        match schema.get("type"):
            case "string":
                return "bytes" if "contentEncoding" in schema else _TEXTS.get(schema.get("format", ""), "str")
            case "array":
                return self._array(schema)
            case "object":
                keys = self.annotation(schema.get(KEYS, {"type": "string"}))
                return f"dict[{keys}, {self.annotation(schema.get('additionalProperties'))}]"
            case simple:
                return _SIMPLE.get(str(simple), "Any")

    def _values(self, values: list[Any]) -> str:
        if not all(isinstance(v, (str, int, bool, type(None))) for v in values):
            return "Any"  # a Literal holds no floats, and no lists
        return f"Literal[{', '.join(_constant(v) for v in values)}]"

    def _array(self, schema: Schema) -> str:
        items = self.annotation(schema.get("items"))
        if "prefixItems" in schema and "items" not in schema:
            return f"tuple[{', '.join(map(self.annotation, schema['prefixItems']))}]"
        if "prefixItems" in schema:
            return "list[Any]"
        if schema.get("maxItems") == 0:
            return "tuple[()]"
        return f"set[{items}]" if schema.get("uniqueItems") and items != "Any" else f"list[{items}]"

    def literal(self, schema: Any, value: Any) -> str | None:
        """Python for a value in its JSON form; None where there is none, as for one that fits no part of a union."""
        target = resolve(schema, self._document)
        if (parts := parts_of(target)) is not None:
            written = (self.literal(part, value) for part in parts)
            return next((found for found in written if found is not None), None)
        if (values := values_of(target)) is not None:
            return _constant(value) if value in values else None
        match target.get("type"):
            case "string":
                return _text_literal(target, value) if isinstance(value, str) else None
            case "array":
                return self._array_literal(target, value) if isinstance(value, list) else None
            case "object":
                return self._object_literal(schema, target, value) if isinstance(value, dict) else None
            case "number" if isinstance(value, str):
                return f'float("{value}")'
            case None:
                return repr(value)
            case of:
                return repr(value) if is_of(value, of) else None

    def _array_literal(self, schema: Schema, value: list[Any]) -> str | None:
        prefix = schema.get("prefixItems", [])
        parts = [self.literal(prefix[i] if i < len(prefix) else schema.get("items"), v) for i, v in enumerate(value)]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            return None
        annotation, inside = self.annotation(schema), ", ".join(found)
        if annotation.startswith("set["):
            return f"{{{inside}}}" if found else "set()"
        if annotation.startswith("tuple["):
            return f"({inside}{',' if len(found) == 1 else ''})"
        return f"[{inside}]"

    def _object_literal(self, schema: Any, target: Schema, value: dict[str, Any]) -> str | None:
        if "properties" in target:
            if referred(schema) is None:
                return None
            names, parts = set[str](), []
            for field, of_field in target["properties"].items():
                name = self.field_name(field, names)
                names.add(name)
                if field not in value or (found := self.literal(of_field, value[field])) is None or name != field:
                    return None
                parts.append(f"{name}={found}")
            return f"{self.annotation(schema)}({', '.join(parts)})"
        if value and KEYS in target:
            return None  # its keys were turned into text
        pairs = {key: self.literal(target.get("additionalProperties"), v) for key, v in value.items()}
        if None in pairs.values():
            return None
        return f"{{{', '.join(f'{quoted(key)}: {found}' for key, found in pairs.items())}}}"

    def field_name(self, field: str, names: set[str]) -> str:
        """A name for a field beside these, which a class can have; its own where it can be."""
        name = re.sub(r"\W", "_", field).lstrip("_") or "field"
        name = f"field_{name}" if not name.isidentifier() else name
        name = f"its_{name}" if name.startswith("model_") else name
        taken = names | self._taken
        while name in taken or keyword.iskeyword(name) or hasattr(BaseModel, name):
            name += "_"
        return name


def _text_literal(schema: Schema, value: str) -> str:
    if "contentEncoding" in schema:
        return quoted(urlsafe_b64decode(value))
    match schema.get("format"):
        case "uuid" | "decimal" as kind:
            return f"{_TEXTS[kind]}({quoted(value)})"
        case "date-time" | "date" | "time" as kind:
            return f"{_TEXTS[kind]}.fromisoformat({quoted(value)})"
        case "duration":
            span = TypeAdapter(timedelta).validate_python(value)
            return f"dt.timedelta(microseconds={span // timedelta(microseconds=1)})"
    return quoted(value)


def _constant(value: Any) -> str:
    return quoted(value) if isinstance(value, str) else repr(value)


def quoted(value: str | bytes) -> str:
    """A constant as the formatter has it."""
    # Python's repr prefers single quotes; everything else here is written in double ones.
    found = repr(value)
    prefix, found = ("b", found[1:]) if isinstance(value, bytes) else ("", found)
    return prefix + (f'"{found[1:-1]}"' if found[0] == "'" and '"' not in found else found)
