"""What is exported: JSON Schema, AsyncAPI, and Python that a type checker has nothing to say about."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import pytest
from jsonschema import Draft7Validator
from pydantic import BaseModel, ConfigDict, Field, computed_field

from evsync.codec.events import EventCodec
from evsync.codec.values import unpack
from evsync.contracts.asyncapi import address_of, asyncapi_of
from evsync.contracts.document import document_of, write
from evsync.contracts.python import python_of
from evsync.domain import Aggregate, event
from evsync.errors import ConfigurationError
from evsync.jetstream.messages import MessageFormat
from tests.aggregates import Account, Basket, Card, Colour, Level, Point, Savings
from tests.exported import contracts_from, document_with
from tests.stored import as_stored

ROOT = Path(__file__).parents[2]
CODEC = EventCodec("bank", [Account, Savings, Basket, Point])


class Weight(float, Enum):
    """What no Literal can hold."""

    LIGHT = 0.5


class Place(BaseModel):
    """Has a default that is an object, an alias, and something computed."""

    model_config = ConfigDict(populate_by_name=True, frozen=True)
    city: str = Field(default="Kyiv", alias="town")

    @computed_field
    def loud(self) -> str:
        """Not written."""
        return self.city.upper()


@dataclass
class Tree:
    """Holds itself."""

    json: str
    branches: list[Tree]
    place: Place = field(default_factory=Place)


STRANGE: dict[str, Any] = {
    "id": UUID, "type": str, "json": int, "date": date, "int": int, "copy": str, "_private": str, "model_config": str,
    "str": dict[int, list[str]], "Decimal": Decimal | None, "tree": Tree, "weight": Weight, "BaseModel": Any,
    "place": Place, "moment": datetime, "at": time, "span": timedelta, "raw": bytes, "tags": frozenset[str],
    "pair": tuple[int, str], "mode": Literal["a", "b"], "either": int | UUID, "map": dict[str, Decimal], "ratio": float,
}  # fmt: skip
DEFAULTS: dict[str, Any] = {
    "id": UUID(int=7), "date": date(2026, 1, 31), "Decimal": Decimal("9.50"), "str": None, "place": Place(city="Lviv"),
    "moment": datetime(2026, 1, 2, tzinfo=UTC), "at": time(12, 30), "span": timedelta(days=-1, microseconds=5),
    "raw": b"\xff\0", "tags": frozenset({"b", "a"}), "pair": (1, 'with "quotes"'), "mode": "b", "either": 3,
    "ratio": float("inf"), "weight": Weight.LIGHT,
}  # fmt: skip
del DEFAULTS["str"]


def test_generated_contracts_pass_a_strict_type_checker(tmp_path: Path) -> None:
    """Whatever fields are called like, and whatever types and defaults they have."""
    (tmp_path / "bank_contracts.py").write_text(python_of(document_of(CODEC)))
    (tmp_path / "art_contracts.py").write_text(python_of(document_with(STRANGE, DEFAULTS)))
    files = ["bank_contracts.py", "art_contracts.py"]
    checks = [
        ["mypy", "--strict", "--config-file=", f"--cache-dir={ROOT}/.mypy_cache"],
        ["ruff", "check", "--isolated", "--no-cache", "--select", "F,I,UP,B,A001"],
    ]
    for check in checks:
        done = subprocess.run(
            [sys.executable, "-m", *check, *files], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


def test_generated_defaults_are_the_producers() -> None:
    """Of every type; a field whose default is not known is None where it is missing."""
    with contracts_from(document_with(STRANGE, DEFAULTS)) as module:
        given = {
            "type": "x",
            "json": 1,
            "int": 2,
            "copy": "c",
            "_private": "p",
            "model_config": "m",
            "str": {1: ["a"]},
        }
        tree = {"json": "t", "branches": [{"json": "u", "branches": []}]}
        made = module.PictureMade.model_validate({**given, "tree": tree, "BaseModel": None, "map": {}})
        assert (made.id, made.date, made.pair, made.mode) == tuple(DEFAULTS[n] for n in ("id", "date", "pair", "mode"))
        assert (made.moment, made.at, made.span) == tuple(DEFAULTS[n] for n in ("moment", "at", "span"))
        assert (made.raw, made.tags, made.either) == (b"\xff\0", {"a", "b"}, 3)
        assert (made.Decimal_, made.weight, made.ratio) == (Decimal("9.50"), 0.5, float("inf"))
        assert (made.place.city, made.tree.branches[0].place) == ("Lviv", None)
        assert (made.json_, made.int_, made.copy_, made.private, made.its_model_config) == (1, 2, "c", "p", "m")
        assert not hasattr(made.place, "loud")


@pytest.mark.parametrize(
    "text", ['a"b', "a'b", "\"'", '"""', "\\", "\n", "\u2028", "s\U0002bae5m", "UUID", 'x" UUID("']
)
def test_any_text_may_be_a_default_or_a_value(text: str) -> None:
    """Quotes in it do not end it, and what looks like a name in it is imported by nobody."""
    fields = {"json": str, "mode": Literal[text], "key": UUID}  # type: ignore[valid-type]
    with contracts_from(document_with(fields, {"json": text, "mode": text})) as module:
        made = module.PictureMade.model_validate({"key": UUID(int=1)})
        assert (made.json_, made.mode, made.key) == (text, text, UUID(int=1))


def test_the_same_contracts_are_the_same_text_in_every_process() -> None:
    """So that a repository shows nothing but changes."""
    code = (
        "from tests.unit.test_contract_exports import *; d = document_of(CODEC), document_with(STRANGE, DEFAULTS);"
        "print(*map(write, [*d, *map(asyncapi_of, d)]), *map(python_of, d))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(texts) == 1
    assert max(map(len, texts)) > 10_000


def described() -> Account:
    """An account with an event that has a value of every type."""
    account = Account(owner="Ada", balance=1)
    account.describe(
        text="müller", amount=Decimal("1.10"), on=date(2026, 1, 31), at=time(12), moment=datetime.now(UTC),
        span=timedelta(1), key=UUID(int=1), raw=b"\0", ratio=0.5, flag=None, colour=Colour.RED, level=Level.HIGH,
        address=None, card=Card(number="1", limit=Decimal(2), owner=UUID(int=2)), pair=(1, Colour.BLUE),
        colours={Colour.RED}, frozen=frozenset({"x"}), addresses={}, anything=[1, "a"],
    )  # fmt: skip
    return account


def test_the_asyncapi_document_is_true_of_real_messages() -> None:
    """Subjects match the channel's address, headers their schema, and the data its payload."""
    from evsync.codec.json_form import in_json

    document = asyncapi_of(document_of(CODEC))
    messages = MessageFormat("bank.main")
    basket = Basket("müller.7", owner="ada")
    for aggregate in (described(), basket):
        for stored in as_stored(CODEC, aggregate):
            subject, lines, body = messages.encode(stored._replace(meta='{"correlation_id":"order 7"}'))
            headers = dict(line.split(": ", 1) for line in lines.decode().splitlines())
            channel = document["channels"][stored.type]
            address = re.sub(r"\\{\w+\\}", r"([^.]+)", re.escape(channel["address"]))
            found = re.fullmatch(address, subject)
            assert found
            assert len(found.groups()) == len(channel["parameters"]) == 3
            message = document["components"]["messages"][stored.type]
            Draft7Validator(message["headers"]).validate(headers)
            wrong = Draft7Validator(message["headers"]).iter_errors({**headers, "ce-type": "bank.Account.Other"})
            assert [list(e.path) for e in wrong] == [["ce-type"]]
            payload = Draft7Validator({**message["payload"], "components": document["components"]})
            payload.validate(in_json(unpack(body)))
            assert not payload.is_valid([])
    assert address_of("shop", "shop.Größe.Set") == "evsync.shop.{shard}.{slot}.Gr%C3%B6%C3%9Fe.Set.{stream}"


def test_the_version_of_the_asyncapi_document_changes_with_the_contracts_alone() -> None:
    """It is a hash of them."""
    versions = [asyncapi_of(document_with({"a": kind}))["info"]["version"] for kind in (int, int, str)]
    assert versions[0] == versions[1] != versions[2]


def test_a_schema_says_how_values_are_on_the_wire() -> None:
    """By the code of the extension type, and the keys that JSON cannot have."""
    fields = {"key": UUID, "price": Decimal, "of": dict[int, date], "tags": set[str], "raw": bytes}
    properties = document_with(fields)["$defs"]["art.Picture.Made"]["properties"]
    assert properties == {
        "key": {"type": "string", "format": "uuid", "x-msgpack-ext": 1},
        "price": {"type": "string", "format": "decimal", "x-msgpack-ext": 2},
        "of": {
            "type": "object",
            "additionalProperties": {"type": "string", "format": "date", "x-msgpack-ext": 4},
            "x-keys": {"type": "integer"},
        },
        "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        "raw": {"type": "string", "contentEncoding": "base64url"},
    }


class Odd(Aggregate):
    """Its default is no value of its field."""

    @event("Set")
    def set(self, colour: Colour = "green") -> None:  # type: ignore[assignment]
        """Take a colour."""


def test_a_default_that_is_no_value_of_its_field_is_refused() -> None:
    """With the field's name."""
    with pytest.raises(ConfigurationError, match=r"the default of field 'colour' of shop\.Odd\.Set could not be"):
        document_of(EventCodec("shop", [Odd]))


def test_the_schema_version_is_that_of_the_upcasters() -> None:
    """What new events carry in their tag `schema`."""
    codec = EventCodec(
        "bank", [Basket], upcasters={"bank.Basket.Added": [dict, dict]}, renamed={"bank.Cart": "bank.Basket"}
    )
    document = json.loads(write(document_of(codec)))
    assert document["$defs"]["bank.Basket.Added"]["x-event"] == {"type": "bank.Basket.Added", "schema": 3}
    assert document["x-evsync"]["renamed"] == {"bank.Cart": "bank.Basket"}
    assert asyncapi_of(document)["components"]["messages"]["bank.Basket.Added"]["x-schema-version"] == 3
