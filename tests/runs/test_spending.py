"""Whether a budget leaves room: the arithmetic alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_agents.api.models import read_event
from airflow_provider_agents.budget import Budget
from airflow_provider_agents.runs.listing import RunsSince
from airflow_provider_agents.runs.matching import is_young
from airflow_provider_agents.runs.spending import find_excess

T0 = datetime(2026, 1, 1, 9, tzinfo=UTC)
HOUR = timedelta(hours=1)


def event(name, age, status="COMPLETED", seconds=0):
    """A run that was created `age` seconds before T0."""
    created = None if age is None else (T0 - timedelta(seconds=age)).isoformat()
    ended = created if status in ("COMPLETED", "FAILED") else None
    return read_event(
        {"id": name, "status": status, "createdAt": created, "completedAt": ended, "browserSessionSeconds": seconds}
    )


def excess(budget, events, *, at=T0, is_complete=True):
    since = budget.begin_at(at, UTC)
    young = tuple(one for one in events if is_young(one, since))
    return find_excess(budget, RunsSince(young, since, at, is_complete), UTC)


RUNS = [event("a", 60, seconds=10), event("b", 600, "FAILED", 20), event("c", 1200, "RUNNING", 5), event("d", 2400)]


@pytest.mark.parametrize(
    ("limits", "reason", "leaves"),
    [
        ({"runs": 4}, "4 of 4 runs", 2400),
        ({"runs": 2}, "4 of 2 runs", 600),
        ({"browser_seconds": 35}, "35 of 35 browser seconds", 1200),
        ({"browser_seconds": 29.5}, "35 of 29.5 browser seconds", 600),
    ],
)
def test_a_limit_that_is_reached_names_what_was_used_and_when_there_is_room(limits, reason, leaves):
    found = excess(Budget(per=HOUR, **limits), RUNS)
    assert found.reasons == (reason,)
    assert found.room_at == T0 - timedelta(seconds=leaves) + HOUR


def test_below_its_limits_a_budget_has_room():
    assert excess(Budget(runs=5, browser_seconds=35.5, failures=1, per=HOUR), RUNS) is None
    assert excess(Budget(runs=1, failures=1), []) is None


def test_failures_count_in_a_row_newest_first_without_active_runs():
    runs = [event("a", 1, "PENDING"), event("b", 2, "FAILED"), event("c", 3, None), event("d", 4, "FAILED")]
    found = excess(Budget(failures=2, per=HOUR), [*runs, event("e", 5, "FAILED")])
    assert found.reasons == ("3 of 2 failed runs in a row",)
    assert found.room_at == T0 - timedelta(seconds=4) + HOUR
    assert excess(Budget(failures=2, per=HOUR), [event("x", 0), *runs]) is None


def test_several_limits_are_all_named_and_the_last_to_give_room_decides():
    found = excess(Budget(runs=1, browser_seconds=35, per=HOUR), RUNS)
    assert found.reasons == ("4 of 1 runs", "35 of 35 browser seconds")
    assert found.room_at == T0 - timedelta(seconds=60) + HOUR


def test_a_calendar_period_gives_room_at_its_end():
    assert excess(Budget(runs=1), RUNS).room_at == datetime(2026, 1, 2, tzinfo=UTC)
    assert excess(Budget(runs=1, per="hour"), RUNS, at=T0 - timedelta(seconds=1)).room_at == T0


def test_a_run_without_a_time_counts_and_nobody_knows_when_it_leaves():
    found = excess(Budget(runs=1, per=HOUR), [event("a", None, "RUNNING")])
    assert (found.reasons, found.room_at) == (("1 of 1 runs",), None)


def test_a_period_that_was_not_read_to_its_begin_leaves_no_room():
    found = excess(Budget(runs=9, per=HOUR), RUNS, is_complete=False)
    assert found.reasons == ("not known, because the period has more than 25 pages of runs",)
    assert found.room_at is None
    assert excess(Budget(runs=3, per=HOUR), RUNS, is_complete=False).reasons == ("at least 4 of 3 runs",)


@given(
    ages=st.lists(st.tuples(st.integers(0, 5000), st.sampled_from(["COMPLETED", "FAILED", "RUNNING"]),
                            st.integers(0, 50)), max_size=15),
    runs=st.none() | st.integers(1, 8),
    browser_seconds=st.none() | st.integers(1, 200),
    failures=st.integers(1, 4),
)  # fmt: skip
def test_there_is_room_again_at_the_moment_named_and_not_before(ages, runs, browser_seconds, failures):
    budget = Budget(runs=runs, browser_seconds=browser_seconds, failures=failures, per=HOUR)
    events = [event(str(n), age, status, used) for n, (age, status, used) in enumerate(sorted(ages))]
    young = [one for one in events if is_young(one, T0 - HOUR)]
    found = excess(budget, events)
    streak = [one.status for one in young if one.status != "RUNNING"]
    is_over = (
        (runs is not None and len(young) >= runs)
        or (browser_seconds is not None and sum(one.browserSessionSeconds for one in young) >= browser_seconds)
        or [*streak, "COMPLETED"].index("COMPLETED") >= failures
    )
    assert (found is not None) == is_over
    if found is not None:
        assert found.room_at >= T0
        assert excess(budget, events, at=found.room_at) is not None
        assert excess(budget, events, at=found.room_at + timedelta(seconds=1)) is None
