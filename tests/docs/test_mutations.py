"""The table of mutations is true of the code, and the page about the tests shows it."""

from __future__ import annotations

import ast
from functools import cache

import pytest

from tests.docs.pages import ROOT, page
from tests.mutation_table import MUTATIONS, Mutation
from tests.mutations import table

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_CONTRACTS = [p.relative_to(ROOT).as_posix() for p in (ROOT / "evsync/testing/contracts").glob("*.py")]


@cache
def _tests(path: str) -> dict[str, list[str]]:
    """The functions of a file, and its classes with what is defined in each."""
    body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    return {
        of.name: [inner.name for inner in of.body if isinstance(inner, _FUNCTIONS)]
        for of in body
        if isinstance(of, (*_FUNCTIONS, ast.ClassDef))
    }


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.file}: {m.change}")
def test_what_a_mutation_changes_stands_in_its_file_once(mutation: Mutation) -> None:
    """So that it can be made, and changes what it says."""
    text = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert mutation.applied_to(text) != text


def test_the_tests_of_a_mutation_are_where_it_says() -> None:
    """In that file, or in the contract suite that a class there inherits."""
    for path, *owners, name in (test.split("::") for m in MUTATIONS for test in m.tests):
        known = set(_tests(path)) if not owners else set(_tests(path)[owners[0]])
        if path.startswith("tests/contracts/"):
            known |= {name for place in _CONTRACTS for of in _tests(place).values() for name in of}
        assert name in known, f"{path}: {name}"


def test_no_change_is_listed_twice() -> None:
    """Each one breaks something else."""
    assert len({(m.file, m.old, m.new) for m in MUTATIONS}) == len(MUTATIONS)


def test_the_page_about_the_tests_lists_the_mutations() -> None:
    """As `python -m tests.mutations --table` prints them."""
    section = page("docs/testing.md").section("What was broken")
    assert table() in section + "\n"


def test_every_law_that_was_broken_is_among_the_laws() -> None:
    """With one of the tests that notice it, in the table of the page on the architecture."""
    named = page("docs/architecture.md").code_words
    kept = {m.law for m in MUTATIONS for test in m.tests if test.split("::")[-1].partition("[")[0] in named}
    assert {m.law for m in MUTATIONS} - kept == set()
