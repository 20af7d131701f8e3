"""The record of a run where a clear discards it: its copy in a Variable, and what a cleared task does.

Airflow does so from 3.4 on. With an older one, the tests give triggers the attribute by which 3.4 is known.
"""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred
from airflow_versions import let_clears_discard_state
from conftest import AIRFLOW, KEY, DyingStore, Killed, Task, needs_airflow

from airflow_provider_agents.api.errors import AgentRunFailedError, AgentRunTimeoutError, ServerError
from airflow_provider_agents.hooks import AgentsHook
from airflow_provider_agents.operators import ExecuteAgentOperator
from airflow_provider_agents.runs.copies import RecordCopy, prefix_of
from airflow_provider_agents.simulator import Fault
from airflow_provider_agents.triggers import AgentRunTrigger

NOT_CANCELLED = "Its run is still running and cannot be cancelled"


@pytest.fixture(autouse=True)
def clears_discard_state(monkeypatch):
    let_clears_discard_state(monkeypatch)


@pytest.fixture(params=["on the worker", "deferred"])
def waiting(request):
    return {"deferrable": request.param == "deferred"}


def under_way(copies):
    """The copies of runs that have not ended."""
    return [key for key, text in copies.items() if RecordCopy.kept_under(key, text).record.phase != "ended"]


def operator(**arguments):
    return ExecuteAgentOperator(**{"task_id": "run", "agent_id": "agent-1", "retries": 3, **arguments})


async def first_event(trigger):
    async for event in trigger.run():
        # What a trigger leaves to its loop has its turn now.
        await asyncio.sleep(1)
        return event
    raise AssertionError("the trigger ended without an event")


def run(op, task):
    """One try from its start to its end."""
    try:
        return op.execute(task.context())
    except TaskDeferred as deferred:
        event = asyncio.run(first_event(deferred.trigger))
        return op.execute_complete(task.resumed(), event=event.payload)


def stop_while_waiting(op, task, monkeypatch):
    """One try that is still waiting for its run: in the triggerer, or on a worker that is killed."""

    def die(_seconds):
        raise Killed

    with monkeypatch.context() as dying:
        dying.setattr(time, "sleep", die)
        with pytest.raises(TaskDeferred if op.deferrable else Killed):
            op.execute(task.context())


def die_around_the_post(task, copies, **arguments):
    """One try whose worker is killed when all is written that is written before the POST."""

    def die(key, text, description):
        copies[key] = text
        raise Killed

    copies.write, write = die, copies.write
    with pytest.raises(Killed):
        operator(**arguments).execute(task.context())
    copies.write = write


# --- a clear while the run goes on ---


def test_a_cleared_task_waits_for_its_run_while_that_run_goes_on(platform, task, waiting, copies, monkeypatch, logged):
    platform.sim.add_agent("agent-1", run_seconds=600)
    stop_while_waiting(operator(**waiting), task, monkeypatch)
    (key,) = copies
    task.clear(keep_state=False)
    assert [run(operator(**waiting), task)["id"]] == platform.executions()
    said = logged()
    assert NOT_CANCELLED in said
    assert f"To start another run instead, delete the Variable {key} and clear the task." in said
    assert under_way(copies) == []


def test_a_task_that_has_timed_out_is_found_again_after_a_clear(platform, task, waiting, copies):
    platform.sim.add_agent("agent-1", run_seconds=600)
    with pytest.raises(AgentRunTimeoutError):
        run(operator(timeout=60, **waiting), task)
    task.clear(keep_state=False)
    assert [run(operator(**waiting), task)["id"]] == platform.executions()
    assert under_way(copies) == []


def test_a_run_is_found_over_any_number_of_clears(platform, task, waiting, monkeypatch):
    platform.sim.add_agent("agent-1", run_seconds=600)
    for _ in range(3):
        stop_while_waiting(operator(**waiting), task, monkeypatch)
        task.clear(keep_state=False)
    assert [run(operator(**waiting), task)["id"]] == platform.executions()


@pytest.mark.parametrize("places", [[(0, None), (1, None)], [(-1, 0), (-1, 1)], [(0, 0), (0, 1)]])
def test_each_mapped_or_looped_task_finds_its_own_run(platform, copies, places):
    tasks = [Task(map_index=map_index, loop_index=loop_index) for map_index, loop_index in places]
    platform.sim.add_agent("agent-1", run_seconds=600)
    for task in tasks:
        with pytest.raises(TaskDeferred):
            operator().execute(task.context())
        platform.advance(40)
        task.clear(keep_state=False)
    assert len(copies) == len(tasks)
    assert [run(operator(), task)["id"] for task in tasks] == platform.executions()
    assert under_way(copies) == []


@pytest.mark.parametrize("clears_keep_state", [True, False])
def test_a_retry_after_a_cleared_try_goes_on_with_the_same_run(platform, task, monkeypatch, clears_keep_state):
    platform.sim.add_agent("agent-1", run_seconds=600)
    stop_while_waiting(operator(), task, monkeypatch)
    task.clear(keep_state=clears_keep_state)
    stop_while_waiting(operator(deferrable=False), task, monkeypatch)
    assert [run(operator(), task)["id"]] == platform.executions()


def test_a_look_up_that_fails_fails_a_cleared_task_and_never_leads_to_a_post(platform, task, monkeypatch):
    platform.sim.add_agent("agent-1", run_seconds=600)
    stop_while_waiting(operator(), task, monkeypatch)
    task.clear(keep_state=False)
    platform.sim.faults.append(Fault(kind="status", status=500, method="GET", times=None))
    with pytest.raises(ServerError):
        run(operator(), task)
    platform.sim.faults.clear()
    assert [run(operator(), task)["id"]] == platform.executions()


def test_a_cleared_task_that_does_not_wait_returns_the_run_that_goes_on(platform, task, copies):
    platform.sim.add_agent("agent-1", run_seconds=600)
    context = task.context()
    context["task_state_store"] = DyingStore(task.store, "ended", "before")
    with pytest.raises(Killed):
        operator(wait_for_completion=False).execute(context)
    task.clear(keep_state=False)
    again = operator(wait_for_completion=False).execute(task.context())
    assert again["request_id"] == platform.sim.executions[0].request_id
    assert len(platform.executions()) == 1
    assert under_way(copies) == []


# --- a clear after the end ---


@pytest.mark.parametrize("end", ["COMPLETED", "FAILED"])
def test_a_clear_after_the_end_starts_a_new_run(platform, task, waiting, copies, end):
    platform.sim.add_agent("agent-1", end_status=end)
    for _ in range(2):
        if end == "COMPLETED":
            run(operator(**waiting), task)
        else:
            with pytest.raises(AgentRunFailedError):
                run(operator(**waiting), task)
        assert under_way(copies) == []
        task.clear(keep_state=False)
    assert len(platform.executions()) == 2


@pytest.mark.parametrize("end", ["COMPLETED", "FAILED"])
def test_a_run_that_has_ended_by_the_time_of_the_clear_is_followed_by_a_new_one(
    platform, task, copies, monkeypatch, logged, end
):
    platform.sim.add_agent("agent-1", end_status=end)
    stop_while_waiting(operator(), task, monkeypatch)
    platform.advance(60)
    task.clear(keep_state=False)
    platform.sim.add_agent("agent-1")
    assert run(operator(), task)["id"] == platform.executions()[1]
    assert f"its earlier run is not running any more ({end.lower()})" in logged()
    assert under_way(copies) == []


def test_a_run_that_has_ended_is_not_taken_up_by_a_retry_of_the_cleared_task_either(platform, task, monkeypatch):
    stop_while_waiting(operator(), task, monkeypatch)
    platform.advance(60)
    task.clear(keep_state=False)
    platform.sim.faults.append(Fault(kind="status", status=403, method="POST"))
    with pytest.raises(AirflowFailException, match="403"):
        run(operator(), task)
    assert run(operator(), task)["id"] == platform.executions()[1]


def test_a_run_that_never_appeared_is_followed_by_a_new_one(platform, task, copies, monkeypatch):
    platform.sim.config = platform.sim.config.__class__(record_lag=1e6)
    stop_while_waiting(operator(), task, monkeypatch)
    platform.advance(400)
    task.clear(keep_state=False)
    platform.sim.config = platform.sim.config.__class__()
    assert run(operator(), task)["id"] == platform.executions()[1]
    assert under_way(copies) == []


# --- a clear of a task of which nobody knows whether it has started a run ---


def test_a_run_whose_worker_died_around_the_post_is_looked_for_after_a_clear(platform, task, waiting, copies, logged):
    die_around_the_post(task, copies, **waiting)
    platform.sim.add_agent("agent-1", run_seconds=600)
    AgentsHook().execute_agent("agent-1")
    platform.advance(40)
    task.clear(keep_state=False)
    assert [run(operator(**waiting), task)["id"]] == platform.executions()
    said = logged()
    assert NOT_CANCELLED in said
    assert "it can be another's" in said


def test_a_run_that_ended_after_its_worker_died_in_the_post_is_followed_by_a_new_one(platform, task, waiting, copies):
    die_around_the_post(task, copies, **waiting)
    AgentsHook().execute_agent("agent-1")
    platform.advance(300)
    task.clear(keep_state=False)
    assert run(operator(**waiting), task)["id"] == platform.executions()[1]


def test_a_run_of_which_it_is_not_certain_yet_that_it_is_the_tasks_own_is_waited_for(platform, task, copies, logged):
    die_around_the_post(task, copies)
    AgentsHook().execute_agent("agent-1")
    platform.advance(20)
    task.clear(keep_state=False)
    assert [run(operator(), task)["id"]] == platform.executions()
    assert "Its run may be still running and cannot be cancelled" in logged()


def test_where_no_run_has_appeared_a_cleared_task_starts_one(platform, task, waiting, copies):
    die_around_the_post(task, copies, **waiting)
    assert len(copies) == 1
    task.clear(keep_state=False)
    assert [run(operator(**waiting), task)["id"]] == platform.executions()
    assert under_way(copies) == []


def test_on_ambiguous_fail_pays_for_no_second_run_after_a_clear(platform, task, waiting, copies):
    die_around_the_post(task, copies, on_ambiguous="fail", **waiting)
    platform.sim.add_agent("agent-1", run_seconds=600)
    AgentsHook().execute_agent("agent-1")
    platform.advance(40)
    task.clear(keep_state=False)
    with pytest.raises(AirflowFailException, match="the answer to its POST was lost"):
        run(operator(on_ambiguous="fail", **waiting), task)
    assert len(platform.executions()) == 1
    # As the error says, the next clear is for a new run.
    assert under_way(copies) == []


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_post_leaves_no_copy(platform, task, copies, status):
    platform.sim.faults.append(Fault(kind="status", status=status, method="POST"))
    with pytest.raises(AirflowFailException, match=str(status)):
        run(operator(), task)
    assert under_way(copies) == []


# --- when a copy is not used ---


class Watched:
    """Refuse every use of the copies."""

    def __init__(self, copies):
        self.reads = []
        read = copies.read
        copies.read = lambda key: self.reads.append(key) or read(key)


def test_a_copy_is_read_only_in_a_later_try_with_an_empty_store(platform, task, copies, monkeypatch):
    watched = Watched(copies)
    platform.sim.add_agent("agent-1", run_seconds=600)
    stop_while_waiting(operator(), task, monkeypatch)
    stop_while_waiting(operator(), task, monkeypatch)
    task.clear(keep_state=True)
    stop_while_waiting(operator(), task, monkeypatch)
    assert watched.reads == []
    task.clear(keep_state=False)
    stop_while_waiting(operator(), task, monkeypatch)
    assert watched.reads == list(copies)


def test_durable_false_keeps_no_copy(platform, task, waiting, copies, monkeypatch):
    platform.sim.add_agent("agent-1", run_seconds=600)
    stop_while_waiting(operator(durable=False, **waiting), task, monkeypatch)
    assert under_way(copies) == []
    task.clear(keep_state=False)
    run(operator(durable=False, **waiting), task)
    assert len(platform.executions()) == 2


def test_where_clears_keep_the_state_there_is_no_copy(platform, task, waiting, copies, monkeypatch):
    let_clears_discard_state(monkeypatch, discard=False)
    stop_while_waiting(operator(**waiting), task, monkeypatch)
    assert under_way(copies) == []


@pytest.mark.parametrize("changed", [{"agent_id": "agent-2"}, {"agents_conn_id": "other"}])
def test_another_agent_or_connection_does_not_find_the_copy(platform, task, copies, monkeypatch, changed):
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", json.dumps({"conn_type": "agents", "host": platform.url, "password": KEY}))
    platform.sim.add_agent("agent-1", run_seconds=600)
    platform.sim.add_agent("agent-2")
    stop_while_waiting(operator(), task, monkeypatch)
    (key,) = copies
    task.clear(keep_state=False)
    run(operator(**changed), task)
    assert len(platform.executions()) == 2
    # Its run is left alone, and found if the arguments are changed back.
    assert under_way(copies) == [key]


# --- Variables that cannot be used ---


def refuse(*_arguments):
    raise RuntimeError("the API server is away")


def refuse_ends(copies):
    """Let no copy say that its run has ended."""
    write = copies.write
    copies.write = lambda key, text, about: refuse() if '"ended"' in text else write(key, text, about)


def test_a_copy_that_cannot_be_written_fails_no_task(platform, task, waiting, copies, logged):
    copies.write = refuse
    assert [run(operator(**waiting), task)["id"]] == platform.executions()
    assert "could not be written. If the task is cleared while its run is still running, a second run" in logged()


def test_a_copy_that_cannot_be_changed_fails_no_task_and_a_clear_starts_a_new_run(
    platform, task, waiting, copies, logged
):
    refuse_ends(copies)
    assert [run(operator(**waiting), task)["id"]] == platform.executions()
    assert "could not be changed. A try that finds the copy sees that the run has ended." in logged()
    task.clear(keep_state=False)
    assert run(operator(**waiting), task)["id"] == platform.executions()[1]


@pytest.mark.parametrize("broken", ["no answer", "no JSON", "{}", "another task's", '{"version": 9}'])
def test_a_copy_that_cannot_be_read_fails_no_task(platform, task, copies, monkeypatch, logged, broken):
    platform.sim.add_agent("agent-1", run_seconds=600)
    stop_while_waiting(operator(), task, monkeypatch)
    (key,) = copies
    if broken == "no answer":
        copies.read = refuse
    elif broken == "another task's":
        text = json.loads(copies[key])
        text["place"]["task_id"] = "other"
        copies[key] = json.dumps(text)
    else:
        copies[key] = broken
    task.clear(keep_state=False)
    run(operator(), task)
    assert len(platform.executions()) == 2
    assert "could not be read. If an earlier try has started a run that is still running, the task starts" in logged()


# --- a task that ends in its trigger ---


@pytest.fixture
def in_a_task(monkeypatch):
    """A trigger knows the try that it runs for, as it does in a triggerer."""
    monkeypatch.setattr(AgentRunTrigger, "task_instance", SimpleNamespace(try_number=1), raising=False)


def end_in_the_trigger(task):
    with pytest.raises(TaskDeferred) as deferred:
        operator(end_from_trigger=True).execute(task.context())
    _, kwargs = deferred.value.trigger.serialize()
    return asyncio.run(first_event(AgentRunTrigger(**json.loads(json.dumps(kwargs)))))


@needs_airflow("3.3")
def test_a_trigger_that_ends_the_task_says_so_in_the_copy(platform, task, copies, in_a_task):
    assert end_in_the_trigger(task).task_instance_state == "success"
    assert under_way(copies) == []
    task.clear(keep_state=False)
    end_in_the_trigger(task)
    assert len(platform.executions()) == 2


@needs_airflow("3.3")
def test_a_copy_that_a_trigger_cannot_change_fails_no_task(platform, task, copies, in_a_task, logged):
    refuse_ends(copies)
    assert end_in_the_trigger(task).task_instance_state == "success"
    assert (
        "may not have been changed (RuntimeError). A try that finds the copy sees that the run has ended." in logged()
    )


@needs_airflow("3.3")
def test_a_trigger_does_not_wait_for_the_change(platform, task, copies, in_a_task):
    order, read = [], copies.read
    copies.read = lambda key: order.append("the copy") or read(key)

    async def end(trigger):
        async for _ in trigger.run():
            order.append("the end")
            await asyncio.sleep(1)

    with pytest.raises(TaskDeferred) as deferred:
        operator(end_from_trigger=True).execute(task.context())
    asyncio.run(end(deferred.value.trigger))
    assert order == ["the end", "the copy"]


@needs_airflow("3.3")
def test_a_trigger_leaves_the_copy_where_a_worker_ends_the_task(platform, task, copies):
    # As in `dag.test()`: a trigger without a task resumes the worker.
    end_in_the_trigger(task)
    assert len(copies) == 1


def test_a_trigger_deletes_nothing_but_copies():
    with pytest.raises(Exception, match="must be the key of a record's copy"):
        AgentRunTrigger(
            agents_conn_id="c", submission={"agent_id": "a", "taken_at": "2026-01-01T09:00:00Z"}, poll_interval=5.0,
            deadline_at="2026-01-02T09:00:00+00:00", settle=30.0, appear_within=300.0, on_ambiguous="all",
            copy_key="a_variable_of_somebody",
        )  # fmt: skip


# --- what a copy holds ---


def test_a_copy_says_whose_it_is_and_until_when_and_holds_no_key(platform, task, copies, monkeypatch):
    described = []
    write = copies.write
    copies.write = lambda key, text, description: described.append(description) or write(key, text, description)
    stop_while_waiting(operator(timeout=timedelta(days=2)), task, monkeypatch)
    ((key, text),) = copies.items()
    assert key.startswith(prefix_of("agents_default", "agent-1"))
    copy = RecordCopy.kept_under(key, text)
    assert (copy.place.name, copy.record.submission.agent_id) == ("dag.run", "agent-1")
    assert copy.until >= datetime.now(UTC) + timedelta(days=32) - timedelta(minutes=1)
    assert copy.record.result is None
    assert "Agent agent-1 may be running for task dag.run of DAG run manual." in described[0]
    assert KEY not in text + "".join(described)


def test_airflow_takes_nothing_of_a_copy_for_a_secret(platform, task, copies, monkeypatch):
    try:
        from airflow.sdk._shared.secrets_masker import redact, should_hide_value_for_key
    except ImportError:  # where it was before Airflow 3.2
        from airflow.sdk.execution_time.secrets_masker import redact, should_hide_value_for_key

    stop_while_waiting(operator(), task, monkeypatch)
    ((key, text),) = copies.items()
    assert not should_hide_value_for_key(key)
    assert redact(json.loads(text), key) == json.loads(text)


# --- what a log line or an error says of the next try ---


def test_what_a_next_try_will_do_is_true_of_this_airflow(platform, task, waiting):
    platform.sim.add_agent("agent-1", run_seconds=600)
    with pytest.raises(AgentRunTimeoutError, match="A retry or clear waits for the same run again") as late:
        run(operator(timeout=60, **waiting), task)
    newer = 'If the run has ended by then, a clear starts a new run, unless "Keep task state and resume" is ticked.'
    assert (newer in str(late.value)) is (AIRFLOW >= (3, 4))
