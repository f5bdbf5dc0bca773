"""Imports point one way, and each technology is known to one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import evsync

ROOT = Path(evsync.__file__).parent
LAYERS = [
    {"errors"},
    {"records", "control", "ports", "inspection", "domain", "tags", "tasks"},
    {"codec", "aggregates", "restores", "liveness", "sharding.slots"}
    | {"stores.plan", "stores.tail", "stores.slot_events", "stores.slot_steps"},
    {"stores", "jetstream", "projections", "sharding", "archive"},
    {"urls", "opening", "sources", "homes", "shards", "aggregates.repository", "config", "interop", "contracts"},
    {"definition", "archiving", "status", "runtime", "service", "operations"},
    {"cli", "testing", "__init__"},
]
"""From the bottom up: a part may import what is below it, and its own part."""
ADAPTERS = {"stores", "jetstream", "projections", "archive"}
KNOWN_TO_ONE = {"eventsourcing": {"domain", "interop"}, "nats": {"jetstream"}, "sqlite3": {"stores", "projections"}}


def part_of(module: str) -> str:
    """`evsync.stores.sqlite.store` belongs to `stores`; a module of its own layer keeps its name."""
    name = module.removeprefix("evsync.")
    return name if any(name in layer for layer in LAYERS) else name.split(".", maxsplit=1)[0]


def layer_of(part: str) -> int:
    """Counted from the bottom."""
    return next(i for i, layer in enumerate(LAYERS) if part in layer)


@cache
def imports(path: Path) -> list[str]:
    """What a file imports at run time; what stands under TYPE_CHECKING is for the type checker alone."""
    return list(_imports(ast.parse(path.read_text())))


def _imports(node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            yield child.module
        elif not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield from _imports(child)


def files() -> list[tuple[str, str, Path]]:
    """Every module of the package: its part, its name, its file."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found.append((part_of(name), name, path))
    return found


def test_every_module_has_its_layer() -> None:
    """A new part says where it stands."""
    assert [name for part, name, _ in files() if not any(part in layer for layer in LAYERS)] == []


def test_imports_point_downwards_and_adapters_do_not_know_one_another() -> None:
    """cli → service → adapters → codec → records → errors."""
    wrong = []
    for part, name, path in files():
        for imported in imports(path):
            if not imported.startswith("evsync."):
                continue
            other = part_of(imported)
            upwards = layer_of(other) > layer_of(part)
            sideways = part != other and {part, other} <= ADAPTERS
            if upwards or sideways:
                wrong.append(f"{name} imports {imported}")
    assert wrong == []


def test_projections_import_one_another_in_one_direction() -> None:
    """No circle, not even one for the type checker alone: whoever reads a module can read what it needs first."""
    modules = {f"evsync.{name}": path for part, name, path in files() if part == "projections"}
    needs = {module: named_in(path) & modules.keys() for module, path in modules.items()}
    for module in needs:  # `from evsync.projections import leases` is about that module, not about the package
        needs[module] -= {"evsync.projections"}
    assert needs["evsync.projections.rebuilding.rebuild"] > {"evsync.projections.running.runner"}
    while lowest := {module for module, needed in needs.items() if not needed}:
        needs = {module: needed - lowest for module, needed in needs.items() if module not in lowest}
    assert needs == {}


def named_in(path: Path) -> set[str]:
    """The modules that a file's imports may mean, also those for the type checker alone."""
    found = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
    return {name for n in found for name in (n.module or "", *(f"{n.module}.{alias.name}" for alias in n.names))}


def test_each_library_is_known_to_one_part() -> None:
    """Only domain and interop know eventsourcing, only jetstream knows nats."""
    wrong = [
        f"{name} imports {imported}"
        for part, name, path in files()
        for imported in imports(path)
        for library, parts in KNOWN_TO_ONE.items()
        if imported.split(".")[0] == library and part not in parts
    ]
    assert wrong == []


def test_no_module_holds_two_ideas() -> None:
    """A file that passes about 400 lines usually does."""
    assert [(name, n) for _, name, path in files() if (n := len(path.read_text().splitlines())) > 420] == []
