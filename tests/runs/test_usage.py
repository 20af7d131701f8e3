"""What runs have used, added up, and how the runs of a period are read."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_time import keep_time

from airflow_provider_agents.api.errors import InvalidArgumentError
from airflow_provider_agents.api.flow import Response
from airflow_provider_agents.api.models import Page, read_event
from airflow_provider_agents.runs.listing import runs_since
from airflow_provider_agents.runs.usage import Usage, add_up, add_up_by, runs_between

T0 = datetime(2026, 1, 1, 9, tzinfo=UTC)


def row(name, age=0.0, *, status="COMPLETED", took=60.0, **fields):
    """An event that was created `age` seconds before T0."""
    created = T0 - timedelta(seconds=age)
    times = {"createdAt": created, "startedAt": created, "updatedAt": created}
    if took is not None:
        times["completedAt"] = created + timedelta(seconds=took)
    return read_event({"id": name, "status": status, **{k: v.isoformat() for k, v in times.items()}, **fields})


def answered(steps, *pages):
    """What a flow returns whose requests get these pages, and the requests."""
    asked = []
    try:
        asked.append(next(steps))
        for number, (events, token, server_time) in enumerate(pages):
            page = Page(data=tuple(events), nextToken=token)
            asked.append(steps.send(Response(page, server_time)))
            assert number < len(pages) - 1, f"one more page is asked for: {asked[-1]}"
    except StopIteration as end:
        return end.value, asked
    raise AssertionError("the flow has not ended")


def test_each_run_is_of_one_kind_and_its_numbers_are_added_up():
    events = [
        row("a", browserSessionSeconds=10, browserStepCount=3),
        row("b", status="FAILED", took=120, browserSessionSeconds=2.5, browserStepCount=1),
        row("c", status="CANCELLED", took=30),
        row("d", status="RUNNING", took=None, browserSessionSeconds=4),
        row("e", status="PENDING", took=None),
        row("f", status=None, browserSessionSeconds=1),
    ]
    assert add_up(events) == Usage(
        runs=6, completed=1, failed=2, active=2, unreadable=1,
        browser_seconds=17.5, browser_steps=4, mean_seconds=70.0, longest_seconds=120.0,
    )  # fmt: skip


def test_no_runs_have_used_nothing():
    assert add_up([]) == Usage()
    assert json.loads(json.dumps(Usage().to_json()))["mean_seconds"] is None


def test_a_negative_number_of_the_platform_gives_nothing_back():
    used = add_up([row("a", took=-5, browserSessionSeconds=-100, browserStepCount=-1), row("b", browserStepCount=1)])
    assert (used.browser_seconds, used.browser_steps, used.mean_seconds) == (0.0, 1, 30.0)


def test_groups_are_in_order_and_a_missing_name_is_empty():
    events = [
        row("a", 0, agentId="x", finalModel="m2"),
        row("b", 86400, agentId="y", finalModel="m1"),
        row("c", 86400, agentId="x"),
    ]
    assert {name: used.runs for name, used in add_up_by(events, "agent").items()} == {"x": 2, "y": 1}
    assert list(add_up_by(events, "day")) == ["2026-01-01", "2025-12-31"]
    assert list(add_up_by(events, "model")) == ["", "m1", "m2"]


NUMBERS = st.none() | st.integers(-10, 10**6) | st.floats(-10, 10**6, allow_nan=False)
ROWS = st.builds(
    row,
    st.uuids().map(str),
    st.floats(0, 10**6),
    status=st.sampled_from(["COMPLETED", "FAILED", "RUNNING", "PENDING", "NEW", None]),
    took=st.none() | st.floats(-5, 10**5),
    agentId=st.sampled_from(["x", "y", None]),
    finalModel=st.sampled_from(["m", None]),
    browserSessionSeconds=NUMBERS,
    browserStepCount=NUMBERS,
)


@given(st.lists(ROWS, max_size=20), st.sampled_from(["agent", "day", "model"]), st.randoms())
def test_groups_add_up_to_the_total_in_any_order(events, by, random):
    total = add_up(events)
    assert total.runs == len(events) == total.completed + total.failed + total.active + total.unreadable
    groups = add_up_by(events, by).values()
    for name in ("runs", "completed", "failed", "active", "unreadable", "browser_seconds", "browser_steps"):
        assert sum(getattr(used, name) for used in groups) == pytest.approx(getattr(total, name))
    longest = [used.longest_seconds for used in groups if used.longest_seconds is not None]
    assert total.longest_seconds == max(longest, default=None)
    random.shuffle(events)
    assert add_up(events) == total


# --- which runs ------------------------------------------------------------------------------------------------------


def test_the_runs_of_a_period_are_read_newest_first_and_no_further():
    queued = row("q", 5, status="PENDING", took=None)
    rows, asked = answered(
        runs_between("a", T0 - timedelta(hours=1), T0 - timedelta(seconds=2)),
        ([queued], None, T0),
        ([row("new", 1), row("mine", 1800), row("old", 3700)], "more", T0),
    )
    assert [event.id for event in rows] == ["q", "mine"]
    assert [dict(call.params).get("status") for call in asked] == ["PENDING", None]
    assert {call.path for call in asked} == {"/v1/agents/a/events"}


def test_without_an_agent_the_accounts_runs_are_read():
    _, asked = answered(runs_between(None, T0), ([], None, T0), ([], None, T0))
    assert {call.path for call in asked} == {"/v1/events"}


def test_a_period_goes_by_the_servers_clock_where_it_is_known():
    keep_time(lambda: T0)
    an_hour, ahead = timedelta(hours=1), T0 + timedelta(minutes=10)
    for server_time, begin in ((ahead, ahead - an_hour), (None, T0 - an_hour)):
        read, _ = answered(
            runs_since("a", lambda at: at - an_hour),
            ([], None, server_time),
            ([row("a", 3000)], None, server_time),
        )
        assert read.since == begin
        assert len(read.events) == (begin <= T0 - timedelta(seconds=3000))


def test_a_read_that_is_cut_says_so_unless_it_had_all():
    events = [row("a", 10), row("b", 20)]
    pages = [([], None, T0), (events, "2", T0), ([row("c", 30)], "3", T0)]
    read, _ = answered(runs_since("a", lambda at: at - timedelta(hours=1), max_pages=3), *pages)
    assert (len(read.events), read.is_complete) == (3, False)
    read, _ = answered(runs_since("a", lambda at: at - timedelta(seconds=25), max_pages=3), *pages)
    assert (len(read.events), read.is_complete) == (2, True)


@pytest.mark.parametrize(("since", "until"), [(T0.replace(tzinfo=None), None), ("2026-01-01", None), (T0, 5)])
def test_times_without_a_zone_are_refused_before_anything_is_asked(since, until):
    with pytest.raises(InvalidArgumentError, match="must be a datetime with a time zone"):
        next(runs_between("a", since, until))
