"""The link from a run to the task that started it."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest
from conftest import AIRFLOW, needs_airflow

from airflow_provider_agents.runs.record import Attempt, Phase, RunRecord
from airflow_provider_agents.runs.submission import Submission

pytestmark = pytest.mark.xdist_group("page")

RUN = {"dag_id": "report", "run_id": "manual__1+00:00"}


def store(model, **columns):
    """Write a row."""
    from airflow.utils.session import create_session
    from sqlalchemy import insert

    with create_session() as session:
        session.execute(insert(model).values(**RUN, **columns))


@pytest.fixture(autouse=True)
def dag_run(metadata_database):
    """A DAG run, of which no task has a row yet; its rows are deleted with it."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import delete

    store(DagRun, id=1, run_type="manual", run_after=datetime.now(UTC))
    yield
    with create_session() as session:
        session.execute(delete(DagRun))


def xcom(event_id, task_id="run_agent", map_index=-1):
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.xcom import XComModel

    index = "map_index" if AIRFLOW < (3, 4) else "region_index"
    store(TaskInstance, task_id=task_id, pool="default_pool", **{index: map_index})
    if AIRFLOW >= (3, 3):
        XComModel.set("event_id", event_id, **RUN, task_id=task_id, map_index=map_index, serialize=False)
    else:
        store(
            XComModel,
            dag_run_id=1,
            task_id=task_id,
            map_index=map_index,
            key="event_id",
            value=event_id,
            timestamp=datetime.now(UTC),
        )


def record(task_id, submission, conn_id="agents_test", phase=Phase.DEFERRED):
    kept = RunRecord(
        phase=phase, agents_conn_id=conn_id, submission=submission, attempt=Attempt(try_number=1, max_tries=1)
    )
    state(task_id, json.dumps(kept.to_json()))


def state(task_id, value):
    from airflow.models.task_state_store import TaskStateStoreModel

    store(
        TaskStateStoreModel,
        dag_run_id=1,
        task_id=task_id,
        key="agent_run",
        value=value,
        updated_at=datetime.now(UTC),
    )


@pytest.fixture
def run(platform):
    """A finished run, and its event's id."""
    platform.add_agent("agent-1")
    platform.add_history("agent-1", 1)
    ((started, _),) = platform.runs()
    return started.event_id


def tasks(page, user="admin"):
    shown = asyncio.run(page.get("/connections/agents_test", user)).json()
    return [run["task"] for run in shown["runs"]]


def test_a_run_leads_to_the_task_whose_xcom_names_it(page, run):
    xcom(run)
    assert tasks(page) == [
        {"name": "report.run_agent", "path": "/dags/report/runs/manual__1%2B00%3A00/tasks/run_agent"}
    ]


def test_a_mapped_task_has_its_index_in_the_link(page, run):
    xcom(run, map_index=2)
    (task,) = tasks(page)
    assert (task["name"], task["path"].endswith("/tasks/run_agent/mapped/2")) == ("report.run_agent [2]", True)


def test_text_that_is_json_inside_json_is_read_too(page, run):
    xcom(json.dumps(run))
    assert tasks(page)[0]["name"] == "report.run_agent"


def test_other_values_under_the_key_are_no_link(page, run):
    for number, value in enumerate(({"a": 1}, 17, None, ["x"], '"broken')):
        xcom(value, task_id=f"task_{number}")
    assert tasks(page) == [None]


def test_with_a_custom_xcom_backend_there_is_no_link(page, run, monkeypatch):
    xcom(run)
    monkeypatch.setenv("AIRFLOW__CORE__XCOM_BACKEND", "shop.xcoms.BucketBackend")
    assert tasks(page) == [None]


def test_a_user_who_may_not_read_the_dag_sees_the_run_without_a_link(monkeypatch, run, request):
    monkeypatch.setenv("AIRFLOW__CORE__AUTH_MANAGER", "strict_auth.StrictAuthManager")
    page = request.getfixturevalue("page")
    xcom(run)
    assert tasks(page, "op") == [None]
    assert tasks(page, "admin")[0]["name"] == "report.run_agent"


@needs_airflow("3.3")
def test_a_deferred_task_is_known_by_its_record(page, run):
    record("waiting", Submission(agent_id="agent-1", event_id=run, taken_at=datetime.now(UTC)))
    assert tasks(page)[0]["name"] == "report.waiting"


@needs_airflow("3.3")
def test_a_record_leads_nowhere_while_the_run_is_not_known_for_certain(page, run):
    just_now = datetime.now(UTC)
    record("waiting", Submission(agent_id="agent-1", request_id="r", taken_at=just_now, sent_at=just_now))
    assert tasks(page) == [None]


@needs_airflow("3.3")
def test_two_records_that_fit_one_run_give_no_link(page, run):
    for task_id in ("one", "two"):
        earlier = datetime.now(UTC) - timedelta(minutes=5)
        record(task_id, Submission(agent_id="agent-1", taken_at=earlier, sent_at=earlier))
    assert tasks(page) == [None]


@needs_airflow("3.3")
def test_a_record_of_another_connection_or_a_damaged_one_is_no_link(page, run):
    record("other", Submission(agent_id="agent-1", event_id=run, taken_at=datetime.now(UTC)), conn_id="elsewhere")
    state("damaged", "{not json")
    assert tasks(page) == [None]


@needs_airflow("3.4")
def test_a_round_of_a_loop_leads_to_the_task_and_not_to_a_mapped_one(page, run):
    from uuid import uuid4

    from airflow.models.taskinstance import TaskInstance
    from airflow.models.xcom import XComModel

    of_loop = uuid4()
    store(TaskInstance, task_id="run_agent", pool="default_pool", region_id=of_loop, region_index=2)
    XComModel.set("event_id", run, **RUN, task_id="run_agent", map_index=2, region_id=of_loop, serialize=False)
    (task,) = tasks(page)
    assert (task["name"], task["path"].endswith("/tasks/run_agent")) == ("report.run_agent", True)
