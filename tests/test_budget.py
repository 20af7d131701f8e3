"""A budget as a value: what it takes, and when its periods begin and end."""

from __future__ import annotations

import copy
import json
import pickle
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pendulum
import pytest
from airflow.sdk import DAG
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_agents.api.errors import InvalidArgumentError
from airflow_provider_agents.budget import Budget
from airflow_provider_agents.operators import CheckAgentBudgetOperator, ExecuteAgentOperator

BERLIN = ZoneInfo("Europe/Berlin")
ZONES = (
    *map(ZoneInfo, ("Europe/Berlin", "America/Havana", "Africa/Cairo", "Australia/Lord_Howe", "Asia/Kolkata", "UTC")),
    *(ZoneInfo("America/Sao_Paulo"), ZoneInfo("Pacific/Apia"), pendulum.timezone("America/New_York")),
    *(pendulum.timezone("UTC"), timezone(timedelta(hours=5, minutes=45))),
)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "A Budget needs a limit. Set runs, browser_seconds or failures."),
        ({"runs": 0}, "runs of a Budget must be a whole number from 1, got 0."),
        ({"runs": True}, "runs of a Budget must be a whole number from 1, got True."),
        ({"failures": 1.5}, "failures of a Budget must be a whole number from 1, got 1.5."),
        ({"browser_seconds": 0}, "browser_seconds of a Budget must be a number of seconds above 0, got 0."),
        ({"browser_seconds": float("nan")}, "browser_seconds of a Budget must be"),
        ({"browser_seconds": "3600"}, "browser_seconds of a Budget must be"),
        ({"runs": 1, "per": "week"}, "per of a Budget must be 'day', 'hour', or a timedelta"),
        ({"runs": 1, "per": 3600}, "per of a Budget must be"),
        ({"runs": 1, "per": timedelta(0)}, "per of a Budget must be"),
        ({"runs": 1, "per": timedelta(days=367)}, "per of a Budget must be"),
        ({"runs": 1, "of": "me"}, "of of a Budget must be 'agent' or 'account', got 'me'."),
        ({"runs": 1, "over": ["fail"]}, "over of a Budget must be 'fail' or 'skip'"),
    ],
)
def test_a_budget_that_cannot_work_is_refused_when_it_is_written(arguments, words):
    with pytest.raises(InvalidArgumentError) as refused:
        Budget(**arguments)
    assert words in str(refused.value)


@pytest.mark.parametrize("value", [{"runs": 3, "per": 90, "over": "skip", "failures": None}])
def test_a_connections_budget_is_json_or_its_text(value):
    wanted = Budget(runs=3, per=timedelta(seconds=90), over="skip")
    assert Budget.from_json(value) == Budget.from_json(json.dumps(value)) == wanted


@pytest.mark.parametrize("value", ["", "{", "[]", 7, None, '{"run": 3}', {"runs": "3"}, {"runs": 1, "per": True}, {}])
def test_json_that_is_no_budget_is_refused(value):
    with pytest.raises(InvalidArgumentError):
        Budget.from_json(value)


@pytest.mark.parametrize("operator", [ExecuteAgentOperator, CheckAgentBudgetOperator])
@pytest.mark.parametrize("budget", [{"runs": 1}, 20, "day", Budget])
def test_an_argument_that_is_no_budget_is_refused_when_the_dag_is_parsed(operator, budget):
    with pytest.raises(InvalidArgumentError, match="budget of task 'run' must be a Budget"):
        operator(task_id="run", agent_id="agent-1", budget=budget)


def test_a_budget_survives_what_airflow_does_with_arguments():
    try:
        from airflow.serialization.serialized_objects import DagSerialization
    except ImportError:  # where it was before Airflow 3.2
        from airflow.serialization.serialized_objects import SerializedDAG as DagSerialization

    budget = Budget(runs=3, per=timedelta(hours=2))
    assert copy.deepcopy(budget) == pickle.loads(pickle.dumps(budget)) == budget  # noqa: S301 - our own
    with DAG("dag", default_args={"budget": budget}, start_date=datetime(2026, 1, 1, tzinfo=UTC), schedule=None) as dag:
        assert ExecuteAgentOperator(task_id="run", agent_id="a").budget is budget
        mapped = ExecuteAgentOperator.partial(task_id="mapped", budget=budget).expand(agent_id=["a", "b"])
    assert mapped.partial_kwargs["budget"] == budget
    written = json.dumps(DagSerialization.to_dict(dag), sort_keys=True)
    assert json.dumps(DagSerialization.to_dict(dag), sort_keys=True) == written
    assert set(DagSerialization.from_dict(json.loads(written)).task_ids) == {"run", "mapped"}


# --- periods ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "begin", "hours"),
    [
        ("2026-01-15T12:00", "2026-01-15T00:00+01:00", 24),
        ("2026-01-14T23:30", "2026-01-15T00:00+01:00", 24),
        ("2026-03-29T12:00", "2026-03-29T00:00+01:00", 23),
        ("2026-10-25T22:30", "2026-10-25T00:00+02:00", 25),
    ],
)
def test_a_day_begins_at_midnight_of_the_zone_and_can_have_23_or_25_hours(at, begin, hours):
    at, budget = datetime.fromisoformat(at).replace(tzinfo=UTC), Budget(runs=1)
    assert budget.begin_at(at, BERLIN) == datetime.fromisoformat(begin)
    assert budget.end_at(at, BERLIN) - budget.begin_at(at, BERLIN) == timedelta(hours=hours)


def test_an_hour_begins_at_the_full_hour_of_the_zone():
    at = datetime(2026, 1, 1, 9, 40, tzinfo=UTC)
    budget = Budget(runs=1, per="hour")
    assert budget.begin_at(at, UTC) == datetime(2026, 1, 1, 9, tzinfo=UTC)
    assert budget.begin_at(at, ZoneInfo("Asia/Kolkata")) == datetime(2026, 1, 1, 9, 30, tzinfo=UTC)


@given(
    at=st.datetimes(datetime(2009, 1, 1), datetime(2030, 1, 1)),  # noqa: DTZ001 - UTC is added
    zone=st.sampled_from(ZONES),
    per=st.sampled_from(["day", "hour"]),
)
def test_each_moment_is_in_one_period_that_meets_the_next(at, zone, per):
    at, budget = at.replace(tzinfo=UTC), Budget(runs=1, per=per)
    begin, end = budget.begin_at(at, zone), budget.end_at(at, zone)
    assert begin <= at < end
    assert begin.tzinfo is UTC
    assert budget.begin_at(begin, zone) == begin
    assert budget.begin_at(end, zone) == end
    assert timedelta(minutes=59) < end - begin < timedelta(hours=25, minutes=1)


def test_a_length_of_time_ends_now_and_moves_on():
    at, budget = datetime(2026, 1, 1, 9, tzinfo=UTC), Budget(runs=1, per=timedelta(hours=2))
    assert budget.begin_at(at, BERLIN) == at - timedelta(hours=2)
    assert budget.end_at(at, BERLIN) is None
