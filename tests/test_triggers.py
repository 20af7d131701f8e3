"""The triggers by themselves, over HTTP against the simulator: a task's end in the triggerer, and the watcher."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred
from airflow.triggers.base import BaseEventTrigger
from conftest import KEY, connection, needs_airflow

from airflow_provider_agents.api.errors import AgentRunFailedError, AmbiguousAgentRunError, InvalidArgumentError
from airflow_provider_agents.operators import RECORD_KEY, ExecuteAgentOperator
from airflow_provider_agents.simulator import World
from airflow_provider_agents.triggers import (
    CURSOR_KEY,
    AgentRunEventTrigger,
    AgentRunTrigger,
    UnknownTriggerEventError,
    finished_runs,
)

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
    platform.sim.world = World(record_lag=lambda rng: next(lags, 0.0))
    return lambda: platform.sim.start_scheduled_run("agent-1", after=100)


_LATE = "No event of this run appeared within 30 seconds"


def test_a_run_that_appears_late_is_taken_with_a_warning_and_not_shown_as_the_tasks_own(platform, task, late, logged):
    op, trigger = deferred_by(task)
    theirs = late()
    event = asyncio.run(first_event(trigger))
    assert op.execute_complete(task.resumed(), json.loads(json.dumps(event.payload)))["id"] == theirs
    assert logged().count(_LATE) == 1
    assert {"event_id", "usage"}.isdisjoint(task.xcoms)


def test_a_run_that_appears_late_is_refused_where_a_task_takes_nothing_that_may_be_anothers(
    platform, task, late, logged
):
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
    assert event.xcoms.keys() == {"return_value"}
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
        ({"outlets": [1]}, "its outlets: the asset events would never come"),
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
    assert "A worker ends this task, not its trigger, which would lose its outlets" in logged()
    assert task.store[RECORD_KEY]["ends_in_trigger"] is False


def test_an_older_airflow_says_so(monkeypatch):
    monkeypatch.setattr("airflow_provider_agents.tasks.TRIGGERS_END_TASKS", False)
    with pytest.raises(InvalidArgumentError, match=r"end_from_trigger needs Airflow 3\.3 or newer; leave it out"):
        ExecuteAgentOperator(task_id="run", agent_id="agent-1", end_from_trigger=True)


# --- the watcher ---


class AssetState(dict):
    """The state of an asset as a trigger sees it."""

    async def aget(self, key, default=None):
        return self.get(key, default)

    async def aset(self, key, value):
        self[key] = json.loads(json.dumps(value))


def watch(platform, seconds, *, state=None, then=lambda: None, **arguments):
    """Watch for so many virtual seconds, and stop as a triggerer stops; what was told, a list for each event."""
    _, kwargs = AgentRunEventTrigger(**arguments).serialize()
    trigger = AgentRunEventTrigger(**json.loads(json.dumps(kwargs)))
    trigger.asset_state_store = state
    told = []

    async def listen():
        async with aclosing(trigger.run()) as events:
            async for event in events:
                # One by one: what was told before the end must be seen.
                told.append([run["id"] for run in event.payload["runs"]])  # noqa: PERF401

    async def main():
        asyncio.get_running_loop().call_later(1.0, then)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(listen(), seconds)

    asyncio.run(main())
    return told


def flat(told):
    return [event_id for ids in told for event_id in ids]


def test_what_ends_in_one_sweep_is_one_event(platform):
    platform.sim.add_agent("agent-2", queue_seconds=0.0, run_seconds=3.0)
    started = []
    told = watch(
        platform,
        60,
        state=AssetState(),
        then=lambda: started.extend(platform.sim.start_scheduled_run("agent-2") for _ in range(5)),
    )
    assert [sorted(ids) for ids in told] == [sorted(started)]


@pytest.mark.parametrize(("statuses", "told"), [(["COMPLETED"], 0), (["FAILED"], 1), (("FAILED", "COMPLETED"), 1)])
def test_only_the_ends_that_are_wanted_are_told(platform, statuses, told):
    platform.sim.add_agent("agent-1", run_seconds=3.0, end_status="FAILED")
    platform.sim.start_scheduled_run("agent-1")
    assert len(watch(platform, 60, state=AssetState(), statuses=statuses)) == told


def test_only_the_agent_that_is_wanted_is_told(platform):
    platform.sim.add_agent("agent-2", run_seconds=3.0)
    platform.sim.start_scheduled_run("agent-1")
    mine = platform.sim.start_scheduled_run("agent-2")
    assert flat(watch(platform, 60, state=AssetState(), agent_id="agent-2")) == [mine]


def test_a_row_that_cannot_be_read_keeps_no_watcher_from_starting_and_is_told_once_it_can_be(platform, caplog):
    platform.sim.add_agent("agent-2", queue_seconds=0.0, run_seconds=3.0)
    odd, event, state = platform.sim.start_scheduled_run("agent-1"), platform.sim._event, AssetState()
    platform.sim._event = lambda run, now: {**event(run, now), **({"status": None} if run.event_id == odd else {})}
    fine = []
    told = watch(platform, 300, state=state, then=lambda: fine.append(platform.sim.start_scheduled_run("agent-2")))
    assert flat(told) == fine
    assert caplog.text.count(f"agent=agent-1 event={odd}") == 1
    platform.pass_time(3600)
    platform.sim._event = event
    assert flat(watch(platform, 60, state=state)) == [odd]


def test_the_first_look_ever_replays_nothing(platform):
    state = AssetState()
    assert watch(platform, 60, state=state) == []
    assert state[CURSOR_KEY]["floor"]


def test_a_restart_loses_nothing_and_the_cursor_moves_late(platform):
    state = AssetState()
    watch(platform, 30, state=state)
    first = platform.sim.start_scheduled_run("agent-1")
    # Ends after some 7 s; the triggerer dies before that was kept for certain.
    told = flat(watch(platform, 12, state=state))
    assert told == [first]
    assert first not in state[CURSOR_KEY].get("told", ())
    second = platform.sim.start_scheduled_run("agent-1")
    platform.pass_time(3600)
    # The repetition can be told by its id.
    assert flat(watch(platform, 60, state=state)) == [first, second]
    platform.pass_time(3600)
    assert watch(platform, 60, state=state) == []


def test_the_cursor_is_written_when_there_is_news_and_else_rarely(platform):
    writes = []

    class Counting(AssetState):
        async def aset(self, key, value):
            writes.append(value)
            await super().aset(key, value)

    watch(platform, 1000, state=Counting())
    assert 2 <= len(writes) <= 6


def test_a_state_that_cannot_be_used_for_a_while_loses_nothing(platform, logged):
    state = AssetState()
    watch(platform, 30, state=state)
    missed = platform.sim.start_scheduled_run("agent-1")
    platform.pass_time(600)

    class Failing(AssetState):
        reads = 0

        async def aget(self, key, default=None):
            self.reads += 1
            if self.reads <= 3:
                raise RuntimeError("the API server restarts")
            return await super().aget(key, default)

        async def aset(self, key, value):
            raise RuntimeError("the API server restarts")

    assert flat(watch(platform, 60, state=Failing(state))) == [missed]
    said = logged()
    assert said.count("The state of the asset cannot be read") == 3
    assert "cursor could not be kept" in said


def test_an_airflow_without_asset_state_starts_from_now_and_says_so(platform, logged):
    platform.sim.start_scheduled_run("agent-1")
    platform.pass_time(100)
    assert watch(platform, 60) == []
    assert "keeps no state of assets" in logged()


def test_a_cursor_that_cannot_be_read_starts_from_now_and_says_so(platform, logged):
    assert watch(platform, 60, state=AssetState({CURSOR_KEY: "nonsense"})) == []
    assert "cannot be read: watching from now on" in logged()


def test_a_trigger_that_watches_several_assets_has_one_cursor(platform):
    states = {name: AssetState() for name in ("b", "a")}
    watch(platform, 30, state=SimpleNamespace(_by_name=states, _by_uri={}))
    assert CURSOR_KEY in states["a"]
    assert states["b"] == {}


def test_a_refused_key_ends_no_watch(platform, monkeypatch, logged):
    state = AssetState()
    watch(platform, 30, state=state)
    platform.sim.start_scheduled_run("agent-1")
    platform.sim.api_keys = ("another",)

    def mend():
        asyncio.get_running_loop().call_later(30.0, lambda: setattr(platform.sim, "api_keys", (KEY,)))

    assert len(flat(watch(platform, 120, state=state, then=mend))) == 1
    assert "The watch cannot go on" in logged()


def test_a_wrong_connection_is_said_and_tried_again(platform, monkeypatch, logged):
    monkeypatch.setenv("AIRFLOW_CONN_AGENTS_DEFAULT", connection("no-scheme.example"))
    assert watch(platform, 200) == []
    assert logged().count("The watch cannot go on") == 4


def test_a_watcher_is_known_again_by_its_arguments():
    one = AgentRunEventTrigger(statuses=("FAILED", "COMPLETED"), poll_interval=5)
    path, kwargs = one.serialize()
    again = AgentRunEventTrigger(**json.loads(json.dumps(kwargs)))
    assert again.serialize() == (path, kwargs)
    other = AgentRunEventTrigger(statuses=["COMPLETED", "FAILED"], poll_interval=5.0)
    assert BaseEventTrigger.hash(*one.serialize()) == BaseEventTrigger.hash(*other.serialize())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"agent_id": " "}, "agent"),
        ({"statuses": "COMPLETED"}, "must be a list"),
        ({"statuses": []}, "must be a list"),
        ({"statuses": [None]}, "must be a list"),
        ({"statuses": ["RUNNING", "COMPLETED"]}, "No run ends as RUNNING"),
        ({"poll_interval": 0.1}, "poll_interval"),
        ({"poll_interval": float("nan")}, "poll_interval"),
        ({"settle": -1}, "settle"),
        ({"settle": 1e300}, "settle"),
        ({"settle": True}, "settle"),
    ],
)
def test_a_wrong_argument_is_refused_when_the_dag_is_parsed(wrong, words):
    with pytest.raises(InvalidArgumentError, match=words):
        AgentRunEventTrigger(**wrong)


# --- what a DAG makes of it ---


def asset_event(*ids, **payload):
    payload = {"kind": "finished_runs", "version": 1, "runs": [{"id": one} for one in ids], **payload}
    return SimpleNamespace(extra={"from_trigger": True, "payload": payload})


def test_the_runs_of_several_events_are_each_told_once():
    events = [asset_event("a", "b"), asset_event("b", "c"), SimpleNamespace(extra={"by": "a person"})]
    assert [run["id"] for run in finished_runs(events)] == ["a", "b", "c"]
    assert finished_runs([SimpleNamespace(extra=None)]) == []


def test_what_an_earlier_dag_run_was_told_is_dropped():
    class Store(dict):
        set = dict.__setitem__

    store = Store()
    assert [run["id"] for run in finished_runs([asset_event("a", "b")], remembered=store)] == ["a", "b"]
    assert [run["id"] for run in finished_runs([asset_event("b", "c")], remembered=store)] == ["c"]
    many = [str(number) for number in range(5000)]
    finished_runs([asset_event(*many)], remembered=store)
    assert len(json.dumps(store)) < 64 * 1024


def test_an_event_of_another_version_is_refused():
    with pytest.raises(UnknownTriggerEventError):
        finished_runs([asset_event("a", version=2)])


def test_time_in_these_tests_is_their_own(platform):
    before = datetime.now(UTC)
    watch(platform, 300)
    assert (datetime.now(UTC) - before).total_seconds() >= 300
