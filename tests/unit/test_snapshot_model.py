"""The rules of snapshots and of checkpoints, explored exhaustively over small histories (see tests/model)."""

from __future__ import annotations

import pytest

from tests.model.cases import BROKEN, SMALL
from tests.model.daemon import Rules
from tests.model.explorer import explore


@pytest.mark.parametrize("name", SMALL)
def test_no_history_diverges(name: str) -> None:
    """With the rules as they are, what is loaded is at every commit a state that the source had, and all is equal in
    the end."""
    outcome = explore(SMALL[name].tell(Rules()))
    assert not outcome.violation, f"\n{outcome}"
    assert outcome.whole and outcome.histories > 5


@pytest.mark.parametrize("name", BROKEN)
def test_each_rule_is_needed(name: str) -> None:
    """With one rule broken the same exploration finds a history that shows it: the check can fail."""
    rules, case, violation = BROKEN[name]
    outcome = explore(case.tell(rules), shortest=True)
    assert violation in outcome.violation, f"\n{outcome}"
    assert not explore(case.tell(Rules()), 300).violation, "it is the rule that makes the difference"
