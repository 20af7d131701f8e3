"""The triggers of tasks by themselves, over HTTP against the simulator: a task's end in the triggerer."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred
from conftest import needs_airflow

from airflow_provider_agents.api.errors import AgentRunFailedError, AmbiguousAgentRunError, InvalidArgumentError
from airflow_provider_agents.operators import ExecuteAgentOperator
from airflow_provider_agents.simulator import Fault, SimulatorConfig
from airflow_provider_agents.task_state import RECORD_KEY
from airflow_provider_agents.triggers import AgentRunTrigger

newer_airflow = needs_airflow("3.3")


# --- the end of a task ---


async def first_event(trigger):
    async for event in trigger.run():
        return event
    raise AssertionError("the trigger ended without an event")


def deferred_by(task, **arguments):
    """The trigger of a task that has deferred, as the triggerer makes it."""
    op = ExecuteAgentOperator(task_id="run", agent_id="agent-1", **arguments)
    with pytest.raises(TaskDeferred) as deferred:
        op.execute(task.context())
    _, kwargs = deferred.value.trigger.serialize()
    trigger = AgentRunTrigger(**json.loads(json.dumps(kwargs)))
    trigger.__dict__["_in_task"] = SimpleNamespace(try_number=task.try_number)
    return op, trigger


@pytest.fixture
def in_a_task(monkeypatch):
    """A trigger knows the try that it runs for, as it does in a triggerer."""
    instance = property(lambda self: self.__dict__.get("_in_task"))
    monkeypatch.setattr(AgentRunTrigger, "task_instance", instance, raising=False)


@newer_airflow
def test_a_completed_run_ends_the_task_with_its_xcoms(platform, task, in_a_task):
    _, trigger = deferred_by(task, end_from_trigger=True)
    event = asyncio.run(first_event(trigger))
    (mine,) = platform.executions()
    assert event.task_instance_state == "success"
    assert event.xcoms["return_value"]["id"] == event.xcoms["event_id"] == mine
    assert event.xcoms["usage"]["try_number"] == 1
    assert task.xcoms["request_id"] == platform.sim.executions[0].request_id


@newer_airflow
def test_do_xcom_push_false_holds_for_a_trigger_too(platform, task, in_a_task):
    _, trigger = deferred_by(task, end_from_trigger=True, do_xcom_push=False)
    assert asyncio.run(first_event(trigger)).xcoms == {}


@newer_airflow
@pytest.mark.parametrize("doubt", ["several", "unanswered"])
def test_nothing_of_an_event_that_may_be_another_runs_is_pushed_as_the_tasks_own(platform, task, in_a_task, doubt):
    if doubt == "several":
        platform.sim.start_scheduled_run("agent-1", after=3)
    else:
        platform.sim.faults.append(Fault(kind="reset_after", method="POST"))
    _, trigger = deferred_by(task, end_from_trigger=True)
    event = asyncio.run(first_event(trigger))
    assert set(event.xcoms) == {"return_value", "candidate_event_ids"}
    assert event.xcoms["return_value"]["id"] == event.xcoms["candidate_event_ids"][0]


@newer_airflow
def test_every_other_end_resumes_a_worker(platform, task, in_a_task):
    platform.sim.add_agent("agent-1", end_status="FAILED", error="out of luck")
    op, trigger = deferred_by(task, end_from_trigger=True)
    event = asyncio.run(first_event(trigger))
    with pytest.raises(AgentRunFailedError, match="out of luck"):
        op.execute_complete(task.resumed(), event.payload)


@pytest.fixture
def late(platform):
    """Let the event of the next run that a task starts never appear, and return one that starts another run later."""
    lags = iter([10_000_000.0])
    platform.sim.config = SimulatorConfig(record_lag=lambda rng: next(lags, 0.0))
    return lambda: platform.sim.start_scheduled_run("agent-1", after=100)


_LATE = "No event of this run appeared within 30 seconds"


def test_a_run_that_appears_late_is_adopted_with_a_warning_and_without_its_xcoms(platform, task, late, logged):
    op, trigger = deferred_by(task)
    theirs = late()
    event = asyncio.run(first_event(trigger))
    assert op.execute_complete(task.resumed(), json.loads(json.dumps(event.payload)))["id"] == theirs
    assert logged().count(_LATE) == 1
    assert {"event_id", "usage"}.isdisjoint(task.xcoms)


def test_a_run_that_appears_late_is_refused_by_a_task_that_fails_on_ambiguity(platform, task, late, logged):
    op, trigger = deferred_by(task, on_ambiguous="fail")
    late()
    event = asyncio.run(first_event(trigger))
    with pytest.raises(AirflowFailException, match="no event of it appeared within `settle`") as refused:
        op.execute_complete(task.resumed(), json.loads(json.dumps(event.payload)))
    assert isinstance(refused.value.__cause__, AmbiguousAgentRunError)
    assert _LATE not in logged()
    assert len(platform.executions()) == 1


@newer_airflow
def test_a_task_that_its_trigger_ends_does_not_show_a_late_run_as_its_own(platform, task, late, in_a_task):
    _, trigger = deferred_by(task, end_from_trigger=True)
    theirs = late()
    event = asyncio.run(first_event(trigger))
    assert event.xcoms.keys() == {"return_value", "candidate_event_ids"}
    assert event.xcoms["return_value"]["id"] == theirs


@newer_airflow
def test_without_a_task_to_end_a_worker_is_resumed(platform, task):
    # As in `dag.test()`, which would hand the end of the task to the operator as a message.
    op, trigger = deferred_by(task, end_from_trigger=True)
    event = asyncio.run(first_event(trigger))
    assert op.execute_complete(task.resumed(), event.payload)["id"] == platform.executions()[0]


@newer_airflow
def test_clearing_a_task_that_its_trigger_has_ended_starts_a_new_run(platform, task, in_a_task):
    _, trigger = deferred_by(task, end_from_trigger=True)
    asyncio.run(first_event(trigger))
    task.clear()
    _, trigger = deferred_by(task, end_from_trigger=True)
    event = asyncio.run(first_event(trigger))
    assert event.xcoms["event_id"] == platform.executions()[1]


@newer_airflow
def test_clearing_a_task_while_its_trigger_waits_takes_the_same_run_up_again(platform, task, in_a_task):
    deferred_by(task, end_from_trigger=True)
    task.clear()
    _, trigger = deferred_by(task, end_from_trigger=True)
    assert asyncio.run(first_event(trigger)).xcoms["event_id"] == platform.executions()[0]
    assert len(platform.executions()) == 1


@newer_airflow
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"outlets": [1]}, "the asset events of its outlets"),
        ({"on_success_callback": print}, "its on_success_callback"),
        ({"on_success_callback": [print]}, "its on_success_callback"),
        ({"wait_for_completion": False}, "waits in the triggerer"),
        ({"deferrable": False}, "waits in the triggerer"),
    ],
)
def test_it_is_refused_where_it_would_lose_something(wrong, words):
    with pytest.raises(InvalidArgumentError, match=words):
        ExecuteAgentOperator(task_id="run", agent_id="agent-1", end_from_trigger=True, **wrong)


@newer_airflow
def test_what_came_after_the_task_was_made_is_not_lost_either(platform, task, in_a_task, logged):
    op = ExecuteAgentOperator(task_id="run", agent_id="agent-1", end_from_trigger=True)
    op.outlets = ["an asset"]
    with pytest.raises(TaskDeferred) as deferred:
        op.execute(task.context())
    assert deferred.value.trigger.end_with is None
    assert "A worker ends this task, not its trigger, which would lose the asset events of its outlets" in logged()
    assert task.store[RECORD_KEY]["ends_in_trigger"] is False


def test_an_older_airflow_says_so(monkeypatch):
    monkeypatch.setattr("airflow_provider_agents.validation.TRIGGERS_END_TASKS", False)
    with pytest.raises(
        InvalidArgumentError, match=r"end_from_trigger of task 'run' needs Airflow 3\.3 or newer\. Leave it out"
    ):
        ExecuteAgentOperator(task_id="run", agent_id="agent-1", end_from_trigger=True)
