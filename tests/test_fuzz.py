"""Hostile answers, a few thousand of them. `make fuzz` sends a million."""

from __future__ import annotations

import pytest
from fuzzing import SLOWEST_SECONDS, WAYS, connections, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10**6))
def test_whatever_is_answered_is_read_or_ends_in_a_typed_error(way, seed):
    answers = 20 if way is connections else 150
    tally, _, slowest = run(way, answers, seed)
    assert sum(tally.values()) >= answers
    assert slowest < SLOWEST_SECONDS
