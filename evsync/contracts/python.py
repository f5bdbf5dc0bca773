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
from collections.abc import Iterator

from evsync.contracts.document import EVENT, Schema, classes_of, events_of, service_of
from evsync.contracts.expressions import Expressions, quoted

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


def python_of(document: Schema) -> str:
    """The module's text. It imports nothing but evsync and pydantic, and has no error under `mypy --strict`."""
    return _Module(document).text()


class _Module:
    def __init__(self, document: Schema) -> None:
        self._document, self._service = document, service_of(document)
        self._taken = {*_IMPORTS, *keyword.kwlist, *dir(builtins)}
        self._classes = {name: self._unique(_camel(name)) for name in classes_of(document)}
        self._events = {type: self._unique(_camel(type.partition(".")[2])) for type in events_of(document)}
        taken = {*_IMPORTS, *self._classes.values(), *self._events.values()}
        self._python = Expressions(document, self._classes, taken)

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
            yield "".join(aliases)
        yield from models

    def _alias(self, schema: Schema) -> str:
        # An alias is evaluated at once: what it names may stand behind it.
        found = self._python.annotation(schema)
        return f'"{found}"' if '"' not in found and any(n in found for n in self._classes.values()) else found

    def _contracts(self) -> Iterator[str]:
        for type, schema in events_of(self._document).items():
            fields = self._fields(schema, "\n") if schema["properties"] else ""
            number = schema[EVENT]["schema"]
            version = f" (schema {number})" if number > 1 else ""
            yield (
                f"class {self._events[type]}(Contract, type={quoted(type)}):\n"
                f'    """{_one_line(type)}{version}."""\n{fields}'
            )

    # ---- fields

    def _fields(self, schema: Schema, before: str) -> str:
        required, lines, names = schema.get("required", ()), [], set[str]()
        for field, of_field in schema["properties"].items():
            name = self._python.field_name(field, names)
            names.add(name)
            annotation = self._python.annotation(of_field)
            default = None
            if field not in required:
                if "default" in of_field:
                    default = self._python.literal(of_field, of_field["default"])
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
            given.append(f"validation_alias=AliasChoices({quoted(field)}, {quoted(name)})")
        if given == [f"default={default}"]:
            return f" = {default}"
        return f" = Field({', '.join(given)})" if given else ""


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
