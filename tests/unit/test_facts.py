"""`given` and `facts`: an aggregate's past as a test states it."""

from __future__ import annotations

import pytest

from evsync.errors import ConfigurationError
from evsync.testing import facts, given
from tests.aggregates import Account, Basket


def test_what_has_happened_is_no_fact_to_come() -> None:
    """The aggregate is as if loaded; what is decided then is what `facts` says."""
    account = given(Account, ("Opened", {"owner": "ada", "balance": 1}), ("Deposited", {"amount": 2}))
    assert (account.balance, account.version, facts(account)) == (3, 2, [])
    account.deposit(4)
    assert facts(account) == [("Deposited", {"amount": 4})]
    assert given(Basket, ("Opened", {"owner": "ada"})).id == "given"


@pytest.mark.parametrize(
    ("past", "says"),
    [
        ([], "needs the fact that the aggregate began with"),
        ([("Deposited", {"amount": 2})], "Account cannot begin with 'Deposited'"),
        ([("Opend", {})], r"Account has no event 'Opend'; it has .*Opened"),
    ],
)
def test_a_past_that_cannot_be_is_refused(past: list[tuple[str, dict[str, object]]], says: str) -> None:
    """With what to write instead."""
    with pytest.raises(ConfigurationError, match=says):
        given(Account, *past)
