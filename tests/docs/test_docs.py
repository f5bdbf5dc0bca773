"""What exists has a home in the documentation, and what the documentation names exists."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

import evsync
from evsync import errors, sharding
from evsync.cli import app
from evsync.config import Deployment
from evsync.testing import World, facts, fixtures, given, world
from tests.docs.pages import ROOT, Page, page, pages

REFERENCE, DEPLOY, MEND, TEST = (
    page(f"docs/{name}.md") for name in ("reference", "howto/deploy", "howto/mend", "howto/test")
)
ERRORS = [
    e
    for name, e in vars(errors).items()
    if inspect.isclass(e) and issubclass(e, errors.EvsyncError) and not name.startswith("_")
]
NAMES = [p.name for p in pages()]


def rows(of: Page) -> Iterator[list[str]]:
    """The cells of every row of a page's tables."""
    for line in of.prose.splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]


def first_cells(of: Page) -> set[str]:
    """What stands in the first column of a page's tables, without emphasis."""
    return {re.sub(r"[*`]", "", cells[0]) for cells in rows(of)}


# ---- what exists has a home


def test_every_public_name_is_in_the_reference() -> None:
    """With a row of its own, whatever `evsync` and `evsync.sharding` export."""
    homeless = {*evsync.__all__, *sharding.__all__} - first_cells(REFERENCE)
    assert homeless == set()


def test_every_parameter_of_a_service_is_in_the_reference() -> None:
    """In the line that shows how one is made; where it runs stands in the table of settings."""
    line = next(line for line in REFERENCE.prose.splitlines() if line.startswith("`Service(name, "))
    parameters = inspect.signature(evsync.Service).parameters.values()
    named = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
    assert [name for name in named if not re.search(rf"\b{name}\b", line)] == []


def test_every_method_of_a_service_is_in_the_reference() -> None:
    """What can be done with an open service stands in one table."""
    methods = {name for name, value in vars(evsync.Service).items() if callable(value) and not name.startswith("_")}
    described = " ".join(first_cells(REFERENCE))
    assert {m for m in methods if not re.search(rf"\b{m}\b", described)} == set()


def test_every_error_is_in_the_reference() -> None:
    """The plain ones have a row; a RelayError is named there and has its row in the page that mends it."""
    relay_errors = {e.__name__ for e in ERRORS if issubclass(e, errors.RelayError) and e is not errors.RelayError}
    others = {e.__name__ for e in ERRORS} - relay_errors
    assert others - first_cells(REFERENCE) == set()
    assert relay_errors - REFERENCE.code_words == set()
    mended = " ".join(first_cells(MEND))
    assert {name for name in relay_errors if not re.search(rf"\b{name}\b", mended)} == set()


def test_every_setting_is_in_the_table_of_settings() -> None:
    """By its name and by its environment variable."""
    table = {cells[0].strip("`"): cells[1] for cells in rows(DEPLOY) if len(cells) > 2}
    for setting in Deployment.__annotations__:
        assert f"`EVSYNC_<SERVICE>_{setting.upper()}`" in table.get(setting, ""), setting


def test_every_environment_variable_is_in_the_table_of_settings() -> None:
    """Whatever EVSYNC_… the code itself speaks of, and those that it makes of its settings."""
    from evsync.config import _Broker

    known = {f"EVSYNC_{field.upper()}" for field in _Broker.model_fields}
    for path in (ROOT / "evsync").rglob("*.py"):
        # Not EVSYNC_USERS_STORE in an example, nor EVSYNC_<SERVICE>_….
        known |= set(re.findall(r"\bEVSYNC_NATS\w*[A-Z]\b", path.read_text()))
    documented = {word for cells in rows(DEPLOY) for cell in cells[:2] for word in re.findall(r"EVSYNC_[A-Z_]+", cell)}
    assert known - documented == set()


def test_every_logger_is_on_the_page_about_deployment() -> None:
    """Whoever sets levels has to know them."""
    code = "".join(path.read_text() for path in (ROOT / "evsync").rglob("*.py"))
    assert set(re.findall(r'getLogger\("(evsync[.\w]*)"\)', code)) - DEPLOY.code_words == set()


def commands() -> Iterator[tuple[str, Any]]:
    """Every command of the command line, by its full name."""

    def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        children = getattr(command, "commands", None)  # typer may bring a click of its own: no isinstance
        if children is None:
            yield name, command
            return
        if command.invoke_without_command:  # it does something by itself, too
            yield name, command
        for child, found in children.items():
            yield from walk(f"{name} {child}", found)

    yield from walk("evsync", typer.main.get_command(app))


def test_every_command_and_option_is_in_the_reference() -> None:
    """A command has a row that names its arguments and all of its options."""
    by_command = {cells[0].strip("`"): " ".join(cells) for cells in rows(REFERENCE) if cells[0].startswith("`evsync ")}
    written: list[str] = []
    for name, command in commands():
        arguments = [str(p.metavar or p.name) for p in command.params if p.param_type_name == "argument"]
        line = " ".join([name, *arguments])
        assert line in by_command, f"{line!r} has no row in {REFERENCE.name}"
        written.append(line)
        for option in command.params:
            if option.param_type_name == "option" and option.name != "help":
                missing = [o for o in option.opts if f"`{o}" not in by_command[line]]
                assert missing == [], f"{line}: {missing}"
    assert sorted(by_command) == sorted(written), "the reference names a command that does not exist"


def test_help_fits_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line is wrapped by the terminal, and no summary in a list of commands is cut."""
    monkeypatch.setenv("COLUMNS", "80")
    groups = {" ".join(name.split()[:-1]) for name, _ in commands()}
    for name in sorted(groups | {name for name, _ in commands()}):
        shown = CliRunner().invoke(app, [*name.split()[1:], "--help"], prog_name="evsync").output
        assert "Options:" in shown
        too_long = [line for line in shown.splitlines() if len(line) > 80 or line.endswith("...")]
        assert [line for line in too_long if not line.startswith("Usage:")] == [], name


def test_the_testing_kit_is_on_its_page() -> None:
    """Its functions, its fixtures, and what a world can do."""
    names = {f.__name__ for f in (facts, given, world)}
    names |= {n for n, f in vars(fixtures).items() if "fixture" in type(f).__name__.lower() and not n.startswith("_")}
    names |= {n for n, m in vars(World).items() if inspect.iscoroutinefunction(m) and not n.startswith("_")}
    assert len(names) > 5
    assert {n for n in names if not re.search(rf"\b{n}\b", TEST.text)} == set()


def test_every_page_can_be_reached_from_the_readme() -> None:
    """Through links, in any number of steps; the decisions by their directory."""
    seen, new = {"README.md"}, {"README.md"}
    while new:
        found = {target.partition("#")[0] for name in new for target in _internal_links(page(name))}
        new = {f for f in found if f.endswith(".md") and (ROOT / f).exists()} - seen
        seen |= new
    assert {name for name in NAMES if not name.startswith("docs/adr/")} - seen == set()


# ---- what is named exists


def _internal_links(of: Page) -> Iterator[str]:
    """Links of a page to places in this repository, from its top."""
    for target in of.links:
        if re.match(r"[a-z]+:", target):
            continue
        path, hash_, anchor = target.partition("#")
        found = (of.path.parent / path).resolve() if path else of.path
        yield found.relative_to(ROOT).as_posix() + hash_ + anchor


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    """To a file that exists, and to a heading that it has."""
    broken = []
    for target in _internal_links(page(name)):
        path, _, anchor = target.partition("#")
        if not (ROOT / path).exists() or (anchor and anchor not in page(path).anchors):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("name", NAMES)
def test_paths_in_backticks_exist(name: str) -> None:
    """`evsync/stores/plan.py` is a file; `benchmarks/` is a directory; `leases.py` is a module somewhere."""
    paths = [w for w in page(name).code_words if re.match(r"(evsync|tests|docs|examples|benchmarks)/", w)]
    assert [p for p in paths if not (ROOT / p).exists()] == []
    modules = {p.name for directory in ("evsync", "tests") for p in (ROOT / directory).rglob("*.py")}
    modules |= {b.file for b in page(name).blocks() if b.file}
    assert {w for w in page(name).code_words if re.fullmatch(r"\w+\.py", w)} - modules == set()


@pytest.mark.parametrize("name", NAMES)
def test_tests_that_are_named_exist(name: str) -> None:
    """A law is kept only if its test is there."""
    named = {w for w in page(name).code_words if re.fullmatch(r"test_\w+", w)}
    assert named - _tests() == set()


def _tests() -> set[str]:
    found: set[str] = set()
    for directory in ("tests", "evsync/testing"):
        for path in (ROOT / directory).rglob("*.py"):
            found |= set(re.findall(r"^\s*(?:async )?def (test_\w+)", path.read_text(), re.M))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_errors_that_are_named_exist(name: str) -> None:
    """In inline code, a word that looks like one of our errors is one of them, and so is a qualified one."""
    known = {e.__name__ for e in ERRORS} | {"TimeoutError", "ValueError", "TypeError"}
    like_ours = re.compile(r"[\w.]*Error|Stream[A-Z]\w+")
    named = {w.removeprefix("evsync.errors.") for w in page(name).code_words if like_ours.fullmatch(w)}
    assert named - known == set()


@pytest.mark.parametrize("name", NAMES)
def test_commands_that_are_named_exist(name: str) -> None:
    """`evsync stream rebuild` in a sentence or in a console block is a command of this version."""
    known = {c for c, _ in commands()} | {"evsync", "evsync stream"}
    said = [*page(name).code_words]
    said += [line for b in page(name).blocks() if b.language == "console" for line in b.text.splitlines()]
    words = [m[1] for text in said for m in re.finditer(r"(?:^|\$ |&& |until |; )(evsync(?: [a-z]+){1,2})", text)]
    assert [w for w in words if w not in known and w.rpartition(" ")[0] not in known] == []


def test_the_table_of_parts_is_that_of_the_layer_test() -> None:
    """It lists every part of the package, from the bottom up."""
    from tests.unit.test_layers import LAYERS, files, layer_of

    parts = {part for part, _, _ in files()} - {"__init__", ""}
    section = page("docs/architecture.md").section("The parts, and who may import whom")
    table = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    order = [w.rstrip("/").removesuffix(".py").replace("/", ".") for w in re.findall(r"`evsync/([\w/.]+)`", table)]
    assert parts - set(order) - {"sharding"} == set(), f"missing from the table; the layers are {LAYERS}"
    ranks = [layer_of(part) for part in order]
    assert ranks == sorted(ranks)


# ---- style


@pytest.mark.parametrize("name", NAMES)
def test_no_line_of_prose_is_lost_to_the_reader(name: str) -> None:
    """No emoji, no marks of unfinished work, no trailing spaces."""
    text = page(name).text
    assert re.findall(r"[\U0001F300-\U0001FAFF]|TODO|FIXME|XXX", text) == []
    assert [n for n, line in enumerate(text.splitlines(), 1) if line != line.rstrip()] == []


@pytest.mark.parametrize("name", [p.name for p in pages() if any(b.file for b in p.blocks())])
def test_code_on_the_pages_is_clean(name: str, tmp_path: Path) -> None:
    """ruff has nothing to say about the files that a reader copies."""
    written: dict[str, str] = {}
    for block in page(name).blocks():
        if block.file and block.language == "python":
            before = "" if block.begins_anew else written.get(block.file, "")
            written[block.file] = before + ("\n\n" if before else "") + block.text
            ast.parse(written[block.file], f"{block.where} ({block.file})")
    for file, text in written.items():
        (tmp_path / file).write_text(text)
    ruff = [sys.executable, "-m", "ruff"]
    check = ["check", "--select", "E,F,I,UP,B,SIM,RET,PT", "--ignore", "PT011"]
    for command in (check, ["format", "--check", "--diff"]):
        done = subprocess.run(
            [*ruff, *command, "--isolated", "--no-cache", "--line-length", "120", "--target-version", "py311", "."],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
