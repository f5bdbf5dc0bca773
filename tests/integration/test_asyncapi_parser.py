"""The exported AsyncAPI document before its official parser, @asyncapi/parser.

Not part of every run, since it takes npm and a registry: `make asyncapi` runs it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from evsync.contracts.asyncapi import asyncapi_of
from evsync.contracts.document import Document, document_of, events_of
from tests.exported import document_with
from tests.unit.test_contract_exports import CODEC, DEFAULTS, STRANGE

PARSER = "@asyncapi/parser@3.6.6"
INSTALLED = Path(sys.prefix) / PARSER.rpartition("/")[2]
"""Beside what pip has installed: it is kept from run to run, and `make clean` takes it away."""
INSTALL_S, PARSE_S = 240, 60

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("EVSYNC_TEST_NPM") != "1",
        reason="installs @asyncapi/parser from the npm registry: asked for by EVSYNC_TEST_NPM=1 (`make asyncapi`)",
    ),
    pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="there is no node, or no npm"),
]

SCRIPT = """
import { Parser } from '@asyncapi/parser';
import { readFileSync } from 'node:fs';
const { document, diagnostics } = await new Parser().parse(readFileSync(0, 'utf8'));
console.log(JSON.stringify({
  messages: document ? document.allMessages().all().map((m) => m.name()) : null,
  addresses: document ? document.channels().all().map((c) => c.address()) : null,
  sends: document ? document.operations().filterBySend().length : null,
  found: diagnostics.map((d) => [d.severity, d.code, d.path.join('/'), d.message]),
}));
"""


@pytest.fixture(scope="module")
def parser() -> Path:
    """A directory in which node finds the parser."""
    if not (INSTALLED / "node_modules").exists():
        INSTALLED.mkdir(exist_ok=True)
        command = [
            "npm",
            "install",
            "--no-audit",
            "--no-fund",
            "--no-save",
            "--ignore-scripts",
            "--prefix",
            ".",
            PARSER,
        ]
        done = subprocess.run(command, cwd=INSTALLED, capture_output=True, text=True, timeout=INSTALL_S, check=False)
        if done.returncode:
            shutil.rmtree(INSTALLED)
            pytest.skip(f"npm cannot install {PARSER}: {done.stderr[-500:]}")
    (INSTALLED / "parse.mjs").write_text(SCRIPT)
    return INSTALLED


@pytest.mark.parametrize("document", [document_of(CODEC), document_with(STRANGE, DEFAULTS)], ids=["bank", "art"])
def test_the_official_parser_takes_the_asyncapi_document(parser: Path, document: Document) -> None:
    """Without an error or a warning about it; and it finds each event type, as a message that is sent."""
    text = json.dumps(asyncapi_of(document))
    done = subprocess.run(
        ["node", "parse.mjs"], cwd=parser, input=text, capture_output=True, text=True, timeout=PARSE_S, check=True
    )
    said = json.loads(done.stdout)
    # There is a newer version of AsyncAPI than the one that this is for: the parser says so in every case.
    assert [d for d in said["found"] if d[1] != "asyncapi-latest-version"] == []
    types = sorted(events_of(document))
    assert sorted(said["messages"]) == types
    assert said["sends"] == len(types)
    assert all(address.startswith("evsync.") for address in said["addresses"])


def test_the_official_parser_refuses_what_is_not_asyncapi(parser: Path) -> None:
    """So that its approval means something."""
    wrong = asyncapi_of(document_of(CODEC))
    wrong["operations"]["publish.bank.Account.Opened"]["action"] = "shout"
    done = subprocess.run(
        ["node", "parse.mjs"], cwd=parser, input=json.dumps(wrong), capture_output=True, text=True, timeout=PARSE_S,
        check=True,
    )  # fmt: skip
    assert any(severity == 0 for severity, *_ in json.loads(done.stdout)["found"])
