"""The operator, over HTTP against the simulator: what a task does in each of its tries."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException, TaskDeferred
from airflow.sdk import DAG
from conftest import KEY, DyingStore, Killed, Task, connection, needs_airflow
from refusals import ERROR_OF, refuse

from airflow_provider_agents.api.errors import (
    AgentBusyError,
    AgentRunFailedError,
    AgentRunNotFoundError,
    AgentRunTimeoutError,
    AgentsError,
    AmbiguousAgentRunError,
    AuthenticationError,
    InvalidArgumentError,
    InvalidConnectionError,
    MissingConnectionError,
    NoAnswerError,
    NotFoundError,
    RateLimitedError,
    ServerError,
    TemporaryError,
)
from airflow_provider_agents.hooks import AgentsHook
from airflow_provider_agents.operators import ExecuteAgentOperator
from airflow_provider_agents.payloads import RunEnded
from airflow_provider_agents.simulator import Fault
from airflow_provider_agents.task_state import RECORD_KEY
from airflow_provider_agents.triggers import AgentIdleTrigger, AgentRunTrigger
from airflow_provider_agents.versioned_json import UnusableDataError


def operator(**arguments):
    arguments = {"task_id": "run", "agent_id": "agent-1", "deferrable": False, **arguments}
    return ExecuteAgentOperator(**arguments)


async def first_event(trigger):
    async for event in trigger.run():
        return event
    raise AssertionError("the trigger ended without an event")


def through_the_trigger(op, task, method="execute", **kwargs):
    """One try from its start to its end, deferred as often as it wants; what goes over is what is serialised."""
    call, context, arguments = getattr(op, method), task.context(), kwargs
    while True:
        try:
            return call(context, **arguments)
        except TaskDeferred as deferred:
            path, trigger_arguments = deferred.trigger.serialize()
            trigger = {"AgentRunTrigger": AgentRunTrigger, "AgentIdleTrigger": AgentIdleTrigger}[
                path.rpartition(".")[2]
            ](**trigger_arguments)
            event = asyncio.run(first_event(trigger))
            call, context = getattr(op, deferred.method_name), task.resumed()
            arguments = {"event": event.payload, **(deferred.kwargs or {})}


def run(op, task):
    return through_the_trigger(op, task)


@pytest.fixture(params=["on the worker", "deferred"])
def waiting(request):
    return {"deferrable": request.param == "deferred"}


# --- the good end ---


def test_the_final_event_of_its_own_run_is_returned(platform, task, waiting):
    platform.sim.config = platform.sim.config.__class__(record_lag=0.5)
    event = run(operator(**waiting), task)
    (mine,) = platform.executions()
    assert (event["id"], event["status"]) == (mine, "COMPLETED")
    assert task.xcoms["request_id"] == platform.sim.executions[0].request_id
    assert task.xcoms["event_id"] == mine
    assert task.xcoms["usage"] == {
        "finalModel": "claude-3-7-sonnet",
        "browserStepCount": 3,
        "browserSessionSeconds": 5,
        "duration_seconds": 5.0,
        "try_number": 1,
    }


def test_a_task_that_does_not_wait_returns_its_submission(platform, task):
    submission = run(operator(wait_for_completion=False), task)
    assert submission["request_id"] == platform.sim.executions[0].request_id
    assert submission["agent_id"] == "agent-1"
    assert platform.slept == []


def test_do_xcom_push_false_pushes_nothing(platform, task):
    run(operator(do_xcom_push=False), task)
    assert task.xcoms == {}


def test_airflows_own_time_out_comes_after_the_tasks_deadline(platform, task):
    with pytest.raises(TaskDeferred) as deferred:
        operator(deferrable=True, timeout=600, poll_interval=5).execute(task.context())
    assert deferred.value.timeout > timedelta(seconds=605)
    assert KEY not in repr(deferred.value.trigger)


# --- the bad ends ---


def test_a_failed_run_fails_the_try_and_a_retry_starts_a_new_one(platform, task, waiting):
    platform.sim.add_agent("agent-1", end_status="FAILED", error="out of luck")
    with pytest.raises(
        AgentRunFailedError, match="out of luck.*A new run starts if the task is retried or cleared"
    ) as caught:
        run(operator(**waiting), task)
    assert caught.value.event_ids == (platform.executions()[0],)
    assert task.xcoms["usage"]["try_number"] == 1
    platform.sim.add_agent("agent-1")
    assert run(operator(**waiting), task)["id"] == platform.executions()[1]


def test_a_run_that_is_not_over_in_time_is_taken_up_by_the_retry(platform, task, waiting):
    platform.sim.add_agent("agent-1", run_seconds=100.0)
    with pytest.raises(AgentRunTimeoutError, match="is still running. A retry or clear waits for the same run"):
        run(operator(timeout=60, **waiting), task)
    assert run(operator(timeout=60, **waiting), task)["id"] == platform.executions()[0]
    assert len(platform.executions()) == 1


def test_the_last_look_at_the_deadline_counts(platform, task, waiting):
    platform.sim.add_agent("agent-1", run_seconds=58.5, queue_seconds=0.0)
    event = run(operator(timeout=timedelta(seconds=60), poll_interval=50.0, **waiting), task)
    assert event["status"] == "COMPLETED"


def test_a_run_without_an_event_is_said_to_be_lost(platform, task, waiting):
    platform.sim.config = platform.sim.config.__class__(record_lag=10_000.0)
    with pytest.raises(AgentRunNotFoundError, match="may have started all the same.*A retry looks for it first"):
        run(operator(**waiting), task)


def test_runs_that_end_differently_and_cannot_be_told_apart_fail_for_good(platform, task, waiting):
    ends = iter(["COMPLETED", "FAILED"])
    platform.sim.add_agent("agent-1", end_status=lambda rng: next(ends), schedule_every=1000.0, schedule_offset=2.0)
    with pytest.raises(AirflowFailException, match="cannot be told apart") as caught:
        run(operator(**waiting), task)
    assert isinstance(caught.value.__cause__, AmbiguousAgentRunError)
    assert set(caught.value.__cause__.event_ids) >= set(platform.executions())
    assert len(caught.value.__cause__.event_ids) == 2


def test_runs_that_all_completed_are_a_success_whichever_is_ours(platform, task, waiting):
    platform.sim.add_agent("agent-1", schedule_every=1000.0, schedule_offset=2.0)
    assert run(operator(**waiting), task)["status"] == "COMPLETED"
    assert "event_id" not in task.xcoms or task.xcoms["event_id"] == platform.executions()[0]


def test_on_ambiguous_fail_takes_no_chances(platform, task, waiting):
    platform.sim.add_agent("agent-1", schedule_every=1000.0, schedule_offset=2.0)
    with pytest.raises(AirflowFailException, match="cannot be told apart"):
        run(operator(on_ambiguous="fail", **waiting), task)


# --- what no retry can mend ---


@pytest.mark.parametrize(
    ("variable", "cause", "words"),
    [
        (
            "agents://:sk-geheim@api.example?x=%zz&__extra__={",
            InvalidConnectionError,
            "not a JSON object|cannot be read",
        ),
        (connection("http://127.0.0.1:1", password=""), InvalidConnectionError, "no API key"),
        (connection("http://127.0.0.1:1", password="***"), InvalidConnectionError, "asterisks"),
        (connection("api.uragents.ai"), InvalidConnectionError, "has no scheme"),
        (connection("http://api.example"), InvalidConnectionError, "unencrypted"),
    ],
)
def test_a_connection_that_cannot_work_fails_for_good(platform, task, monkeypatch, variable, cause, words):
    monkeypatch.setenv("AIRFLOW_CONN_AGENTS_DEFAULT", variable)
    with pytest.raises(AirflowFailException, match=words) as caught:
        run(operator(), task)
    assert isinstance(caught.value.__cause__, cause)
    assert "geheim" not in str(caught.value)
    assert platform.executions() == []


def when_slept(platform, monkeypatch, seconds, change):
    """Do something once a task has slept that long."""
    until = platform.sim.clock() + timedelta(seconds=seconds)

    def sleep(slept):
        platform.advance(slept)
        if platform.sim.clock() >= until:
            change()

    monkeypatch.setattr(time, "sleep", sleep)


def test_a_missing_connection_is_looked_up_for_two_minutes_and_costs_no_retry(
    platform, task, monkeypatch, logged, waiting
):
    monkeypatch.delenv("AIRFLOW_CONN_AGENTS_DEFAULT")
    with pytest.raises(MissingConnectionError, match="does not exist.*the last 120 seconds has failed"):
        run(operator(**waiting), task)
    assert sum(platform.slept) == pytest.approx(120.0)
    assert logged().count("Trying again until 09:02:00 UTC.") == 2


@pytest.mark.parametrize("tries_before", [0, 1])
def test_a_connection_that_is_not_found_for_a_while_delays_a_try(platform, task, monkeypatch, waiting, tries_before):
    if tries_before:
        with pytest.raises(AgentRunTimeoutError):
            run(operator(timeout=30.0, **waiting), task)
    found = connection(platform.url)
    monkeypatch.delenv("AIRFLOW_CONN_AGENTS_DEFAULT")
    when_slept(platform, monkeypatch, 60, lambda: monkeypatch.setenv("AIRFLOW_CONN_AGENTS_DEFAULT", found))
    assert [run(operator(**waiting), task)["id"]] == platform.executions()


def test_a_connection_missing_after_a_401_does_not_fail_the_wait_on_a_worker(platform, task, monkeypatch):
    platform.sim.add_agent("agent-1", run_seconds=100.0)

    def rotate():
        platform.sim.api_keys = ("the-new-key",)
        monkeypatch.delenv("AIRFLOW_CONN_AGENTS_DEFAULT", raising=False)
        found = connection(platform.url, password="the-new-key")
        when_slept(platform, monkeypatch, 60, lambda: monkeypatch.setenv("AIRFLOW_CONN_AGENTS_DEFAULT", found))

    when_slept(platform, monkeypatch, 40, rotate)
    assert [run(operator(), task)["id"]] == platform.executions()


#: What a platform in the middle of a deploy answers.
HICCUPS = {
    "reset": Fault(kind="reset_before", times=None),
    "500": Fault(kind="status", status=500, times=None),
    "503": Fault(kind="status", status=503, times=None, headers={"Retry-After": "5"}),
    "429": Fault(kind="status", status=429, times=None),
    "html": Fault(kind="html", times=None),
}


@pytest.mark.parametrize("seconds", [20, 110])
@pytest.mark.parametrize("hiccup", HICCUPS)
@pytest.mark.parametrize("step", ["snapshot", "if_running", "record", "lost POST", "POST"])
def test_a_platform_that_hiccups_before_the_start_fails_no_task(
    platform, task, waiting, monkeypatch, step, hiccup, seconds
):
    arguments = dict(waiting)
    if step == "if_running":
        arguments["if_running"] = "fail"
    elif step == "record":
        platform.sim.add_agent("agent-1", run_seconds=400.0)
        with pytest.raises(AgentRunTimeoutError):
            run(operator(timeout=30.0, **waiting), task)
    elif step == "lost POST":
        context = task.context()
        context["task_state_store"] = DyingStore(task.store, "submitting", "after")
        with pytest.raises(Killed):
            operator(**waiting).execute(context)
    fault = replace(HICCUPS[hiccup], method="POST" if step == "POST" else None)
    platform.sim.faults.append(fault)
    when_slept(platform, monkeypatch, seconds, platform.sim.faults.clear)
    if step == "POST" and seconds > 100 and hiccup not in {"429", "html"}:
        # Each of these POSTs is looked for, and there are at most three.
        with pytest.raises(TemporaryError):
            run(operator(**arguments), task)
        assert platform.executions() == []
    else:
        assert [run(operator(**arguments), task)["id"]] == platform.executions()


def test_a_platform_that_is_down_longer_fails_the_try_and_the_log_says_until_when(platform, task, logged):
    platform.sim.faults.append(Fault(kind="status", status=503, times=None))
    with pytest.raises(ServerError, match="503.*(Every try of the last 120|asks for a pause)"):
        run(operator(), task)
    assert logged().count("Trying again until 09:02:00 UTC.") == 2
    # Less than a second can be left, and then the second that the server asks for is too long.
    assert 119.0 <= sum(platform.slept) <= 120.001


@pytest.mark.parametrize(("seconds", "fits"), [(100, True), (130, False)])
def test_a_pause_that_the_platform_asks_for_is_kept_or_ends_the_try(platform, task, seconds, fits):
    platform.sim.faults.append(Fault(kind="status", status=503, method="GET", headers={"Retry-After": str(seconds)}))
    if fits:
        run(operator(), task)
        assert 100.0 in platform.slept
    else:
        with pytest.raises(ServerError, match="asks for a pause of 130 seconds, and this task tries for 120 more"):
            run(operator(), task)
        assert platform.slept == []


def test_a_wrong_key_fails_for_good_before_anything_is_started(platform, task):
    platform.sim.api_keys = ("another-key",)
    with pytest.raises(AirflowFailException, match="401") as caught:
        run(operator(), task)
    assert isinstance(caught.value.__cause__, AuthenticationError)
    # What it says is on the page, and no traceback between it and the reader.
    assert caught.value.__cause__.__traceback__ is None


def test_an_unknown_agent_fails_for_good(platform, task):
    with pytest.raises(AirflowFailException, match="404") as caught:
        run(operator(agent_id="agent-unknown"), task)
    assert isinstance(caught.value.__cause__, NotFoundError)


def test_a_host_that_cannot_be_reached_is_worth_a_retry(platform, task, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_AGENTS_DEFAULT", connection("http://127.0.0.1:1"))
    with pytest.raises(AgentsError, match=r"No connection to 127\.0\.0\.1"):
        run(operator(), task)
    assert platform.executions() == []


@pytest.mark.parametrize("kind", ["html", "truncated", "empty", "garbage", "wrong_shape"])
def test_an_answer_that_is_none_stops_the_task_before_anything_is_started(platform, task, kind):
    platform.sim.faults.append(Fault(kind=kind, times=None))
    with pytest.raises(AgentsError, match="listing the events"):
        run(operator(), task)
    assert platform.executions() == []


def test_a_key_that_is_revoked_while_the_run_goes_on_names_the_run(platform, task):
    with pytest.raises(TaskDeferred) as deferred:
        operator(deferrable=True).execute(task.context())
    platform.sim.api_keys = ("another-key",)
    event = asyncio.run(first_event(deferred.value.trigger))
    with pytest.raises(AirflowFailException, match="The wait for the run has failed.*401.*the same run again"):
        operator(deferrable=True).execute_complete(task.resumed(), event=event.payload, **deferred.value.kwargs)
    platform.sim.api_keys = (KEY,)
    task.clear()
    assert run(operator(deferrable=True), task)["id"] == platform.executions()[0]
    assert len(platform.executions()) == 1


def test_a_key_that_is_rotated_while_the_run_goes_on_is_read_again(platform, task, monkeypatch):
    with pytest.raises(TaskDeferred) as deferred:
        operator(deferrable=True).execute(task.context())

    async def wait():
        waiting = asyncio.ensure_future(first_event(deferred.value.trigger))
        await asyncio.sleep(10)
        assert platform.sim.count("GET") > 3
        platform.sim.api_keys = ("the-new-key",)
        monkeypatch.setenv("AIRFLOW_CONN_AGENTS_DEFAULT", connection(platform.url, password="the-new-key"))
        return await waiting

    event = asyncio.run(wait())
    assert event.payload["outcome"] == "completed"


def test_a_key_that_is_rotated_while_a_worker_waits_is_read_again(platform, task, monkeypatch):
    platform.sim.add_agent("agent-1", run_seconds=100.0)

    def rotate(seconds):
        platform.advance(seconds)
        if 40 < sum(platform.slept) <= 45:
            platform.sim.api_keys = ("the-new-key",)
            monkeypatch.setenv("AIRFLOW_CONN_AGENTS_DEFAULT", connection(platform.url, password="the-new-key"))

    monkeypatch.setattr(time, "sleep", rotate)
    assert [run(operator(), task)["id"]] == platform.executions()
    assert platform.sim.api_keys == ("the-new-key",)


def test_a_key_that_is_revoked_while_a_worker_waits_fails_for_good(platform, task, monkeypatch):
    platform.sim.add_agent("agent-1", run_seconds=100.0)

    def revoke(seconds):
        platform.advance(seconds)
        if sum(platform.slept) > 40:
            platform.sim.api_keys = ()

    monkeypatch.setattr(time, "sleep", revoke)
    with pytest.raises(AirflowFailException, match="401"):
        run(operator(), task)
    platform.sim.api_keys = (KEY,)
    task.clear()
    monkeypatch.setattr(time, "sleep", platform.advance)
    assert [run(operator(), task)["id"]] == platform.executions()


@pytest.mark.parametrize("status", ERROR_OF)
def test_refusals_for_some_minutes_fail_no_task_whose_run_is_under_way(platform, task, waiting, status, logged):
    platform.sim.add_agent("agent-1", queue_seconds=0.0, run_seconds=900.0)
    refuse(platform, status, after=120, seconds=240)
    assert [run(operator(**waiting), task)["id"]] == platform.executions()
    assert f"{status}: " in logged()


@pytest.mark.parametrize("status", ERROR_OF)
def test_refusals_without_an_end_fail_a_task_after_five_minutes_and_name_its_run(platform, task, waiting, status):
    platform.sim.add_agent("agent-1", queue_seconds=0.0, run_seconds=3600.0)
    began = platform.sim.clock()
    refuse(platform, status, after=120, seconds=1000)
    with pytest.raises(AirflowFailException, match=f"{status}.*Every request since 2026-01-01 09:0. *"):
        run(operator(**waiting), task)
    assert 420 <= (platform.sim.clock() - began).total_seconds() <= 420 + 200
    platform.advance(1200)
    task.clear()
    assert [run(operator(**waiting), task)["id"]] == platform.executions()


@pytest.mark.parametrize("status", ERROR_OF)
def test_a_refusal_before_the_start_fails_a_task_at_once(platform, task, waiting, status):
    refuse(platform, status, after=0, seconds=1000)
    with pytest.raises(AirflowFailException, match=f"{status}"):
        run(operator(**waiting), task)
    assert platform.slept == []


@pytest.mark.parametrize("status", ERROR_OF)
def test_refusals_for_some_minutes_fail_no_task_that_waits_for_an_idle_agent(platform, task, waiting, status):
    platform.sim.add_agent("agent-1", queue_seconds=0.0, run_seconds=900.0)
    platform.sim.start_scheduled_run("agent-1")
    platform.sim.add_agent("agent-1")
    refuse(platform, status, after=120, seconds=240)
    assert [run(operator(if_running="wait", **waiting), task)["id"]] == platform.executions()


# --- arguments ---


@pytest.mark.parametrize(
    "wrong",
    [
        {"poll_interval": 0},
        {"poll_interval": -1},
        {"poll_interval": float("nan")},
        {"poll_interval": float("inf")},
        {"poll_interval": "5"},
        {"poll_interval": True},
        {"timeout": timedelta(0)},
        {"timeout": None},
        {"timeout": 1e12},
        {"timeout": timedelta.max},
        {"settle": 1e300},
        {"settle": -3},
        {"appear_within": 10, "settle": 30},
        {"if_running": "maybe"},
        {"if_running": None},
        {"on_ambiguous": "any"},
        {"agent_id": ""},
        {"agent_id": None},
        {"agent_id": "../agents"},
    ],
)
def test_a_wrong_argument_is_refused_when_the_dag_is_parsed(wrong):
    with pytest.raises(InvalidArgumentError):
        operator(**wrong)


@pytest.mark.parametrize("agent_id", ["", "  ", ["agent-1"], 7.5])
def test_an_agent_id_that_turns_out_wrong_fails_for_good_before_anything_is_started(platform, task, agent_id):
    op = operator(agent_id="{{ params.agent }}")
    op.agent_id = agent_id
    with pytest.raises(AirflowFailException, match="agent_id"):
        run(op, task)
    assert platform.sim.requests == []


# --- a busy agent ---


def test_attach_waits_for_the_run_under_way_and_starts_none(platform, task, waiting, logged):
    theirs = platform.sim.start_scheduled_run("agent-1")
    assert run(operator(if_running="attach", **waiting), task)["id"] == theirs
    assert platform.executions() == []
    assert task.xcoms["event_id"] == theirs
    assert "The run was accepted." not in logged()


def test_wait_starts_only_when_the_agent_is_idle(platform, task, waiting):
    theirs = platform.sim.start_scheduled_run("agent-1")
    event = run(operator(if_running="wait", **waiting), task)
    (mine,) = platform.executions()
    assert event["id"] == mine
    assert platform.sim.truth(mine).accepted_at >= platform.sim.truth(theirs).ended_at


def test_wait_gives_up_at_the_deadline_and_starts_nothing(platform, task, waiting):
    platform.sim.add_agent("agent-1", run_seconds=1000.0)
    platform.sim.start_scheduled_run("agent-1")
    with pytest.raises(AgentsError, match="Nothing was started"):
        run(operator(if_running="wait", timeout=30, **waiting), task)
    assert platform.executions() == []


def test_skip_skips_as_airflow_skips(platform, task):
    platform.sim.start_scheduled_run("agent-1")
    with pytest.raises(AirflowSkipException, match="busy"):
        run(operator(if_running="skip"), task)
    assert platform.executions() == []


def test_fail_fails_the_try_and_leaves_the_retries(platform, task):
    platform.sim.start_scheduled_run("agent-1")
    with pytest.raises(AgentBusyError, match="busy.*Nothing was started.*set if_running='wait'"):
        run(operator(if_running="fail"), task)
    platform.advance(60)
    assert run(operator(if_running="fail"), task)["id"] == platform.executions()[0]


@pytest.mark.parametrize("if_running", ["attach", "wait", "skip", "fail"])
def test_an_idle_agent_is_started_whatever_is_to_be_done_about_a_busy_one(platform, task, if_running, waiting):
    assert run(operator(if_running=if_running, **waiting), task)["id"] == platform.executions()[0]


# --- exactly once ---


@pytest.mark.parametrize("kind", ["reset_after", "status", "truncated", "html"])
def test_a_run_whose_answer_was_lost_is_found_and_not_started_again(platform, task, waiting, kind):
    platform.sim.faults.append(Fault(kind=kind, method="POST", worked=True))
    event = run(operator(**waiting), task)
    assert [event["id"]] == platform.executions()


@pytest.mark.parametrize("kind", ["reset_before", "status"])
def test_a_post_that_was_lost_on_its_way_is_sent_again_after_looking(platform, task, kind):
    platform.sim.faults.append(Fault(kind=kind, method="POST"))
    event = run(operator(), task)
    assert [event["id"]] == platform.executions()
    assert platform.sim.count("POST") == 2
    assert platform.sim.executions[0].accepted_at >= platform.sim.requests[0].at + timedelta(seconds=30)


def test_at_most_three_posts_are_sent(platform, task):
    platform.sim.faults.append(Fault(kind="reset_before", method="POST", times=None))
    with pytest.raises(NoAnswerError):
        run(operator(), task)
    assert platform.sim.count("POST") == 3
    assert task.store[RECORD_KEY]["phase"] == "submitting"


def test_a_rate_limit_delays_a_post(platform, task):
    platform.sim.faults.append(Fault(kind="status", status=429, method="POST", headers={"Retry-After": "40"}))
    run(operator(), task)
    assert 40.0 in platform.slept
    assert len(platform.executions()) == 1


@pytest.mark.parametrize(
    ("status", "retry_after", "ends"),
    [(429, "30", Killed), (429, "3000", RateLimitedError), (401, None, AirflowFailException)],
)
def test_a_refused_post_leaves_no_doubt_and_the_retry_adopts_no_other_run(
    platform, task, monkeypatch, logged, status, retry_after, ends
):
    headers = {"Retry-After": retry_after} if retry_after else {}
    platform.sim.faults.append(Fault(kind="status", status=status, method="POST", headers=headers))

    def die(_seconds):
        raise Killed

    with monkeypatch.context() as dying:
        dying.setattr(time, "sleep", die)
        with pytest.raises(ends):
            operator().execute(task.context())
    assert "It is not known whether" not in logged()
    platform.advance(1)
    platform.sim.start_scheduled_run("agent-1")
    platform.advance(30)
    assert [run(operator(), task)["id"]] == platform.executions()


def test_a_run_that_began_late_in_a_request_that_died_is_found(platform, task, logged):
    # A request may take two minutes as a whole, so that long after it was sent the platform may still act on it.
    context = task.context()
    context["task_state_store"] = DyingStore(task.store, "submitting", "after")
    with pytest.raises(Killed):
        operator().execute(context)
    platform.advance(100)
    AgentsHook().execute_agent("agent-1")
    assert [run(operator(), task)["id"]] == platform.executions()
    # Nobody can tell that it was this task's.
    assert "If something else starts runs of this agent as well, it can be another's;" in logged()


def test_on_ambiguous_fail_takes_no_run_of_which_nobody_has_seen_the_answer(platform, task, waiting):
    context = task.context()
    context["task_state_store"] = DyingStore(task.store, "submitting", "after")
    with pytest.raises(Killed):
        operator(on_ambiguous="fail", **waiting).execute(context)
    platform.advance(10)
    stranger = platform.sim.start_scheduled_run("agent-1")
    platform.advance(50)
    with pytest.raises(AirflowFailException, match="the answer to its POST was lost") as caught:
        run(operator(on_ambiguous="fail", **waiting), task)
    assert list(caught.value.__cause__.event_ids) == [stranger]
    assert platform.executions() == []
    task.clear()
    assert [run(operator(on_ambiguous="fail", **waiting), task)["id"]] == platform.executions()


def test_on_ambiguous_fail_takes_a_202_that_cannot_be_read_for_an_answer(platform, task, waiting):
    platform.sim.faults.append(Fault(kind="garbage", method="POST"))
    assert [run(operator(on_ambiguous="fail", **waiting), task)["id"]] == platform.executions()


class WatchingStore(DyingStore):
    """A store that reports when the record first says that nothing is under way."""

    def __init__(self, store, when_nothing_is_under_way):
        super().__init__(store, None, None)
        self._report = when_nothing_is_under_way

    def set(self, key, value, *, retention=None):
        super().set(key, value, retention=retention)
        if value["submission"]["sent_at"] is None:
            self._report()


@pytest.mark.parametrize("ending", ["killed", "refused for good", "no snapshot"])
def test_a_doubt_that_was_settled_does_not_come_back(platform, task, waiting, ending):
    context = task.context()
    context["task_state_store"] = DyingStore(task.store, "submitting", "after")
    with pytest.raises(Killed):
        operator(**waiting).execute(context)
    platform.advance(60)

    # The next try looks, finds no run, and ends before its own POST has started one.
    context = task.context()
    if ending == "killed":

        def die():
            raise Killed

        context["task_state_store"] = WatchingStore(task.store, die)
        with pytest.raises(Killed):
            operator(**waiting).execute(context)
    else:
        refused = Fault(kind="status", status=403, method="POST" if ending == "refused for good" else "GET")
        context["task_state_store"] = WatchingStore(task.store, lambda: platform.sim.faults.append(refused))
        with pytest.raises(AirflowFailException, match="403"):
            operator(**waiting).execute(context)
    assert task.store[RECORD_KEY]["submission"]["sent_at"] is None
    platform.sim.faults.clear()

    platform.advance(20)
    other = platform.sim.start_scheduled_run("agent-1")
    platform.advance(60)
    result = run(operator(**waiting), task)
    assert [result["id"]] == platform.executions()
    assert result["id"] != other


@pytest.mark.parametrize("status", [300, 302, 308, 400, 402, 403, 405, 409, 410, 422, 423, 499])
def test_a_refused_post_leaves_no_run_of_another_party_to_be_taken(platform, task, waiting, status):
    platform.sim.faults.append(Fault(kind="status", status=status, method="POST"))
    with pytest.raises(AirflowFailException, match=str(status)):
        run(operator(**waiting), task)
    platform.advance(60)
    platform.sim.start_scheduled_run("agent-1")
    platform.advance(60)
    task.clear()
    assert [run(operator(**waiting), task)["id"]] == platform.executions()


@pytest.mark.parametrize("settle", [1.0, 5.0])
def test_a_small_settle_does_not_pay_twice_for_a_lost_post(platform, task, waiting, settle):
    platform.sim.config = platform.sim.config.__class__(record_lag=4.5)
    platform.sim.faults.append(Fault(kind="reset_after", method="POST"))
    assert [run(operator(settle=settle, **waiting), task)["id"]] == platform.executions()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("phase", ["submitting", "accepted", "deferred", "ended"])
def test_a_task_that_dies_anywhere_starts_one_run_over_all_its_tries(platform, task, waiting, phase, when):
    context = task.context()
    context["task_state_store"] = DyingStore(task.store, phase, when)
    if phase == "deferred" and not waiting["deferrable"]:
        pytest.skip("a task that waits on the worker is never deferred")
    op = operator(**waiting)
    with pytest.raises(Killed):  # noqa: PT012 - it may die on either side of the deferral
        try:
            op.execute(context)
        except TaskDeferred as deferred:
            event = asyncio.run(first_event(deferred.trigger))
            op.execute_complete(context, event=event.payload, **deferred.kwargs)
    event = run(operator(**waiting), task)
    assert [event["id"]] == platform.executions()
    if (phase, when) == ("accepted", "before"):
        # The answer to the POST died with the task, so the run may be another party's.
        assert not {"event_id", "usage"} & set(task.xcoms)
    else:
        assert task.xcoms["event_id"] == event["id"]
        assert task.xcoms["usage"]["try_number"] == 2


def test_a_repeated_end_reports_no_more_of_its_event_than_the_first(platform, task, waiting):
    platform.sim.start_scheduled_run("agent-1", after=3)
    run(operator(**waiting), task)
    first = dict(task.xcoms)
    run(operator(**waiting), task)
    assert task.xcoms == first
    assert not {"event_id", "usage"} & set(first)
    assert set(platform.executions()) < set(first["candidate_event_ids"])
    assert len(platform.executions()) == 1


@pytest.mark.parametrize("end_status", ["COMPLETED", "FAILED"])
def test_nothing_of_an_event_that_may_be_another_runs_is_pushed_as_the_tasks_own(platform, task, waiting, end_status):
    platform.sim.add_agent("agent-1", end_status=end_status)
    platform.sim.faults.append(Fault(kind="reset_after", method="POST"))
    with contextlib.suppress(AgentRunFailedError):
        run(operator(**waiting), task)
    assert len(platform.executions()) == 1
    assert not {"event_id", "usage"} & set(task.xcoms)


def test_the_end_is_repeated_for_a_task_that_does_not_wait(platform, task):
    first = run(operator(wait_for_completion=False), task)
    assert run(operator(wait_for_completion=False), task) == first
    assert len(platform.executions()) == 1


def test_a_task_that_is_told_to_wait_after_all_waits_for_the_run_that_it_started(platform, task, waiting):
    run(operator(wait_for_completion=False), task)
    assert [run(operator(**waiting), task)["id"]] == platform.executions()
    assert run(operator(wait_for_completion=False), task)["agent_id"] == "agent-1"
    assert len(platform.executions()) == 1


def test_clearing_a_task_whose_run_could_not_be_told_apart_starts_a_new_run(platform, task):
    platform.sim.add_agent("agent-1", schedule_every=1000.0, schedule_offset=2.0)
    with pytest.raises(AirflowFailException, match="cannot be told apart"):
        run(operator(on_ambiguous="fail"), task)
    task.clear()
    platform.sim.add_agent("agent-1")
    assert run(operator(on_ambiguous="fail"), task)["id"] == platform.executions()[1]


def test_a_connection_with_a_run_url_has_it_in_the_log(platform, task, waiting, monkeypatch, logged):
    url = "https://app.example/{agent_id}/{event_id}"
    monkeypatch.setenv("AIRFLOW_CONN_AGENTS_DEFAULT", connection(platform.url, run_url=url))
    event = run(operator(**waiting), task)
    assert f"See the run: https://app.example/agent-1/{event['id']}" in logged()


def test_clearing_a_finished_task_starts_a_new_run(platform, task, waiting):
    first = run(operator(**waiting), task)
    task.clear()
    second = run(operator(**waiting), task)
    assert [first["id"], second["id"]] == platform.executions()


@pytest.mark.parametrize(("before", "after"), [(1, 0), (2, 1), (3, 2), (2, 2), (0, 3)])
def test_clearing_a_finished_task_starts_a_new_run_although_its_retries_were_changed(platform, before, after, waiting):
    task = Task(retries=before)
    first = run(operator(retries=before, **waiting), task)
    task.clear(after)
    second = run(operator(retries=after, **waiting), task)
    assert [first["id"], second["id"]] == platform.executions()


def test_clearing_another_task_of_the_dag_run_does_not_repeat_a_run(platform, task, waiting):
    first = run(operator(retries=3, **waiting), task)
    task.clear_number += 1
    assert run(operator(retries=3, **waiting), task) == first


def test_clearing_a_waiting_task_takes_the_same_run_up_again(platform, task):
    with pytest.raises(TaskDeferred):
        operator(deferrable=True).execute(task.context())
    task.clear()
    assert [run(operator(deferrable=True), task)["id"]] == platform.executions()


def test_a_run_that_failed_while_nobody_watched_is_followed_by_a_new_one(platform, task):
    platform.sim.add_agent("agent-1", end_status="FAILED")
    with pytest.raises(TaskDeferred):
        operator(deferrable=True).execute(task.context())
    platform.sim.add_agent("agent-1")
    platform.advance(100)
    assert run(operator(deferrable=True), task)["id"] == platform.executions()[1]


def test_a_look_up_that_fails_fails_the_try_and_never_leads_to_a_post(platform, task):
    with pytest.raises(TaskDeferred):
        operator(deferrable=True).execute(task.context())
    platform.sim.faults.append(Fault(kind="status", status=500, times=None))
    with pytest.raises(AgentsError):
        run(operator(deferrable=True), task)
    platform.sim.faults.clear()
    assert [run(operator(deferrable=True), task)["id"]] == platform.executions()


def test_a_record_that_cannot_be_read_is_never_taken_for_none(platform, task):
    task.store[RECORD_KEY] = {"version": 99}
    with pytest.raises(AirflowFailException, match="record of its run cannot be read"):
        run(operator(), task)
    assert platform.executions() == []


def test_another_agent_does_not_adopt_the_run_of_the_first(platform, task):
    platform.sim.add_agent("agent-2")
    with pytest.raises(TaskDeferred):
        operator(deferrable=True).execute(task.context())
    event = run(operator(agent_id="agent-2"), task)
    assert event["agentId"] == "agent-2"


def test_another_connection_does_not_adopt_the_run_of_the_first(platform, task, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", connection(platform.url))
    with pytest.raises(TaskDeferred):
        operator(deferrable=True).execute(task.context())
    run(operator(agents_conn_id="other"), task)
    assert len(platform.executions()) == 2


def test_durable_false_keeps_no_record(platform, task):
    run(operator(durable=False), task)
    assert task.store == {}


def test_the_record_outlives_the_longest_wait(platform, task):
    run(operator(timeout=timedelta(days=40)), task)
    assert task.store.retentions[RECORD_KEY] >= timedelta(days=70)


def test_without_a_store_the_log_says_once_what_a_retry_will_do(platform, logged):
    task = Task(store=False)
    run(operator(retries=2), task)
    assert logged().count("so a retry starts a new run") == 1


def test_an_xcom_that_cannot_be_pushed_does_not_lose_the_run(platform, task, logged):
    context = task.context()

    def refuse(key, value):
        raise RuntimeError("the API server is away")

    context["ti"].xcom_push = refuse
    event = operator().execute(context)
    said = logged()
    assert [event["id"]] == platform.executions()
    assert platform.sim.executions[0].request_id in said


def test_a_record_that_cannot_be_written_before_the_post_stops_it(platform, task):
    class Refusing(DyingStore):
        def set(self, key, value, *, retention=None):
            raise RuntimeError("the API server is away")

    context = task.context()
    context["task_state_store"] = Refusing(task.store, None, None)
    with pytest.raises(RuntimeError):
        operator().execute(context)
    assert platform.executions() == []


# --- resuming ---


@pytest.mark.parametrize("event", [None, "success", "failed", {}, {"version": 2}, {"status": "success"}, []])
def test_what_the_trigger_does_not_send_is_refused(platform, task, event):
    with pytest.raises(AirflowFailException, match="cannot be read by this version") as caught:
        operator(deferrable=True).execute_complete(task.context(), event=event)
    assert isinstance(caught.value.__cause__, UnusableDataError)


def test_the_end_of_another_run_is_refused(platform, task):
    with pytest.raises(TaskDeferred):
        operator(deferrable=True).execute(task.context())
    with pytest.raises(TaskDeferred) as other:
        operator(deferrable=True).execute(Task().context())
    event = asyncio.run(first_event(other.value.trigger))
    with pytest.raises(AirflowFailException, match="another run than the one that this task waits for"):
        operator(deferrable=True).execute_complete(task.resumed(), event=event.payload)


def test_a_record_that_cannot_be_read_on_a_resume_loses_no_run(platform, task, logged):
    with pytest.raises(TaskDeferred) as deferred:
        operator(deferrable=True).execute(task.context())
    event = asyncio.run(first_event(deferred.value.trigger))
    task.store[RECORD_KEY] = {"version": 99}
    result = operator(deferrable=True).execute_complete(task.resumed(), event=event.payload)
    assert [result["id"]] == platform.executions()
    assert "The trigger's report is believed." in logged()


class ModelOperator(ExecuteAgentOperator):
    """As in every other provider."""

    def execute_complete(self, context, event):
        return super().execute_complete(context, event)["finalModel"]


def test_a_subclass_may_override_execute_complete_with_the_usual_signature(platform, task):
    op = ModelOperator(task_id="run", agent_id="agent-1")
    with pytest.raises(TaskDeferred) as deferred:
        op.execute(task.context())
    event = asyncio.run(first_event(deferred.value.trigger))
    arguments = {**deferred.value.kwargs, "event": event.payload}
    again = ModelOperator(task_id="run", agent_id="agent-1")
    assert again.resume_execution(deferred.value.method_name, arguments, task.resumed()) == "claude-3-7-sonnet"


def test_a_resumed_task_does_without_what_dag_test_leaves_out(platform, task):
    with pytest.raises(TaskDeferred) as deferred:
        operator(deferrable=True).execute(task.context())
    event = asyncio.run(first_event(deferred.value.trigger))
    assert operator(deferrable=True).execute_complete(task.resumed(), event=event.payload)["status"] == "COMPLETED"


@pytest.mark.parametrize("how", ["fails", "killed", "unknown payload"])
@pytest.mark.parametrize("end_from_trigger", [pytest.param(True, marks=needs_airflow("3.3")), False])
def test_a_task_that_its_trigger_did_not_end_takes_its_run_up_after_a_clear(
    platform, task, logged, how, end_from_trigger
):
    arguments = {"deferrable": True, "end_from_trigger": end_from_trigger}
    with pytest.raises(TaskDeferred) as deferred:
        operator(**arguments).execute(task.context())
    (mine,) = platform.sim.executions
    context = task.resumed()
    if how == "fails":
        for reason in ("Trigger failure", "Trigger timeout"):
            with pytest.raises(Exception, match=reason):
                operator(**arguments).resume_execution("__fail__", {"error": reason}, context)
        said = logged()
        assert "The run is still running, or has ended unseen." in said
        assert f"agent=agent-1 request_id={mine.request_id}" in said
        assert "A retry or clear waits for the same run again." in said
    elif how == "killed":
        context["task_state_store"] = DyingStore(task.store, "ended", "before")
        payload = asyncio.run(first_event(deferred.value.trigger)).payload
        with pytest.raises(Killed):
            operator(**arguments).resume_execution(
                deferred.value.method_name, {"event": payload, **deferred.value.kwargs}, context
            )
    else:
        with pytest.raises(AirflowFailException, match="cannot be read by this version"):
            operator(**arguments).resume_execution(deferred.value.method_name, {"event": {"version": 9}}, context)
    platform.advance(60)
    task.clear()
    assert [run(operator(**arguments), task)["id"]] == platform.executions()


@needs_airflow("3.3")
def test_a_task_that_its_trigger_has_ended_starts_a_new_run_after_a_clear(platform, task):
    with pytest.raises(TaskDeferred):
        operator(deferrable=True, end_from_trigger=True).execute(task.context())
    platform.advance(60)
    task.clear()
    with pytest.raises(TaskDeferred):
        operator(deferrable=True, end_from_trigger=True).execute(task.context())
    assert len(platform.executions()) == 2


@pytest.mark.parametrize("ended_before", [True, False])
def test_a_wait_for_an_idle_agent_that_airflow_fails_changes_no_record(platform, task, logged, ended_before):
    if ended_before:
        platform.sim.add_agent("agent-1", end_status="FAILED")
        with pytest.raises(AgentRunFailedError):
            run(operator(deferrable=True), task)
    record = dict(task.store)
    platform.sim.add_agent("agent-1", run_seconds=100.0)
    platform.sim.start_scheduled_run("agent-1")
    with pytest.raises(TaskDeferred):
        operator(deferrable=True, if_running="wait").execute(task.context())
    with pytest.raises(Exception, match="Trigger failure"):
        operator(deferrable=True, if_running="wait").resume_execution(
            "__fail__", {"error": "Trigger failure"}, task.resumed()
        )
    assert task.store == record
    assert "this try has started no run. A retry or clear asks again." in logged()


def test_a_failed_deferral_is_reported_as_such_although_the_record_cannot_be_read(platform, task, logged):
    with pytest.raises(TaskDeferred):
        operator(deferrable=True).execute(task.context())
    task.store[RECORD_KEY] = {"version": 99}
    with pytest.raises(Exception, match="Trigger failure"):
        operator(deferrable=True).resume_execution("__fail__", {"error": "Trigger failure"}, task.resumed())
    assert "could not be brought up to date" in logged()


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize(
    ("agent_id", "agents_conn_id"),
    [("agent-2", "agents_default"), ("agent-1", "other"), ("agent-2", "gone"), ("", ""), (None, 7)],
)
@pytest.mark.parametrize("if_running", ["start", "wait"])
def test_what_a_task_was_deferred_with_decides_and_not_what_its_templates_give_later(
    platform, logged, store, agent_id, agents_conn_id, if_running
):
    task = Task(store=store)
    if if_running == "wait":
        platform.sim.start_scheduled_run("agent-1")
    call, context, arguments = None, task.context(), {}
    while True:
        op = operator(deferrable=True, if_running=if_running)
        if call is not None:
            op.agent_id, op.agents_conn_id = agent_id, agents_conn_id
        try:
            result = getattr(op, call or "execute")(context, **arguments)
            break
        except TaskDeferred as deferred:
            event = asyncio.run(first_event(deferred.trigger))
            call, context = deferred.method_name, task.resumed()
            arguments = {"event": event.payload}
    assert [result["id"]] == platform.executions()
    assert "Its arguments have changed since" in logged()
    if store:
        assert task.store[RECORD_KEY]["agents_conn_id"] == "agents_default"
        # So a retry finds the end of this run.
        assert run(operator(deferrable=True), task) == result


def test_a_task_that_resumes_as_it_was_deferred_logs_no_change(platform, task, logged):
    run(operator(deferrable=True), task)
    assert "have changed" not in logged()


@pytest.mark.parametrize(("for_good", "error"), [(True, AirflowFailException), (False, TemporaryError)])
def test_a_wait_that_could_not_go_on_leaves_the_retries_where_a_new_one_may_succeed(platform, task, for_good, error):
    with pytest.raises(TaskDeferred) as deferred:
        operator(deferrable=True).execute(task.context())
    submission = deferred.value.trigger.submission
    payload = RunEnded(
        agents_conn_id="agents_default", submission=submission, outcome="error", error="No key.", for_good=for_good
    ).to_json()
    with pytest.raises(error, match="The wait for the run has failed: No key."):
        operator(deferrable=True).execute_complete(task.resumed(), payload, **deferred.value.kwargs)


# --- killed ---


def test_a_killed_task_says_that_its_run_goes_on(platform, task, logged):
    op = operator(deferrable=True)
    with pytest.raises(TaskDeferred):
        op.execute(task.context())
    op.on_kill()
    said = logged()
    assert f"request_id={platform.sim.executions[0].request_id}" in said
    assert "cannot be cancelled and is still running" in said


def test_a_killed_trigger_says_that_the_run_goes_on(platform, task, logged):
    with pytest.raises(TaskDeferred) as deferred:
        operator(deferrable=True).execute(task.context())
    asyncio.run(deferred.value.trigger.on_kill())
    said = logged()
    assert f"request_id={platform.sim.executions[0].request_id}" in said
    assert "cannot be cancelled and is still running" in said


def test_a_task_killed_before_it_started_anything_says_nothing(logged):
    operator().on_kill()
    assert logged() == ""


# --- Airflow's execution_timeout ---


def test_execution_timeout_ends_the_wait_cleanly_and_the_text_names_it(platform, task, waiting):
    platform.sim.add_agent("agent-1", run_seconds=9000.0)
    began_at = platform.sim.clock()
    limit = timedelta(seconds=100)
    with pytest.raises(
        AgentRunTimeoutError, match=r"is still running. The deadline came from execution_timeout \(100 s"
    ):
        run(operator(execution_timeout=limit, **waiting), task)
    assert timedelta(seconds=90) <= platform.sim.clock() - began_at <= timedelta(seconds=110)
    # A retry waits for the same run, with a time of its own.
    with pytest.raises(AgentRunTimeoutError):
        run(operator(execution_timeout=limit, **waiting), task)
    assert len(platform.executions()) == 1


def test_what_is_left_of_execution_timeout_counts_from_the_start_of_the_try(platform, task):
    context = task.context()
    context["ti"].start_date = platform.sim.clock() - timedelta(seconds=60)
    with pytest.raises(TaskDeferred) as deferred:
        operator(deferrable=True, execution_timeout=timedelta(seconds=100)).execute(context)
    deadline_at = platform.sim.clock() + timedelta(seconds=40)
    assert datetime.fromisoformat(deferred.value.trigger.deadline_at) == deadline_at
    assert datetime.fromisoformat(task.store[RECORD_KEY]["deadline_at"]) == deadline_at


def test_the_shorter_timeout_is_the_deadline(platform, task):
    with pytest.raises(TaskDeferred) as deferred:
        operator(deferrable=True, timeout=50, execution_timeout=timedelta(seconds=100)).execute(task.context())
    assert datetime.fromisoformat(deferred.value.trigger.deadline_at) == platform.sim.clock() + timedelta(seconds=50)


# --- what the log says around a wait ---


def test_the_log_says_who_waits_and_until_when_before_the_task_defers(platform, task, logged):
    with pytest.raises(TaskDeferred):
        operator(deferrable=True, timeout=3600).execute(task.context())
    assert "The triggerer waits for the run from now on, until 2026-01-01 10:00:00 UTC. A triggerer must be" in logged()


def test_the_reason_for_a_skip_is_a_line_of_the_log(platform, task, logged):
    platform.sim.start_scheduled_run("agent-1")
    with pytest.raises(AirflowSkipException):
        run(operator(if_running="skip"), task)
    assert "The task is skipped (if_running='skip'): Agent agent-1 is busy" in logged()


# --- one field of the event ---


def test_a_field_of_the_output_that_would_be_empty_is_refused_when_the_dag_is_parsed():
    with DAG("d", schedule=None):
        op = operator()
        with pytest.raises(
            InvalidArgumentError, match=r"output\['status'\] of task 'run' would be empty.*multiple_outputs"
        ):
            op.output["status"]
        assert op.output["usage"].key == "usage"
        with pytest.raises(InvalidArgumentError):
            f"{op.output['finalModel']}"
        assert operator(task_id="several", multiple_outputs=True).output["status"].key == "status"


def test_the_output_serves_as_any_other_task_s():
    with DAG("d", schedule=None) as dag:
        first = operator(task_id="first")
        second = operator(task_id="second", agent_id=first.output)
        ExecuteAgentOperator.partial(task_id="mapped").expand(agent_id=first.output)
    assert first.task_id in second.upstream_task_ids
    assert first.task_id in dag.get_task("mapped").upstream_task_ids


# --- rows that cannot be read ---

ODD = [
    {"userId": 7},
    {"finalModel": {"name": "m"}},
    {"updatedAt": 1767258000000},
    {"status": None},
    {"agentId": 7},
    {"id": 7},
    {"createdAt": 7, "startedAt": 7, "completedAt": 7},
    "no object",
]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_an_odd_row_of_the_history_neither_stops_a_run_nor_delays_its_end(platform, task, waiting, odd):
    platform.sim.add_row("agent-1", odd, age=3600.0)
    event = run(operator(**waiting), task)
    assert [event["id"]] == platform.executions()
    assert sum(platform.slept) < 60


@pytest.mark.parametrize("odd", [*ODD[3:4], *ODD[-2:]], ids=repr)
def test_a_run_whose_own_row_cannot_be_read_ends_at_the_deadline_and_says_why(platform, task, waiting, odd):
    platform.sim.corrupt(None, odd)
    with pytest.raises(
        AgentRunTimeoutError, match=r"deadline \(unreadable: .+: .+\)\. It cannot be cancelled .* event=[\w-]+$"
    ):
        run(operator(timeout=600, **waiting), task)
    platform.sim.restore(None)
    event = run(operator(timeout=600, **waiting), task)
    assert [event["id"]] == platform.executions()


def test_an_old_row_that_only_a_deep_listing_shows_does_not_delay_the_end(platform, task, waiting):
    # A snapshot reads fifty rows at once, the shared poll two hundred.
    for age in range(3600, 3700):
        platform.sim.add_row("agent-1", "no object" if age % 7 == 0 else {}, age=float(age))
    event = run(operator(**waiting), task)
    assert [event["id"]] == platform.executions()
    assert sum(platform.slept) < 60


def test_a_row_that_cannot_be_read_is_logged_once_for_a_task(platform, task, caplog):
    odd = platform.sim.add_row("agent-1", {"status": None}, age=1.0)
    run(operator(poll_interval=1.0), task)
    assert caplog.text.count(f"agent=agent-1 event={odd}") == 1


def test_attach_prefers_a_run_that_can_be_read(platform, task, waiting):
    platform.sim.add_row("agent-1", {"status": None, "completedAt": None})
    theirs = platform.sim.start_scheduled_run("agent-1")
    assert run(operator(if_running="attach", **waiting), task)["id"] == theirs


def test_attach_to_a_run_that_cannot_be_read_says_so(platform, task, waiting, logged):
    theirs = platform.sim.start_scheduled_run("agent-1")
    platform.sim.corrupt(theirs, {"status": None, "completedAt": None})
    with pytest.raises(AgentRunTimeoutError, match=rf"\(unreadable: status: .* event={theirs}$"):
        run(operator(if_running="attach", timeout=60, **waiting), task)
    assert f"is busy: event {theirs} is unreadable: status: " in logged()
    platform.sim.restore(theirs)
    assert run(operator(if_running="attach", **waiting), task)["id"] == theirs
    assert platform.executions() == []


@pytest.mark.parametrize("if_running", ["attach", "wait", "fail"])
def test_a_row_without_an_id_keeps_a_careful_task_from_starting_and_says_why(platform, task, waiting, if_running):
    platform.sim.add_row("agent-1", {"id": 7, "completedAt": None})
    with pytest.raises(
        AgentsError, match=r"event no-id-\w+ is unreadable: id: .*Nothing was started|nothing was started"
    ):
        run(operator(if_running=if_running, timeout=60, **waiting), task)
    assert platform.executions() == []


def test_an_agent_is_idle_once_the_row_that_could_not_be_read_names_its_end(platform, task, waiting):
    theirs = platform.sim.start_scheduled_run("agent-1")
    platform.sim.corrupt(theirs, {"id": 7})
    event = run(operator(if_running="wait", timeout=600, **waiting), task)
    assert [event["id"]] == platform.executions()


def test_a_wait_in_which_no_page_could_be_read_says_why_at_the_deadline(platform, task, waiting):
    def odd_pages(_, answer):
        reply = answer()
        is_started = platform.executions() and b"requestId" not in reply.body
        return replace(reply, body=b'{"data": [], "nextToken": {"page": 2}}') if is_started else reply

    platform.sim.intercept(odd_pages)
    with pytest.raises(
        AgentRunTimeoutError,
        match=r"no event of it had appeared.* The last poll failed: .*not what the API describes: nextToken",
    ):
        run(operator(timeout=300, **waiting), task)
