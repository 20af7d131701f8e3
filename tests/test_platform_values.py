"""`settle`, `appear_within` and `exclusive`: the task's value, or else the connection's, or else the default."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred
from conftest import connection, needs_airflow

from airflow_provider_agents.api.errors import InvalidArgumentError
from airflow_provider_agents.operators import ExecuteAgentOperator
from airflow_provider_agents.sensors import AgentRunSensor
from airflow_provider_agents.simulator import Fault
from airflow_provider_agents.triggers import AgentRunTrigger

PLATFORM = ("settle", "appear_within", "exclusive")


async def first_event(trigger):
    async for event in trigger.run():
        return event
    raise AssertionError("the trigger ended without an event")


@pytest.fixture
def connected(platform, monkeypatch):
    """Give the connection some extras."""

    def connect(**extras):
        monkeypatch.setenv("AIRFLOW_CONN_AGENTS_DEFAULT", connection(platform.url, **extras))

    return connect


@pytest.fixture(params=["on the worker", "deferred"])
def waiting(request):
    return {"deferrable": request.param == "deferred"}


def operator(**arguments):
    return ExecuteAgentOperator(**{"task_id": "run", "agent_id": "agent-1", "poll_interval": 2.0, **arguments})


def sensor(**arguments):
    return AgentRunSensor(**{"task_id": "wait", "agent_id": "agent-1", "poke_interval": 2.0, **arguments})


def run(op, context):
    """One try from its start to its end."""
    try:
        return op.execute(context)
    except TaskDeferred as deferred:
        _, arguments = deferred.trigger.serialize()
        event = asyncio.run(first_event(AgentRunTrigger(**json.loads(json.dumps(arguments)))))
        return getattr(op, deferred.method_name)(context, event=event.payload)


def deferral(op, context):
    with pytest.raises(TaskDeferred) as deferred:
        op.execute(context)
    return deferred.value.trigger.serialize()[1]


def seconds(platform, act):
    before = sum(platform.slept)
    act()
    return sum(platform.slept) - before


def sensor_context():
    return {"ti": SimpleNamespace(try_number=1, max_tries=0)}


# --- whose value counts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extras", "arguments", "resolved"),
    [
        ({}, {}, (30.0, 300.0, False)),
        ({"settle": 2, "appear_within": "20", "exclusive": "true"}, {}, (2.0, 20.0, True)),
        ({"settle": 2, "exclusive": True}, {"settle": 4, "exclusive": False}, (4.0, 300.0, False)),
        ({"appear_within": 20}, {"settle": timedelta(seconds=8), "appear_within": 9}, (8.0, 9.0, False)),
    ],
    ids=str,
)
def test_a_worker_resolves_the_values_and_the_trigger_carries_them(
    platform, task, connected, extras, arguments, resolved
):
    connected(**extras)
    carried = deferral(operator(**arguments), task.context())
    assert tuple(carried[name] for name in PLATFORM) == resolved
    # Active, so that the sensor defers.
    platform.sim.add_agent("agent-1", run_seconds=1000.0)
    event_id = platform.sim.start_scheduled_run("agent-1")
    carried = deferral(sensor(event_id=event_id, **arguments), sensor_context())
    assert tuple(carried[name] for name in PLATFORM) == resolved


@pytest.mark.parametrize(
    ("extras", "arguments", "words"),
    [
        ({"settle": 60}, {"appear_within": 40}, r"appear_within \(40 s\) must be at least settle \(60 s\)"),
        ({"settle": 600}, {}, r"appear_within \(300 s\) must be at least settle \(600 s\)"),
        ({"settle": 60}, {"timeout": 40}, r"timeout \(40 s\) must be at least settle \(60 s\)"),
        ({}, {"timeout": 10}, r"timeout \(10 s\) must be at least settle \(30 s\)"),
    ],
    ids=str,
)
def test_values_that_do_not_fit_together_fail_for_good_before_any_request(
    platform, task, connected, extras, arguments, words
):
    connected(**extras)
    with pytest.raises(AirflowFailException, match=words) as failed:
        operator(**arguments).execute(task.context())
    assert isinstance(failed.value.__cause__, InvalidArgumentError)
    with pytest.raises(AirflowFailException, match=words):
        sensor(started_after=datetime.now(UTC), **arguments).execute(sensor_context())
    assert platform.sim.requests == []


def test_an_exclusive_task_may_have_less_time_than_settle(platform, task, connected):
    connected(exclusive=True)
    assert run(operator(timeout=20, deferrable=False), task.context())["status"] == "COMPLETED"


def test_parsing_a_dag_does_not_read_the_connection(monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_AGENTS_DEFAULT", "nonsense")
    assert operator().settle is None
    assert sensor(started_after=datetime.now(UTC)).exclusive is None


# --- without a worker -------------------------------------------------------------------------------------------------


@needs_airflow("3.3")
@pytest.mark.parametrize(
    ("extras", "least", "most"), [({"exclusive": True}, 1, 5), ({"settle": 10}, 10, 20), ({}, 30, 45)], ids=str
)
def test_a_trigger_that_no_worker_has_started_reads_the_connection(platform, connected, extras, least, most):
    connected(**extras)
    platform.sim.add_agent("agent-1", run_seconds=1.0)
    op = sensor(started_after=datetime.now(UTC), start_from_trigger=True)
    arguments = op.start_trigger_args.trigger_kwargs
    assert not set(PLATFORM) & set(arguments)
    platform.sim.start_scheduled_run("agent-1")
    trigger = AgentRunTrigger(**json.loads(json.dumps(arguments)))
    passed = seconds(platform, lambda: asyncio.run(first_event(trigger)))
    assert least <= passed <= most


@needs_airflow("3.3")
def test_a_trigger_waits_for_a_connection_that_is_missing_for_a_while(platform, connected, monkeypatch):
    op = sensor(started_after=datetime.now(UTC), start_from_trigger=True)
    platform.sim.start_scheduled_run("agent-1")
    monkeypatch.delenv("AIRFLOW_CONN_AGENTS_DEFAULT")
    trigger = AgentRunTrigger(**op.start_trigger_args.trigger_kwargs)

    async def wait():
        loop = asyncio.get_running_loop()
        loop.call_later(21.0, lambda: connected(exclusive=True))
        return await first_event(trigger)

    assert asyncio.run(wait()).payload["outcome"] == "completed"


@needs_airflow("3.3")
def test_values_that_do_not_fit_together_fail_a_trigger_for_good(platform, connected):
    connected(settle=600)
    op = sensor(started_after=datetime.now(UTC), start_from_trigger=True)
    event = asyncio.run(first_event(AgentRunTrigger(**op.start_trigger_args.trigger_kwargs)))
    assert event.payload["for_good"]
    assert "appear_within (300 s) must be at least settle (600 s)" in event.payload["error"]


# --- exclusive --------------------------------------------------------------------------------------------------------


def test_a_run_of_nine_seconds_takes_about_eleven(platform, task, waiting, logged):
    platform.sim.add_agent("agent-1", run_seconds=9.0)
    passed = seconds(platform, lambda: run(operator(exclusive=True, **waiting), task.context()))
    assert 9 <= passed <= 13
    assert task.xcoms["event_id"] == platform.executions()[0]
    assert "exclusive" not in logged()


@pytest.mark.parametrize("how", ["deferred", "poke"])
def test_a_sensor_reports_the_run_of_a_submission_as_soon_as_it_has_ended(platform, task, how):
    platform.sim.add_agent("agent-1", run_seconds=9.0)
    submission = operator(wait_for_completion=False).execute(task.context())
    mode = {"mode": "poke"} if how == "poke" else {}
    op = sensor(agent_id=None, submission=submission, exclusive=True, **mode)
    assert 9 <= seconds(platform, lambda: run(op, sensor_context())) <= 13


def test_another_run_is_warned_of_and_the_task_goes_on_as_any_other(platform, task, waiting, logged):
    platform.sim.add_agent("agent-1", run_seconds=9.0)
    platform.sim.start_scheduled_run("agent-1", after=3)
    passed = seconds(platform, lambda: run(operator(exclusive=True, **waiting), task.context()))
    assert passed >= 30
    assert logged().count("This task is exclusive, but something else has started the agent too.") == 1
    assert "event_id" not in task.xcoms


def test_another_run_is_warned_of_by_a_sensor_that_waits_for_the_first(platform, logged):
    platform.sim.add_agent("agent-1", run_seconds=9.0)
    began = datetime.now(UTC)
    for after in (0, 3):
        platform.sim.start_scheduled_run("agent-1", after=after)
    platform.advance(5)
    run(sensor(started_after=began, exclusive=True), sensor_context())
    assert logged().count("This task is exclusive, but something else has started the agent too.") == 1


def test_a_lost_post_is_looked_for_as_long_as_ever(platform, task, waiting):
    platform.sim.faults.append(Fault(kind="reset_after", method="POST"))
    op = operator(exclusive=True, settle=1.0, **waiting)
    assert seconds(platform, lambda: run(op, task.context())) >= 30
    assert len(platform.executions()) == 1


@pytest.mark.parametrize(("every", "exclusive", "count"), [(3600.0, True, 1), (3600.0, False, 0), (None, True, 0)])
def test_an_agent_with_a_schedule_of_its_own_is_warned_of_before_the_post(
    platform, task, logged, every, exclusive, count
):
    platform.sim.add_agent("agent-1", schedule_every=every, schedule_offset=1800.0)
    operator(exclusive=exclusive, wait_for_completion=False).execute(task.context())
    assert logged().count("the platform starts the agent on a schedule too") == count


def test_an_agent_that_cannot_be_read_for_its_schedule_is_started_all_the_same(platform, task):
    platform.sim.faults.append(Fault(kind="status", status=403, path="/v1/agents/agent-1$", method="GET"))
    operator(exclusive=True, wait_for_completion=False).execute(task.context())
    assert len(platform.executions()) == 1
