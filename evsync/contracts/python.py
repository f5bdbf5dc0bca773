"""A document → the module of Contract classes that a consumer starts from.

The classes are the consumer's own from then on: it deletes what it does not need. They take what the document says and
no more: constraints such as a maximum stay the producer's affair, an enum becomes a Literal of its values, a field that
old events lack gets its default (None where the document does not know it).
"""

from __future__ import annotations

import ast
import builtins
import keyword
import re
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from pydantic import BaseModel, TypeAdapter

from evsync.contracts.acceptance import is_of
from evsync.contracts.document import (
    EVENT,
    Schema,
    classes_of,
    events_of,
    parts_of,
    referred,
    resolve,
    service_of,
    values_of,
)
from evsync.contracts.wire_schema import KEYS

_TEXTS = {
    "uuid": "UUID",
    "decimal": "Decimal",
    "date-time": "dt.datetime",
    "date": "dt.date",
    "time": "dt.time",
    "duration": "dt.timedelta",
}
_SIMPLE = {"integer": "int", "number": "float", "boolean": "bool", "null": "None"}
_IMPORTS = {
    "dt": "import datetime as dt",
    "Decimal": "from decimal import Decimal",
    "Any": "from typing import Any",
    "Literal": "from typing import Literal",
    "TypeAlias": "from typing import TypeAlias",
    "UUID": "from uuid import UUID",
    "BaseModel": "from pydantic import BaseModel",
    "ConfigDict": "from pydantic import ConfigDict",
    "AliasChoices": "from pydantic import AliasChoices",
    "Field": "from pydantic import Field",
    "Contract": "from evsync import Contract",
}
_INSIDE = {*_IMPORTS, "bool", "bytes", "dict", "float", "int", "list", "set", "str", "tuple"}
"""What annotations and defaults name: read inside of a class, where a field of that name would hide it."""


def python_of(document: Schema) -> str:
    """The module's text. It imports nothing but evsync and pydantic, and has no error under `mypy --strict`."""
    return _Module(document).text()


class _Module:
    def __init__(self, document: Schema) -> None:
        self._document, self._service = document, service_of(document)
        self._taken = {*_IMPORTS, *keyword.kwlist, *dir(builtins)}
        self._classes = {name: self._unique(_camel(name)) for name in classes_of(document)}
        self._events = {type: self._unique(_camel(type.partition(".")[2])) for type in events_of(document)}

    def _unique(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def text(self) -> str:
        """Imports, classes of the fields, contracts."""
        parts = [*self._field_classes(), *self._contracts()]
        head = (
            f'"""Events of {self._service}, as contracts to start from.\n\n'
            "Written by `evsync contracts export --python`. They are yours: delete the fields and classes that you do\n"
            'not need. What a contract does not name may change without breaking you.\n"""\n\n'
            "from __future__ import annotations\n"
        )
        return head + self._imports("\n".join(parts)) + "".join(f"{_before(part)}{part}" for part in parts)

    def _imports(self, body: str) -> str:
        names = _names_in(ast.parse(body))
        used = [name for name in _IMPORTS if name in names]
        blocks: list[list[str]] = [[], []]
        for name in used:
            line = _IMPORTS[name]
            blocks["pydantic" in line or "evsync" in line].append(line)
        return "".join("\n" + "".join(f"{line}\n" for line in _merged(block)) for block in blocks if block)

    def _field_classes(self) -> Iterator[str]:
        models, aliases = [], []
        for name, schema in classes_of(self._document).items():
            if "properties" in schema:
                models.append(
                    f"class {self._classes[name]}(BaseModel):\n"
                    f'    """{_one_line(name)} as it stands in events of {self._service}."""\n\n'
                    f"    model_config = ConfigDict(frozen=True)\n{self._fields(schema, '')}"
                )
            else:
                aliases.append(f"{self._classes[name]}: TypeAlias = {self._alias(schema)}\n")
        # Defaults are evaluated where they stand, so that what they name must stand before.
        if aliases:
            yield "".join(aliases).removesuffix("\n") + "\n"
        yield from models

    def _alias(self, schema: Schema) -> str:
        # An alias is evaluated at once: what it names may stand behind it.
        found = self._annotation(schema)
        return f'"{found}"' if '"' not in found and any(n in found for n in self._classes.values()) else found

    def _contracts(self) -> Iterator[str]:
        for type, schema in events_of(self._document).items():
            fields = self._fields(schema, "\n") if schema["properties"] else ""
            number = schema[EVENT]["schema"]
            version = f" (schema {number})" if number > 1 else ""
            yield (
                f"class {self._events[type]}(Contract, type={_quoted(type)}):\n"
                f'    """{_one_line(type)}{version}."""\n{fields}'
            )

    # ---- fields

    def _fields(self, schema: Schema, before: str) -> str:
        required, lines, names = schema.get("required", ()), [], set[str]()
        for field, of_field in schema["properties"].items():
            name = self._field_name(field, names)
            names.add(name)
            annotation = self._annotation(of_field)
            default = None
            if field not in required:
                if "default" in of_field:
                    default = self._literal(of_field, of_field["default"])
                if default is None:
                    default = "None"
                    annotation += "" if annotation == "Any" or annotation.endswith("None") else " | None"
            lines.append(f"    {name}: {annotation}{self._value(name, field, default)}\n")
        return before + "".join(lines)

    def _value(self, name: str, field: str, default: str | None) -> str:
        """What stands behind a field's annotation."""
        given = []
        if default is not None:
            # A default that makes an object is evaluated late: its class may stand further down.
            late = any(f"{cls}(" in default for cls in self._classes.values())
            given.append(f"default_factory=lambda: {default}" if late else f"default={default}")
        if name != field:
            given.append(f"validation_alias=AliasChoices({_quoted(field)}, {_quoted(name)})")
        if given == [f"default={default}"]:
            return f" = {default}"
        return f" = Field({', '.join(given)})" if given else ""

    def _field_name(self, field: str, names: set[str]) -> str:
        name = re.sub(r"\W", "_", field).lstrip("_") or "field"
        name = f"field_{name}" if not name.isidentifier() else name
        name = f"its_{name}" if name.startswith("model_") else name
        taken = names | _INSIDE | {*self._classes.values(), *self._events.values()}
        while name in taken or keyword.iskeyword(name) or hasattr(BaseModel, name):
            name += "_"
        return name

    # ---- types

    def _annotation(self, schema: Any) -> str:
        if not isinstance(schema, dict):
            return "Any"
        if (name := referred(schema)) is not None:
            return self._classes[name]
        if (parts := parts_of(schema)) is not None:
            found = dict.fromkeys(map(self._annotation, parts))
            return "Any" if "Any" in found else " | ".join(sorted(found, key="None".__eq__))  # None stands last
        if (values := values_of(schema)) is not None:
            return self._values(values)
        match schema.get("type"):
            case "string":
                return "bytes" if "contentEncoding" in schema else _TEXTS.get(schema.get("format", ""), "str")
            case "array":
                return self._array(schema)
            case "object":
                keys = self._annotation(schema.get(KEYS, {"type": "string"}))
                return f"dict[{keys}, {self._annotation(schema.get('additionalProperties'))}]"
            case simple:
                return _SIMPLE.get(str(simple), "Any")

    def _values(self, values: list[Any]) -> str:
        if not all(isinstance(v, (str, int, bool, type(None))) for v in values):
            return "Any"  # a Literal holds no floats, and no lists
        return f"Literal[{', '.join(_constant(v) for v in values)}]"

    def _array(self, schema: Schema) -> str:
        items = self._annotation(schema.get("items"))
        if "prefixItems" in schema and "items" not in schema:
            return f"tuple[{', '.join(map(self._annotation, schema['prefixItems']))}]"
        if "prefixItems" in schema:
            return "list[Any]"
        if schema.get("maxItems") == 0:
            return "tuple[()]"
        return f"set[{items}]" if schema.get("uniqueItems") and items != "Any" else f"list[{items}]"

    # ---- defaults

    def _literal(self, schema: Any, value: Any) -> str | None:
        """Python for a value in its JSON form; None where there is none, as for one that fits no part of a union."""
        target = resolve(schema, self._document)
        if (parts := parts_of(target)) is not None:
            written = (self._literal(part, value) for part in parts)
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
        parts = [self._literal(prefix[i] if i < len(prefix) else schema.get("items"), v) for i, v in enumerate(value)]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            return None
        annotation, inside = self._annotation(schema), ", ".join(found)
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
                name = self._field_name(field, names)
                names.add(name)
                if field not in value or (found := self._literal(of_field, value[field])) is None or name != field:
                    return None
                parts.append(f"{name}={found}")
            return f"{self._annotation(schema)}({', '.join(parts)})"
        if value and KEYS in target:
            return None  # its keys were turned into text
        pairs = {key: self._literal(target.get("additionalProperties"), v) for key, v in value.items()}
        if None in pairs.values():
            return None
        return f"{{{', '.join(f'{_quoted(key)}: {found}' for key, found in pairs.items())}}}"


def _text_literal(schema: Schema, value: str) -> str:
    if "contentEncoding" in schema:
        return _quoted(urlsafe_b64decode(value))
    match schema.get("format"):
        case "uuid" | "decimal" as kind:
            return f"{_TEXTS[kind]}({_quoted(value)})"
        case "date-time" | "date" | "time" as kind:
            return f"{_TEXTS[kind]}.fromisoformat({_quoted(value)})"
        case "duration":
            span = TypeAdapter(timedelta).validate_python(value)
            return f"dt.timedelta(microseconds={span // timedelta(microseconds=1)})"
    return _quoted(value)


def _constant(value: Any) -> str:
    return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(value: str | bytes) -> str:
    # Python's repr prefers single quotes; everything else here is written in double ones.
    found = repr(value)
    prefix, found = ("b", found[1:]) if isinstance(value, bytes) else ("", found)
    return prefix + (f'"{found[1:-1]}"' if found[0] == "'" and '"' not in found else found)


def _before(part: str) -> str:
    return "\n\n" if part.startswith("class ") else "\n"


def _camel(name: str) -> str:
    found = "".join(part[:1].upper() + part[1:] for part in re.split(r"\W+", name) if part)
    return found if found.isidentifier() else f"C{found}"


def _one_line(text: str) -> str:
    return " ".join(text.replace("\\", "/").replace('"', "'").split())


def _names_in(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
            and ast.unparse(node.annotation) == "TypeAlias"
        ):
            found |= _names_in(ast.parse(node.value.value))
    return found


def _merged(imports: list[str]) -> list[str]:
    """Several names of one module on one line, as isort has it."""
    modules: dict[str, list[str]] = {}
    plain = [line for line in imports if line.startswith("import ")]
    for line in imports:
        if line.startswith("from "):
            module, _, name = line.removeprefix("from ").partition(" import ")
            modules.setdefault(module, []).append(name)
    return plain + [f"from {m} import {', '.join(sorted(modules[m]))}" for m in sorted(modules)]
