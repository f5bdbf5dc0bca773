"""Pages of the documentation: their code blocks, headings and links.

The word after a fence's language says what a block is:

    ```python users.py         part of a file: blocks of one page that name the same file are joined, in order
    ```python users.py new     the file begins again with this block
    ```python                  a fragment; it must be Python
    ```console                 commands behind `$`, run in order, each followed by what it prints (`…`: any text)
    ```console background      the same for a command that keeps running: these lines must appear among what it prints
    ```console shown           not run by the tests: it installs something, or belongs to a machine that is not here

Blocks in other languages are text, unless they name a file too (```sh env.sh).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^( *)```(.*)$")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_HEADING = re.compile(r"^#{1,6} +(.*?) *#*$")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block."""

    page: str
    line: int
    language: str
    words: tuple[str, ...]
    """What follows the language in the fence."""
    text: str

    @property
    def file(self) -> str | None:
        """The file that it is part of, if it is."""
        return self.words[0] if self.words and "." in self.words[0] else None

    @property
    def begins_anew(self) -> bool:
        """Whether earlier blocks of the same file are forgotten."""
        return "new" in self.words[1:]

    @property
    def where(self) -> str:
        """For messages: page and line."""
        return f"{self.page}:{self.line}"


@dataclass(frozen=True, slots=True)
class Page:
    """One Markdown file."""

    path: Path

    @property
    def name(self) -> str:
        """Its path from the top of the repository."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def text(self) -> str:
        """All of it."""
        return self.path.read_text(encoding="utf-8")

    @property
    def prose(self) -> str:
        """All that stands outside of fenced blocks."""
        return "\n".join(line for _, line in self._lines(fenced=False))

    @property
    def code_words(self) -> set[str]:
        """What stands between single backticks."""
        return set(_CODE.findall(self.prose))

    @property
    def links(self) -> list[str]:
        """Where its links lead, as written."""
        return _LINK.findall(_CODE.sub("", self.prose))

    @property
    def anchors(self) -> set[str]:
        """What a link to a place in it may name: its headings, as GitHub writes them."""
        found = (_HEADING.match(line) for _, line in self._lines(fenced=False))
        return {_anchor(m[1]) for m in found if m}

    def blocks(self) -> list[Block]:
        """Its fenced blocks, in order."""
        blocks: list[Block] = []
        for line, text in self._lines(fenced=True):
            fence = _FENCE.match(text)
            if fence is None:
                last = blocks.pop()
                blocks.append(Block(last.page, last.line, last.language, last.words, last.text + text + "\n"))
            elif fence[2]:
                language, *words = fence[2].split()
                blocks.append(Block(self.name, line, language, tuple(words), ""))
        return blocks

    def section(self, heading: str) -> str:
        """The text under a heading, up to the next one of its rank or a higher one."""
        rank, found = 0, []
        for line in self.text.splitlines():
            match = _HEADING.match(line)
            if rank and match and len(line) - len(line.lstrip("#")) <= rank:
                break
            if rank:
                found.append(line)
            elif match and match[1] == heading:
                rank = len(line) - len(line.lstrip("#"))
        assert rank, f"{self.name} has no section {heading!r}"
        return "\n".join(found)

    def _lines(self, *, fenced: bool) -> Iterator[tuple[int, str]]:
        inside = False
        for number, line in enumerate(self.text.splitlines(), 1):
            if fence := _FENCE.match(line):
                assert inside or fence[2], f"{self.name}:{number}: say which language the block is in"
                inside = not inside
                if fenced:
                    yield number, line
            elif inside == fenced:
                yield number, line


def _anchor(heading: str) -> str:
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", lambda m: m[1] or "", heading)
    return re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")


@cache
def pages() -> list[Page]:
    """The README, the changelog, and everything in docs/."""
    return [Page(p) for p in (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md")))]


def page(name: str) -> Page:
    """The page at a path from the top of the repository."""
    return Page(ROOT / name)
