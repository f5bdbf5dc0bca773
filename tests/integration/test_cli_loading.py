"""Finding the service that a command is about, and saying what is wrong with it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from evsync.cli.loading import load
from evsync.cli.terminal import plain
from evsync.errors import ConfigurationError, redacted
from tests.command_line import Shop

MODULES = {
    "fine": (
        "from evsync import Service\nclass Box: inner = Service('inner')\n"
        "first, n, second = Service('first'), 3, Service('second')\n"
    ),
    "empty": "x = 1\n",
    "needs": "import some_module_that_is_not_there\n",
    "typo": "def f(\n",
    "broken": "def f():\n    return {}['key']\nf()\n",
    "misnamed": "from evsync import Service\ns = Service('Bad Name')\n",
    "exits": "import sys\nsys.exit(3)\n",
}


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a few modules; nothing of them stays in this process."""
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("fine", "write module:service"),
        ("fine.py:first", "no module 'fine.py'"),
        ("./fine.py:first", "write module:service"),
        ("fine:", "write module:service"),
        ("fine:third", "module 'fine' has no attribute 'third'; its services: first, second"),
        ("fine:n", "fine:n is of type 'int', not a Service; its services: first, second"),
        ("empty:s", "module 'empty' has no attribute 's'; it has no service at all"),
        ("nowhere:s", "there is no module 'nowhere' in {here}"),
        ("fine.inside:s", "there is no module 'fine.inside'"),
        ("needs:s", "ModuleNotFoundError: No module named 'some_module_that_is_not_there' ({here}/needs.py, line 1)"),
        ("typo:s", "SyntaxError: '(' was never closed ({here}/typo.py, line 1)"),
        ("broken:s", "module 'broken' cannot be imported: KeyError: 'key' ({here}/broken.py, line 2)"),
        ("misnamed:s", "{here}/misnamed.py, line 2"),
        ("exits:s", "SystemExit: 3 ({here}/exits.py, line 2)"),
    ],
)
def test_what_is_wrong_with_a_target_is_said(shelf: Path, target: str, said: str) -> None:
    """No such module, no such attribute, not a Service, a module that fails: each says which, and what there is."""
    with pytest.raises(ConfigurationError) as caught:
        load(target)
    assert said.format(here=shelf) in str(caught.value)


def test_a_service_of_the_current_directory_is_found(shelf: Path) -> None:
    """The current directory is importable, and attributes of attributes will do."""
    assert load("fine:first").name == "first"
    assert load("fine:Box.inner").name == "inner"


def test_the_version_is_that_of_the_package(tmp_path: Path) -> None:
    """`evsync --version`, for a report of a fault; here of the program that was installed, elsewhere of forks."""
    installed = Path(sys.executable).parent / "evsync"
    said = subprocess.run([installed, "--version"], cwd=tmp_path, text=True, capture_output=True, check=True).stdout
    assert said == Shop(tmp_path).evsync("--version").stdout
    assert said.startswith(f"evsync {version('evsync')}, Python 3.")


def test_errors_are_texts_with_an_exit_code_of_their_own(tmp_path: Path) -> None:
    """2 for what is configured wrongly, 1 for everything else that evsync raises; tracebacks only on request."""
    shop = Shop(tmp_path)
    wrong = shop.evsync("status", "tests.cli_shop:nothing", code=2)
    assert wrong.stderr.startswith(
        "Error: module 'tests.cli_shop' has no attribute 'nothing'; its services: stock, idle"
    )
    assert wrong.stdout == ""
    assert wrong.stderr.count("\n") == 1
    missing = shop.evsync("status", "tests.cli_shop:stock", "--debug", code=1)
    assert "Traceback" in missing.stderr
    assert missing.stderr.splitlines()[-1].startswith("Error: there is no store at ")


def test_secrets_are_never_printed(tmp_path: Path) -> None:
    """Neither in errors nor in tracebacks, whoever made the text."""
    done = Shop(tmp_path).evsync(
        "status", "tests.cli_shop:stock", "--debug", code=2, EVSYNC_STOCK_STORE="mysql://ada:geheim@host/db"
    )
    assert "geheim" not in done.stderr + done.stdout
    assert redacted("at nats://ada:p/a:s@one:1, or tls://token@two") == "at nats://ada:***@one:1, or tls://***@two"
    assert redacted("mysql://h/d?user=ada&password=geheim'") == "mysql://h/d?user=ada&password=***'"
    assert redacted("sqlite:///a@b.db and a@b") == "sqlite:///a@b.db and a@b"


def test_text_from_anywhere_cannot_command_a_terminal() -> None:
    """Escape sequences, line ends and reordering marks show as what they are; letters of any script stay."""
    assert plain("a\x1b[31m\n\u202e\u2028\ud800\x9b é 漢字") == "a\\x1b[31m\\n\\u202e\\u2028\\ud800\\x9b é 漢字"
