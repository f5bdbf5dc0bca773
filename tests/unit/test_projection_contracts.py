"""Contracts, events and the registration of handlers."""

from __future__ import annotations

import copy
import enum
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import ValidationError

from evsync.codec.values import pack, unpack
from evsync.control import CHECKPOINTS_EVENT, RESTORED_EVENT, SLOT_CLOSED, SLOT_OPENED
from evsync.errors import ConfigurationError
from evsync.projections import Contract, Event, MemoryModel, Projection, Reaction, SqlModel
from evsync.projections.contracts import explain
from evsync.records import Position, StoredEvent
from evsync.tags import current_tags, metadata


class Registered(Contract, type="users.User.Registered"):
    """A user as this test needs it."""

    name: str


def view(**options: Any) -> Projection[dict[str, Any]]:
    """A projection into a dict."""
    return Projection("view", model=MemoryModel[dict[str, Any]](dict), **options)


def stored(**changes: Any) -> StoredEvent:
    """A stored event with these fields changed."""
    return StoredEvent(
        7, "u1", 2, 3, "users.User.Registered", 1_700_000_000_000_001, uuid4().bytes, 0, "abc", b"", '{"actor":"ada"}'
    )._replace(**changes)


class TestContract:
    """What a consumer declares."""

    @pytest.mark.parametrize(
        "pattern",
        ["users", "*", "users.User", "users.User.Registered.x", "Users.User.X", "users.**", "users.User.", "u.U.R\n"],
    )
    def test_a_malformed_type_is_refused_when_the_class_is_made(self, pattern: str) -> None:
        """The error names the class, the text, and the forms that are right."""
        with pytest.raises(TypeError, match=r"(?s)the type of class Wrong, is not an event type.*service\.\*"):

            class Wrong(Contract, type=pattern):
                pass

    def test_a_missing_type_is_refused_and_the_error_shows_what_to_write(self) -> None:
        """A contract without a type could never be met."""
        with pytest.raises(TypeError, match=r'write class Typeless\(…, type="users.User.Registered"\)'):

            class Typeless(Contract):  # type: ignore[call-arg]
                name: str

    def test_unknown_fields_are_ignored_and_instances_are_frozen(self) -> None:
        """The producer may add fields; a handler cannot change an event under another's eyes."""
        found = Registered.model_validate({"name": "Ada", "email": "ada@example.org"})
        assert found == Registered(name="Ada")
        with pytest.raises(ValidationError):
            found.name = "Bob"  # type: ignore[misc]

    def test_a_field_that_an_event_lacks_takes_the_contracts_default(self) -> None:
        """Old events go on being read; what has no default and is not there is named."""

        class Later(Contract, type="users.User.Registered"):
            name: str
            email: str | None = None

        assert Later.model_validate({"name": "Ada"}) == Later(name="Ada", email=None)
        with pytest.raises(ValidationError) as caught:
            Later.model_validate({"email": "ada@example.org"})
        assert explain(caught.value) == "name: Field required (got {'email': 'ada@example.org'})"

    def test_what_the_codec_writes_is_what_a_contract_reads(self) -> None:
        """Containers, enums and extension types survive the way from a producer's annotation to a consumer's."""

        class Colour(enum.Enum):
            RED = "red"

        class Painted(Contract, type="art.Picture.Painted"):
            sizes: tuple[int, ...]
            tags: set[str]
            colour: Colour
            price: Decimal
            at: datetime
            by: UUID
            type: str

        at, by = datetime.now(UTC), uuid4()
        data = {"sizes": [1, 2], "tags": {"a", "b"}, "colour": "red", "price": Decimal("1.10"), "at": at, "by": by}
        found = Painted.model_validate(unpack(pack({**data, "type": "oil"})))
        assert (found.sizes, found.tags, found.colour, found.price) == ((1, 2), {"a", "b"}, Colour.RED, Decimal("1.10"))
        assert (found.at, found.by, found.type) == (at, by, "oil")

    def test_a_uuid_does_not_silently_become_text(self) -> None:
        """Nothing is coerced beyond pydantic's own rules, and the message says which field, why, and the value."""
        with pytest.raises(ValidationError) as caught:
            Registered.model_validate({"name": UUID(int=1)})
        assert explain(caught.value) == (
            "name: Input should be a valid string (got UUID('00000000-0000-0000-0000-000000000001'))"
        )

    def test_a_catch_all_contract_may_keep_whatever_an_event_holds(self) -> None:
        """`extra="allow"` is pydantic's own setting and works as everywhere."""

        class Anything(Contract, type="users.*", extra="allow"):
            pass

        assert Anything.model_validate({"name": "Ada", "n": 1}).model_extra == {"name": "Ada", "n": 1}


class TestEvent:
    """What a handler is given."""

    def test_an_event_of_a_log_and_one_made_by_hand_are_equal(self) -> None:
        """Handlers can be tested with events made by their public attributes."""
        record = stored()
        of_log = Event.of(record, Registered(name="Ada"), "users.main")
        by_hand = Event(
            type="users.User.Registered",
            data=Registered(name="Ada"),
            stream_id="u1",
            version=2,
            position=Position("users.main", "abc", 7),
            id=UUID(bytes=record.id),
            time=datetime(2023, 11, 14, 22, 13, 20, 1, UTC),
            metadata={"actor": "ada"},
        )
        assert by_hand == of_log
        assert hash(by_hand) == hash(of_log)
        assert repr(by_hand) == repr(of_log)
        assert "stream_id='u1', version=2" in repr(of_log)
        assert copy.copy(of_log) == of_log
        assert of_log != Event.of(stored(version=3), Registered(name="Ada"), "users.main")
        assert of_log != "u1"

    def test_an_event_cannot_be_changed(self) -> None:
        """It is a fact, and other handlers are given the same one."""
        event = Event.of(stored(), Registered(name="Ada"), "users.main")
        for name in ("type", "data", "stream_id", "version", "position", "id", "time", "metadata", "more"):
            with pytest.raises(AttributeError):
                setattr(event, name, None)

    def test_a_time_without_zone_is_refused(self) -> None:
        """It would mean another moment on another machine."""
        with pytest.raises(ValueError, match="must have a time zone"):
            Event("a.B.C", None, "s", 1, Position("a.main", "i", 1), uuid4(), datetime(2026, 1, 1))


class TestHandlers:
    """Registration with on()."""

    def test_the_decorated_function_stays_itself(self) -> None:
        """So that it can be called in a test."""

        def handler(e: Event[Registered], state: dict[str, Any]) -> None:
            state[e.stream_id] = e.data.name

        assert view().on(Registered)(handler) is handler

    def test_sources_are_the_services_of_the_contracts_in_order_of_appearance(self) -> None:
        """They need not be named a second time."""

        class Placed(Contract, type="orders.*"):
            pass

        class Renamed(Contract, type="users.User.Renamed"):
            pass

        found = view()
        for contract in (Placed, Registered, Renamed):
            found.on(contract)(lambda e, state: None)
        assert found.sources == ("orders", "users")

    def test_exact_and_catch_all_handlers_of_one_event_run_in_order_of_registration(self) -> None:
        """Each with the data as its own contract reads it."""

        class OfUsers(Contract, type="users.*"):
            pass

        class OfUser(Contract, type="users.User.*"):
            pass

        class OfUserland(Contract, type="users.Userland.*"):
            pass

        found = view()
        handlers = {c: (lambda e, state: None) for c in (OfUser, Registered, OfUserland, OfUsers)}
        for contract, handler in handlers.items():
            found.on(contract)(handler)
        steps = found.handlers.steps("users.User.Registered")
        assert [s.decode({"name": "Ada"}) for s in steps] == [OfUser(), Registered(name="Ada"), OfUsers()]
        assert [s.handle for s in steps] == [handlers[OfUser], handlers[Registered], handlers[OfUsers]]
        assert len(found.handlers.steps("users.Userland.Made")) == 2
        assert found.handlers.steps("usersuser.User.Registered") == ()

    def test_no_handler_catches_events_of_evsyncs_own(self) -> None:
        """A contract for a whole service catches every event of its aggregates, and none of slots and restores."""

        class Anything(Contract, type="users.*"):
            pass

        projection = view()
        projection.on(Anything)(lambda e, state: None)
        assert len(projection.handlers.steps("users.User.Registered")) == 1
        for control in (SLOT_CLOSED, SLOT_OPENED, RESTORED_EVENT, CHECKPOINTS_EVENT):
            assert projection.handlers.steps(f"users.{control}") == ()

    def test_a_second_handler_of_the_same_type_is_refused(self) -> None:
        """Whether by the same contract or by another one of that type."""

        class Same(Contract, type="users.User.Registered"):
            pass

        found = view()

        @found.on(Registered)
        def first(e: Event[Registered], state: dict[str, Any]) -> None: ...

        for contract in (Registered, Same):
            with pytest.raises(ConfigurationError, match=r"already has a handler for users.User.Registered \(.*first"):
                found.on(contract)(lambda e, state: None)

    def test_handlers_that_could_not_be_called_are_refused(self) -> None:
        """At decoration, not at the first event."""
        found, reaction = view(), Reaction("r", since="now")

        async def asynchronous(e: Any, state: Any) -> None: ...

        class Asynchronous:
            async def __call__(self, e: Any, state: Any) -> None: ...

        def generator(e: Any, state: Any) -> Any:
            yield

        refused: Any
        for refused, says in (
            (asynchronous, "is async, and a projection's handlers are plain functions"),
            (Asynchronous(), "is async"),
            (generator, "is a generator"),
            (lambda e: None, "is called with two arguments, the event and the model"),
            (lambda e, s, *, more: None, "missing a required"),
            (None, "is not a function"),
        ):
            with pytest.raises(ConfigurationError, match=says):
                found.on(Registered)(refused)
        refused = lambda e, s: None  # noqa: E731
        with pytest.raises(ConfigurationError, match="must be async"):
            reaction.on(Registered)(refused)
        for not_a_contract in (Contract, dict, "users.User.Registered", None):
            refused = not_a_contract
            with pytest.raises(ConfigurationError, match="is not a contract"):
                found.on(refused)
            with pytest.raises(ConfigurationError, match="is not a contract"):
                reaction.on(refused)
        refused = lambda e, s: None  # noqa: E731
        with pytest.raises(ConfigurationError, match=r"as in @view.on\(UserRegistered\)"):
            found.on(refused)  # the decorator without its argument
        assert found.sources == ()

    def test_settings_that_make_no_sense_are_refused(self) -> None:
        """When the projection or reaction is made; what a reaction cannot do is not pretended."""
        assert view(then="park").then == "park"
        with pytest.raises(ConfigurationError, match="parking is not available for reactions in this version"):
            Reaction("r", since="now", then="park")
        with pytest.raises(ConfigurationError, match="then='stop' is not known"):
            view(then="stop")
        for options in ({"groups": 0}, {"groups": 257}, {"version": 0}, {"retries": -1}, {"retries": True}):
            with pytest.raises(ConfigurationError, match="a whole number from"):
                view(**options)
        wrong: Any = dict
        with pytest.raises(ConfigurationError, match="takes SqlModel"):
            Projection("view", model=wrong)
        with pytest.raises(ConfigurationError, match=r"takes the sqlalchemy\.MetaData"):
            SqlModel(wrong)
        with pytest.raises(ConfigurationError, match="takes a function that makes an empty state"):
            MemoryModel(wrong())
        with pytest.raises(ConfigurationError, match="cannot be the name of a projection"):
            Projection("My View", model=MemoryModel(dict))
        with pytest.raises(ConfigurationError, match="has no time zone"):
            Reaction("r", since=datetime(2026, 1, 1))
        wrong = "yesterday"
        with pytest.raises(ConfigurationError, match="takes 'beginning', 'now' or a datetime"):
            Reaction("r", since=wrong)


def test_tags_nest_and_end_with_their_block() -> None:
    """The inner value wins inside; outside everything is as before."""
    assert current_tags() == {}
    with metadata(actor="ada", tenant="x"):
        with metadata(actor="bob"):
            assert current_tags() == {"actor": "bob", "tenant": "x"}
        assert current_tags() == {"actor": "ada", "tenant": "x"}
    assert current_tags() == {}
    number: Any = 3
    with pytest.raises(TypeError, match="the tag 'n' must be text"), metadata(n=number):
        pass
    with pytest.raises(ValueError, match="the tag 'schema' says which upcasters"), metadata(schema="2"):
        pass
