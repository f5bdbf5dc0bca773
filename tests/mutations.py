"""Breaks one law at a time in a copy of this checkout, and sees that a test fails: `make mutants`.

    python -m tests.mutations              all of them
    python -m tests.mutations relay batch  those whose law, file or change contains one of the words
    python -m tests.mutations --table      the table in docs/testing.md; breaks nothing

A test that is still running after two minutes has failed: many a broken law shows as something that never comes. Before
anything is broken, the tests must pass in the copy as it is. Ends with 1 if a change survived.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path

from tests.mutation_table import MUTATIONS, Mutation

ROOT = Path(__file__).parents[1]
PATIENCE_S = 120.0
PASSED, FAILED = 0, 1
"""pytest's exit codes. The others say that it could not run what was named: nothing is proved then."""
_LEFT_BEHIND = shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".*_cache", ".hypothesis", ".coverage*", "dist")


class Copy:
    """A copy of the checkout in which tests run and files may be broken."""

    def __init__(self, directory: Path) -> None:
        self._root = directory / "checkout"
        shutil.copytree(ROOT, self._root, ignore=_LEFT_BEHIND)
        # The package of the copy comes before the one that is installed, in processes that tests start too.
        self._environment = os.environ | {"PYTHONPATH": str(self._root)}
        self._changes = count(1)

    def test(self, names: Iterable[str], patience_s: float = PATIENCE_S) -> tuple[int | None, str]:
        """Run tests until one fails: pytest's exit code (None: not done in time), and what it printed."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider"]
        running = subprocess.Popen(
            [*command, *names], cwd=self._root, env=self._environment, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            printed, _ = running.communicate(timeout=patience_s)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            running.communicate()
            return None, ""
        return running.returncode, printed

    @contextlib.contextmanager
    def broken(self, mutation: Mutation) -> Iterator[None]:
        """The copy with one change, inside of the block."""
        path = self._root / mutation.file
        whole = path.read_text(encoding="utf-8")
        self._write(path, mutation.applied_to(whole))
        try:
            yield
        finally:
            self._write(path, whole)

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")
        # Python takes a compiled file for current by second and size: each change gets a second of its own.
        second = next(self._changes)
        os.utime(path, (second, second))


def chosen(words: Sequence[str]) -> list[Mutation]:
    """The mutations that are meant."""
    return [
        m
        for m in MUTATIONS
        if not words or any(w.lower() in f"{m.law} {m.file} {m.change} {m.tests}".lower() for w in words)
    ]


def table() -> str:
    """All of them, as docs/testing.md shows them."""
    lines, last = ["| law | what was broken | where | noticed by |", "| --- | --- | --- | --- |"], ""
    for m in MUTATIONS:
        tests = ", ".join(f"`{name}`" for name in m.test_names)
        lines.append(f"| {m.law if m.law != last else ''} | {m.change} | `{m.file}` | {tests} |")
        last = m.law
    return "\n".join(lines) + "\n"


def main(words: Sequence[str]) -> int:
    """Break, test, report; the exit code."""
    mutations, survivors = chosen(words), 0
    with tempfile.TemporaryDirectory(prefix="evsync-mutants-") as directory:
        copy = Copy(Path(directory))
        named = sorted({test for m in mutations for test in m.tests})
        code, printed = copy.test(named, PATIENCE_S + 5 * len(named))
        if code != PASSED:
            print(f"the tests must pass before anything is broken:\n{printed or 'they did not end'}")
            return 2
        for number, mutation in enumerate(mutations, 1):
            began = time.monotonic()
            with copy.broken(mutation):
                code, printed = copy.test(mutation.tests)
            caught = code in {FAILED, None}
            survivors += not caught
            how = "caught" if code == FAILED else "caught (hangs)" if code is None else "SURVIVED"
            took = time.monotonic() - began
            print(f"{number:3}/{len(mutations)} {how:14} {took:5.1f} s  {mutation.file}: {mutation.change}", flush=True)
            if not caught:
                print(printed if code != PASSED else f"      {', '.join(mutation.tests)}", flush=True)
    print(f"{len(mutations) - survivors} of {len(mutations)} changes were caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--table"]:
        print(table(), end="")
    else:
        sys.exit(main(sys.argv[1:]))
