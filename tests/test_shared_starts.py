"""Starts of one agent across triggerers and workers: what tasks write down, and what a task that waits reads of it."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred
from airflow_versions import let_clears_discard_state
from conftest import KEY, Task, change, needs_airflow

from airflow_provider_agents import get_provider_info
from airflow_provider_agents.operators import ExecuteAgentOperator
from airflow_provider_agents.runs.copies import RecordCopy
from airflow_provider_agents.sensors import AgentRunSensor
from airflow_provider_agents.shared_starts import are_copies_kept, read_starts
from airflow_provider_agents.triggers import AgentRunTrigger

pytestmark = needs_airflow("3.3")


@pytest.fixture(autouse=True)
def shared(monkeypatch):
    """Airflow 3.3 with the option set. Newer ones share without it."""
    let_clears_discard_state(monkeypatch, discard=False)
    monkeypatch.setenv("AIRFLOW__AGENTS__SHARE_STARTS", "True")


@pytest.fixture
def at_once(platform):
    """Events that nothing tells apart: all appear a moment after the POST."""
    change(platform, request_id="absent", record_lag=3.0, queue_seconds=0.0, run_seconds=60.0)


def operator(**arguments):
    return ExecuteAgentOperator(**{"task_id": "run", "agent_id": "agent-1", **arguments})


def started(count, **arguments):
    """Tasks that have started the agent at the same time, and their triggers."""
    found = []
    for number in range(count):
        task, op = Task(map_index=number), operator(**arguments)
        with pytest.raises(TaskDeferred) as deferred:
            op.execute(task.context())
        _, kwargs = deferred.value.trigger.serialize()
        found.append((task, op, AgentRunTrigger(**json.loads(json.dumps(kwargs)))))
    return found


async def first_event(trigger):
    async for event in trigger.run():
        await asyncio.sleep(1)
        return event
    raise AssertionError("the trigger ended without an event")


def end(task, op, trigger):
    """Wait in a triggerer of its own, which knows nothing of any other, and resume."""
    event = asyncio.run(first_event(trigger))
    return op.execute_complete(task.resumed(), json.loads(json.dumps(event.payload)))["id"]


def not_waited_for(count):
    """Submissions of tasks that have started the agent at the same time."""
    tasks = [Task(map_index=number) for number in range(count, 2 * count)]
    return [operator(wait_for_completion=False).execute(task.context()) for task in tasks]


def sense(platform, way, submission):
    """The event that a sensor returns. With `reschedule`, each poll is in a process of its own."""
    arguments = {} if way == "deferrable" else {"mode": way}
    context = {"ti": SimpleNamespace(try_number=1, max_tries=0)}

    def new_sensor():
        return AgentRunSensor(task_id="wait", submission=submission, **arguments)

    sensor = new_sensor()
    if way == "deferrable":
        try:
            return sensor.execute(context)["id"]
        except TaskDeferred as deferred:
            _, kwargs = deferred.trigger.serialize()
            event = asyncio.run(first_event(AgentRunTrigger(**json.loads(json.dumps(kwargs)))))
            return sensor.execute_complete(context, json.loads(json.dumps(event.payload)))["id"]
    while not (done := sensor.poke(context)):
        platform.advance(5 if way == "poke" else 60)
        sensor = sensor if way == "poke" else new_sensor()
    return done.xcom_value["id"]


def copies_in(copies):
    return [RecordCopy.kept_under(key, text) for key, text in copies.items()]


def refuse(*_arguments):
    raise RuntimeError("the API server is away")


# --- the option ---


def test_airflow_lists_the_option_with_its_default():
    section = get_provider_info()["config"]["agents"]
    assert section["options"]["share_starts"]["default"] == "False"
    assert section["options"]["share_starts"]["type"] == "boolean"


@pytest.mark.parametrize(("value", "kept"), [(None, False), ("False", False), ("True", True), ("perhaps", False)])
def test_airflow_3_3_shares_starts_only_if_it_is_asked_to(monkeypatch, value, kept):
    if value is None:
        monkeypatch.delenv("AIRFLOW__AGENTS__SHARE_STARTS")
    else:
        monkeypatch.setenv("AIRFLOW__AGENTS__SHARE_STARTS", value)
    assert are_copies_kept() is kept


def test_where_starts_are_not_shared_nothing_is_written_or_read(platform, at_once, copies, monkeypatch):
    monkeypatch.delenv("AIRFLOW__AGENTS__SHARE_STARTS")
    copies.list = copies.read = copies.write = refuse
    tasks = started(2)
    assert {end(*one) for one in tasks} <= set(platform.executions())


# --- what is written down ---


def test_a_start_is_there_from_its_acceptance_until_some_minutes_after_its_end(platform, copies):
    ((task, op, trigger),) = started(1)
    (start,) = read_starts("agents_default", "agent-1")
    assert start.submission.request_id == platform.sim.executions[0].request_id
    assert (start.settle, start.appear_within, start.given_event_id) == (30.0, 300.0, None)
    event_id = end(task, op, trigger)
    (start,) = read_starts("agents_default", "agent-1")
    assert start.given_event_id == event_id
    (copy,) = copies_in(copies)
    assert copy.until == datetime.now(UTC) + timedelta(seconds=330)
    assert copy.record.result is None
    assert KEY not in "".join(copies.values())


def test_a_task_that_ends_in_its_trigger_leaves_its_event_too(platform, copies, monkeypatch):
    monkeypatch.setattr(AgentRunTrigger, "task_instance", SimpleNamespace(try_number=1), raising=False)
    ((_, _, trigger),) = started(1, end_from_trigger=True)
    asyncio.run(first_event(trigger))
    assert [copy.given_event_id for copy in copies_in(copies)] == platform.executions()


def test_the_next_start_of_an_agent_deletes_what_is_of_no_more_use(platform, copies):
    for task, op, trigger in started(1):
        end(task, op, trigger)
    (old,) = copies
    platform.advance(400)
    started(2)
    assert old in copies  # the first of the two writes over it: it is of the same task
    for number in range(2, 5):
        platform.advance(400)
        task = Task(map_index=number)
        with pytest.raises(TaskDeferred):
            operator(agent_id="agent-1").execute(task.context())
    assert all(copy.until > datetime.now(UTC) for copy in copies_in(copies))


def test_a_clear_on_airflow_3_3_keeps_to_the_state_that_it_has(platform, copies):
    ((task, op, _),) = started(1)
    task.store.clear()
    task.clear()
    with pytest.raises(TaskDeferred):
        op.execute(task.context())
    assert len(platform.executions()) == 2


# --- what is read ---


def test_tasks_in_two_triggerers_are_given_one_of_their_runs_each(platform, at_once):
    assert sorted(end(*one) for one in started(2)) == sorted(platform.executions())


@pytest.mark.parametrize("first_on_worker", [True, False])
def test_a_task_on_a_worker_is_told_apart_from_one_in_a_triggerer(platform, at_once, first_on_worker):
    on_worker, deferred = Task(map_index=7), started(1)
    waits = operator(deferrable=False)
    if first_on_worker:
        found = [waits.execute(on_worker.context())["id"], end(*deferred[0])]
    else:
        found = [end(*deferred[0]), waits.execute(on_worker.context())["id"]]
    assert sorted(found) == sorted(platform.executions())


@pytest.mark.parametrize("way", ["deferrable", "poke", "reschedule"])
@pytest.mark.parametrize("seconds_later", [5, 200])
def test_sensors_that_poll_on_workers_are_given_one_of_the_runs_each(platform, at_once, way, seconds_later):
    submissions, deferred = not_waited_for(2), started(1)
    platform.advance(seconds_later)
    found = [sense(platform, way, submission) for submission in submissions]
    assert sorted([*found, end(*deferred[0])]) == sorted(platform.executions())


@pytest.mark.parametrize("way", ["poke", "reschedule"])
def test_without_the_platforms_clock_such_sensors_wait_for_siblings_to_settle(platform, at_once, way):
    change(platform, date_header=False)
    submissions = not_waited_for(2)
    platform.advance(200)
    assert sorted(sense(platform, way, submission) for submission in submissions) == sorted(platform.executions())
    assert sum(platform.slept) < 400


def test_a_sensor_that_cannot_read_the_starts_decides_with_its_own_alone(platform, at_once, copies, caplog):
    submissions = not_waited_for(2)
    copies.list = refuse
    assert sense(platform, "poke", submissions[0]) in platform.executions()
    assert caplog.text.count("in other triggerers and workers could not be read (RuntimeError)") == 1


@pytest.mark.parametrize("broken", ["list", "read"])
def test_starts_that_cannot_be_read_fail_no_task_and_are_warned_of_once(platform, at_once, copies, caplog, broken):
    tasks = started(2)
    setattr(copies, broken, refuse)
    assert {end(*one) for one in tasks[:1]} <= set(platform.executions())
    assert caplog.text.count("in other triggerers and workers could not be read (RuntimeError)") == 1


def test_what_is_no_copy_is_left_out_of_the_starts(platform, copies):
    started(1)
    (key,) = copies
    copies[f"{key}x"], copies[key[:-1]] = "no copy", "{}"
    assert len(read_starts("agents_default", "agent-1")) == 1


# --- a task that is ambiguous ---


def whole_try(task, op):
    try:
        op.execute(task.context())
    except TaskDeferred as deferred:
        end(task, op, deferred.trigger)


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("deferrable", [True, False])
def test_a_task_that_is_ambiguous_logs_what_to_do_where_starts_are_not_shared(
    platform, at_once, monkeypatch, logged, is_shared, deferrable
):
    if not is_shared:
        monkeypatch.delenv("AIRFLOW__AGENTS__SHARE_STARTS")
    platform.sim.start_scheduled_run("agent-1", after=1)
    with pytest.raises(AirflowFailException):
        whole_try(Task(), operator(on_ambiguous="fail", deferrable=deferrable))
    said = logged()
    for option in ("[agents] share_starts = True", "include_deferred", "max_active_runs=1"):
        assert (option in said) is not is_shared
