"""What a task tells OpenLineage, read by Airflow's OpenLineage provider as in a task: from the instance that ran."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException, TaskDeferred
from airflow.providers.openlineage.extractors.manager import ExtractorManager
from airflow.providers.openlineage.plugins.adapter import OpenLineageAdapter
from airflow.providers.openlineage.utils.utils import TaskInfoComplete
from airflow.utils.state import TaskInstanceState
from conftest import KEY
from openlineage.client import OpenLineageClient
from openlineage.client.serde import Serde
from openlineage.client.transport.noop import NoopConfig, NoopTransport

from airflow_provider_agents import __version__
from airflow_provider_agents.api.errors import AgentRunFailedError, AgentRunNotFoundError, AgentRunTimeoutError
from airflow_provider_agents.operators import ExecuteAgentOperator
from airflow_provider_agents.sensors import AgentRunSensor

ROOT = Path(__file__).parents[1]
NOW = datetime(2026, 1, 1, tzinfo=UTC).isoformat()
RUNNING, SUCCESS, FAILED, SKIPPED = (
    TaskInstanceState.RUNNING,
    TaskInstanceState.SUCCESS,
    TaskInstanceState.FAILED,
    TaskInstanceState.SKIPPED,
)


def operator(**arguments):
    return ExecuteAgentOperator(**{"task_id": "run", "agent_id": "agent-1", "deferrable": False, **arguments})


def sensor(**arguments):
    return AgentRunSensor(**{"task_id": "wait", "mode": "poke", **arguments})


async def first_event(trigger):
    return await anext(trigger.run())


def lead(make, task):
    """One try as Airflow leads it; returns the instance that saw its end, and how it ended."""
    op, context = make(), task.context()
    try:
        try:
            op.execute(context)
        except TaskDeferred as deferred:
            event = asyncio.run(first_event(deferred.trigger))
            # A new process, which has nothing of the one that deferred.
            op = make()
            op.resume_execution(deferred.method_name, {**(deferred.kwargs or {}), "event": event.payload}, context)
    except Exception as error:  # noqa: BLE001 - whatever it is, Airflow then asks the same instance
        return op, error
    return op, None


def event_of(op, state):
    """The event that the provider emits for a task in this state, as JSON."""
    lineage = ExtractorManager().extract_metadata(
        dagrun=SimpleNamespace(run_id="manual"), task=op, task_instance_state=state, task_instance=SimpleNamespace()
    )
    assert (lineage.inputs, lineage.outputs, lineage.job_facets) == ([], [], {})
    adapter = OpenLineageAdapter(OpenLineageClient(transport=NoopTransport(NoopConfig())))
    names = {"run_id": str(uuid.uuid4()), "job_name": "dag.run", "owners": None, "tags": None, "job_description": None}
    times = {"nominal_start_time": None, "nominal_end_time": None}
    if state == RUNNING:
        return Serde.to_json(adapter.start_task(**names, **times, event_time=NOW, task=lineage))
    tell = adapter.fail_task if state == FAILED else adapter.complete_task
    return Serde.to_json(tell(**names, **times, end_time=NOW, task=lineage))


def facets_of(op, state=SUCCESS):
    """The facets that are about the agent's run, and the version of it checked."""
    facets = json.loads(event_of(op, state))["run"]["facets"]
    ours = {name: facets[name] for name in ("agents_run", "externalQuery") if name in facets}
    for facet in ours.values():
        assert facet.pop("_producer")
        assert facet.pop("_schemaURL").startswith("https://openlineage.io/spec/")
    if "agents_run" in ours:
        assert (ours["agents_run"].pop("version"), ours["agents_run"].pop("providerVersion")) == (1, __version__)
    return ours


@pytest.fixture(params=["on the worker", "deferred"])
def make(request):
    return lambda **arguments: operator(deferrable=request.param == "deferred", **arguments)


# --- how runs end ---


def test_a_completed_run_is_told_with_its_ids_its_usage_and_where_it_was(platform, task, make):
    op, error = lead(make, task)
    assert error is None
    (mine,) = platform.sim.executions
    assert facets_of(op) == {
        "agents_run": {
            "agentId": "agent-1",
            "requestId": mine.request_id,
            "eventId": mine.event_id,
            "outcome": "completed",
            "finalModel": "claude-3-7-sonnet",
            "browserStepCount": 3,
            "browserSessionSeconds": 5,
            "durationSeconds": 5.0,
        },
        "externalQuery": {"externalQueryId": mine.event_id, "source": platform.url},
    }


def test_a_failed_run_is_told_with_its_reason(platform, task, make):
    platform.sim.add_agent("agent-1", end_status="FAILED", error="out of luck\nand of " + "money" * 100)
    op, error = lead(make, task)
    assert isinstance(error, AgentRunFailedError)
    facets = facets_of(op, FAILED)
    assert facets["agents_run"]["outcome"] == "failed"
    assert facets["agents_run"]["error"].startswith("out of luck and of money")
    assert len(facets["agents_run"]["error"]) == 200
    assert facets["agents_run"]["durationSeconds"] == 5.0
    assert facets["externalQuery"]["externalQueryId"] == platform.executions()[0]


def test_a_run_that_is_late_is_told_as_far_as_it_was_seen(platform, task, make):
    platform.sim.add_agent("agent-1", run_seconds=1000.0)
    op, error = lead(lambda: make(timeout=60), task)
    assert isinstance(error, AgentRunTimeoutError)
    told = facets_of(op, FAILED)["agents_run"]
    assert (told["outcome"], told["eventId"]) == ("timed_out", platform.executions()[0])
    assert "durationSeconds" not in told


def test_a_run_that_got_lost_is_told_by_what_the_api_answered(platform, task, make):
    platform.sim.config = platform.sim.config.__class__(record_lag=10_000.0)
    op, error = lead(make, task)
    assert isinstance(error, AgentRunNotFoundError)
    request_id = platform.sim.executions[0].request_id
    assert facets_of(op, FAILED) == {
        "agents_run": {"agentId": "agent-1", "requestId": request_id, "outcome": "not_found"}
    }


def test_of_runs_that_cannot_be_told_apart_all_are_named_and_none_is_said_to_be_it(platform, task, make):
    ends = iter(["COMPLETED", "FAILED"])
    platform.sim.add_agent("agent-1", end_status=lambda rng: next(ends), schedule_every=1000.0, schedule_offset=2.0)
    op, error = lead(make, task)
    assert isinstance(error, AirflowFailException)
    told = facets_of(op, FAILED)
    assert set(told) == {"agents_run"}
    assert set(told["agents_run"]) == {"agentId", "requestId", "outcome", "candidateEventIds"}
    assert told["agents_run"]["outcome"] == "ambiguous"
    assert platform.executions()[0] in told["agents_run"]["candidateEventIds"]
    assert len(told["agents_run"]["candidateEventIds"]) == 2


def test_a_run_that_is_not_waited_for_is_told_without_an_outcome(platform, task):
    op, _ = lead(lambda: operator(wait_for_completion=False), task)
    request_id = platform.sim.executions[0].request_id
    assert facets_of(op) == {"agents_run": {"agentId": "agent-1", "requestId": request_id}}


def test_a_try_that_finds_the_end_of_an_earlier_one_tells_the_same(platform, task):
    first, _ = lead(operator, task)
    again, error = lead(operator, task)
    assert (error, len(platform.executions())) == (None, 1)
    assert facets_of(again) == facets_of(first)


def test_a_try_that_cannot_start_a_run_tells_nothing_of_the_last_one(platform, task):
    op, _ = lead(lambda: operator(durable=False), task)
    platform.sim.add_agent("agent-1", status="DELETED")
    with pytest.raises(AirflowFailException):
        op.execute(task.context())
    assert facets_of(op, FAILED) == {"agents_run": {"agentId": "agent-1"}}


def test_a_task_that_is_skipped_as_the_agent_is_busy_names_the_agent(platform, task):
    platform.sim.start_scheduled_run("agent-1")
    op, error = lead(lambda: operator(if_running="skip"), task)
    assert isinstance(error, AirflowSkipException)
    assert facets_of(op, SKIPPED) == {"agents_run": {"agentId": "agent-1"}}


def test_the_start_names_the_agent_only(platform, task):
    op, _ = lead(operator, task)
    assert facets_of(op, RUNNING) == facets_of(operator(), RUNNING) == {"agents_run": {"agentId": "agent-1"}}


# --- sensors ---


@pytest.mark.parametrize("way", [{}, {"mode": None, "deferrable": True}], ids=["on the worker", "deferred"])
def test_a_sensor_tells_of_the_run_that_it_has_waited_for(platform, task, way):
    arguments = {key: value for key, value in {"mode": "poke", **way}.items() if value is not None}
    event_id = platform.sim.start_scheduled_run("agent-1")
    op, error = lead(lambda: AgentRunSensor(task_id="wait", agent_id="agent-1", event_id=event_id, **arguments), task)
    assert error is None
    told = facets_of(op)
    assert (told["agents_run"]["eventId"], told["agents_run"]["outcome"]) == (event_id, "completed")
    assert told["externalQuery"] == {"externalQueryId": event_id, "source": platform.url}


def test_a_sensor_that_is_skipped_tells_why(platform, task):
    platform.sim.add_agent("agent-1", end_status="FAILED", error="out of luck")
    event_id = platform.sim.start_scheduled_run("agent-1")
    op, error = lead(lambda: sensor(agent_id="agent-1", event_id=event_id, soft_fail=True), task)
    assert isinstance(error, AirflowSkipException)
    told = facets_of(op, SKIPPED)["agents_run"]
    assert (told["outcome"], told["error"]) == ("failed", "out of luck")


def test_a_sensor_names_the_agent_of_its_submission_at_the_start(platform, task):
    submission = operator(wait_for_completion=False).execute(task.context())
    assert facets_of(sensor(submission=submission), RUNNING) == {"agents_run": {"agentId": "agent-1"}}


def test_a_sensor_whose_arguments_name_no_agent_tells_nothing():
    assert facets_of(sensor(submission="{{ params.nothing }}"), RUNNING) == {}


# --- what is never told ---


@pytest.mark.parametrize("end_status", ["COMPLETED", "FAILED"])
def test_neither_the_key_nor_what_else_the_platform_sends_is_told(platform, task, make, end_status):
    platform.sim.config = platform.sim.config.__class__(extra_event_fields={"prompt": "a secret plan"})
    platform.sim.add_agent("agent-1", end_status=end_status)
    op, _ = lead(make, task)
    told = event_of(op, SUCCESS if end_status == "COMPLETED" else FAILED)
    assert "agents_run" in told
    user_id = platform.sim.handle("GET", "/v1/events", {}, {"Authorization": f"Bearer {KEY}"}).body
    assert json.loads(user_id)["data"][0]["userId"] not in told
    assert "secret plan" not in told
    assert KEY not in told


def test_a_task_whose_attributes_are_sent_too_tells_no_more(platform, task):
    platform.sim.config = platform.sim.config.__class__(extra_event_fields={"prompt": "a secret plan"})
    op, _ = lead(operator, task)
    # `include_full_task_info`, which a deployment may set.
    told = Serde.to_json({"task": str(dict(TaskInfoComplete(op)))})
    assert "agent-1" in told
    assert "secret plan" not in told
    assert KEY not in told


# --- without OpenLineage ---


def test_without_the_provider_a_task_runs_the_same_and_tells_nothing(platform, task, monkeypatch):
    # What an import finds that is not installed.
    monkeypatch.delitem(sys.modules, "airflow_provider_agents.lineage", raising=False)
    monkeypatch.setitem(sys.modules, "airflow.providers.openlineage.extractors", None)
    op, error = lead(operator, task)
    assert error is None
    assert op.get_openlineage_facets_on_start() is None
    assert op.get_openlineage_facets_on_complete(None) is None
    assert op.get_openlineage_facets_on_failure(None) is None
    assert "airflow_provider_agents.lineage" not in sys.modules


# --- what is public ---


def test_the_docs_show_every_field_of_the_facet():
    from attrs import fields

    from airflow_provider_agents.lineage import FACET, AgentRunFacet

    page = (ROOT / "docs" / "openlineage.md").read_text()
    sample = json.loads(page.partition("```json\n")[2].partition("```")[0])
    assert set(sample) == {FACET, "externalQuery"}
    own = {field.name for field in fields(AgentRunFacet)}
    assert set(sample[FACET]) <= own
    assert {name for name in own if not name.startswith("_") and f"| `{name}` |" not in page} == set()
