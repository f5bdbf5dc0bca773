"""The two services of docs/howto/sagas.md, for tests: their code is the page's."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from types import ModuleType

from tests.docs.pages import page

_numbers = itertools.count()


def saga_modules(directory: Path | None = None) -> tuple[ModuleType, ModuleType]:
    """Modules `orders` and `payments`, made anew; with a directory, their files too, for other processes."""
    code: dict[str, str] = {}
    for block in page("docs/howto/sagas.md").blocks():
        if block.file in ("orders.py", "payments.py"):
            code[block.file] = block.text
            if directory is not None:
                (directory / block.file).write_text(block.text)
    orders, payments = (_module(name, text) for name, text in sorted(code.items()))
    return orders, payments


def _module(name: str, text: str) -> ModuleType:
    # The eventsourcing library wants each class it meets to be the only one of its name.
    module = ModuleType(f"saga_{name.removesuffix('.py')}_{next(_numbers)}")
    sys.modules[module.__name__] = module
    exec(compile(text, name, "exec"), module.__dict__)
    return module
