"""The sensor, over HTTP against the simulator: what it waits for, in each of its ways."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowNotFoundException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)
from airflow.sdk import DAG
from conftest import KEY, connection, needs_airflow
from refusals import ERROR_OF, refuse

try:
    from airflow.sdk.exceptions import AirflowRescheduleException
except ImportError:  # where it was before Airflow 3.1
    from airflow.exceptions import AirflowRescheduleException

from airflow_provider_agents.api.errors import (
    AgentRunFailedError,
    AgentRunNotFoundError,
    AuthenticationError,
    InvalidArgumentError,
    MissingConnectionError,
    NotFoundError,
    TemporaryError,
)
from airflow_provider_agents.hooks import AgentsHook
from airflow_provider_agents.operators import ExecuteAgentOperator
from airflow_provider_agents.payloads import RunEnded
from airflow_provider_agents.polling.progress import LAST_POLL_SECONDS
from airflow_provider_agents.runs.submission import Submission
from airflow_provider_agents.sensors import AgentRunSensor
from airflow_provider_agents.simulator import Fault, SimulatorConfig
from airflow_provider_agents.triggers import AgentRunTrigger
from airflow_provider_agents.version_compat import TRIGGERS_END_TASKS

NINE = datetime(2026, 1, 1, 9, tzinfo=UTC)
WAYS = ("deferrable", "poke", "reschedule")

newer_airflow = needs_airflow("3.3")


def sensor(way="deferrable", **arguments):
    mode = {} if way == "deferrable" else {"mode": way}
    return AgentRunSensor(task_id="wait", **mode, **arguments)


async def first_event(trigger):
    async for event in trigger.run():
        return event
    raise AssertionError("the trigger ended without an event")


def run(platform, op):
    """One try from its start to its end, as Airflow would lead it."""
    first_reschedule = None
    ti = SimpleNamespace(try_number=1, max_tries=0, get_first_reschedule_date=lambda _: first_reschedule)
    context = {"ti": ti}
    while True:
        try:
            return op.execute(context)
        except AirflowRescheduleException as reschedule:
            first_reschedule = first_reschedule or datetime.now(UTC)
            platform.advance(max(0.0, (reschedule.reschedule_date - datetime.now(UTC)).total_seconds()))
            op = op.__class__(**op.arguments)
        except TaskDeferred as deferred:
            _, arguments = deferred.trigger.serialize()
            assert json.loads(json.dumps(arguments)) == arguments
            event = asyncio.run(first_event(AgentRunTrigger(**arguments)))
            return op.resume_execution(deferred.method_name, {"event": event.payload}, context)


def run_to_deferral(op):
    return op.execute({"ti": SimpleNamespace(try_number=1, max_tries=0)})


@pytest.fixture(params=WAYS)
def wait(request, platform, monkeypatch):
    """Wait in one of the ways; `reschedule` starts from nothing each time, as a new process does."""
    own_time = SimpleNamespace(monotonic=lambda: datetime.now(UTC).timestamp(), sleep=time.sleep)
    monkeypatch.setattr("airflow.sdk.bases.sensor.time", own_time)

    class Sensor(AgentRunSensor):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            self.arguments = arguments

    def waited(**arguments):
        mode = {} if request.param == "deferrable" else {"mode": request.param}
        return run(platform, Sensor(task_id="wait", poke_interval=5.0, **mode, **arguments))

    waited.way = request.param
    return waited


@pytest.mark.parametrize("fault", [{"status": 429}, {"status": 503}, {"kind": "html"}])
def test_a_worker_keeps_the_pause_that_the_server_asks_for(platform, fault):
    event_id = platform.sim.start_scheduled_run("agent-1")
    asked = {"kind": "status", "times": 1, "headers": {"Retry-After": "600"}} | fault
    platform.sim.faults.append(Fault(method="GET", **asked))
    op = sensor("poke", agent_id="agent-1", event_id=event_id)
    began_at, asked_before = datetime.now(UTC), len(platform.sim.requests)
    assert op.poke({}) is False
    first = len(platform.sim.requests)
    assert first > asked_before
    while (datetime.now(UTC) - began_at).total_seconds() < 590:
        assert op.poke({}) is False
        platform.advance(30)
    assert len(platform.sim.requests) == first
    platform.advance(30)
    assert op.poke({}).xcom_value["id"] == event_id


class LookUps:
    """Airflow's look-ups of the connection; some of them find none, as while its API server restarts."""

    def __init__(self, monkeypatch, fails):
        real, self.at = AgentsHook.get_connection.__func__, []

        def get_connection(cls, conn_id):
            self.at.append(datetime.now(UTC))
            if fails(self):
                raise AirflowNotFoundException(f"The conn_id `{conn_id}` isn't defined")
            return real(cls, conn_id)

        monkeypatch.setattr(AgentsHook, "get_connection", classmethod(get_connection))


# --- what it waits for ---


def test_a_submission_is_waited_for(platform, task, wait, logged):
    submission = ExecuteAgentOperator(task_id="run", agent_id="agent-1", wait_for_completion=False).execute(
        task.context()
    )
    assert wait(submission=submission)["id"] == platform.executions()[0]
    assert len(platform.executions()) == 1
    assert "agent=None" not in logged()


def test_an_event_is_waited_for(platform, wait):
    event_id = platform.sim.start_scheduled_run("agent-1")
    event = wait(agent_id="agent-1", event_id=event_id)
    assert (event["id"], event["status"]) == (event_id, "COMPLETED")


def test_the_first_run_after_a_moment_is_waited_for(platform, wait):
    platform.sim.add_agent("agent-1", queue_seconds=0.0, run_seconds=50.0)
    platform.sim.start_scheduled_run("agent-1")
    platform.advance(10)
    moment = datetime.now(UTC)
    platform.advance(10)
    wanted = platform.sim.start_scheduled_run("agent-1")
    platform.advance(10)
    platform.sim.start_scheduled_run("agent-1")
    assert wait(agent_id="agent-1", started_after=moment)["id"] == wanted


def test_a_run_that_begins_while_it_is_waited_for_is_found(platform, wait):
    platform.sim.add_agent("agent-2", queue_seconds=0.0, run_seconds=5.0, schedule_every=600.0, schedule_offset=300.0)
    event = wait(agent_id="agent-2", started_after=NINE.isoformat(), timeout=3600)
    assert datetime.fromisoformat(event["startedAt"]) >= NINE
    assert sum(platform.slept) < 600 + 60


def test_an_old_moment_does_not_list_everything_since(platform, wait):
    platform.sim.add_agent("agent-3", queue_seconds=0.0, run_seconds=5.0)
    platform.sim.add_history("agent-3", 3000, every=1800.0)
    moment = NINE - timedelta(days=50)
    event = wait(agent_id="agent-3", started_after=moment)
    began = datetime.fromisoformat(event["startedAt"])
    assert timedelta(0) <= began - moment < timedelta(minutes=30)
    assert platform.sim.count() == 1


@pytest.mark.parametrize("date_header", [True, False])
@pytest.mark.parametrize("clock_skew", [0.0, -600.0, 600.0])
def test_a_late_record_cannot_overtake_the_first_run_however_far_off_a_clock_is(
    platform, wait, date_header, clock_skew
):
    platform.sim.config = SimulatorConfig(
        record_lag=lambda rng: next(lags), date_header=date_header, clock_skew=clock_skew
    )
    lags = iter([20.0, 0.0])
    platform.sim.add_agent("agent-1", queue_seconds=0.0, run_seconds=1.0)
    moment = platform.sim.now()
    first = platform.sim.start_scheduled_run("agent-1")
    platform.advance(5)
    platform.sim.start_scheduled_run("agent-1")
    assert wait(agent_id="agent-1", started_after=moment)["id"] == first
    assert sum(platform.slept) < 60


def days_of(platform, *with_a_run):
    """An agent that runs for ten minutes at one o'clock on some days; the days' starts, and their runs."""
    platform.sim.add_agent("agent-2", queue_seconds=0.0, run_seconds=600.0)
    start = platform.sim.now()
    runs = {day: platform.sim.start_scheduled_run("agent-2", after=3600 + day * 86400) for day in with_a_run}
    return [start + timedelta(days=day) for day in range(5)], runs


@pytest.mark.parametrize("date_header", [True, False])
@pytest.mark.parametrize("soft_fail", [True, False])
def test_a_day_without_a_run_is_late_and_does_not_take_the_next_days(platform, wait, soft_fail, date_header):
    starts, runs = days_of(platform, 0, 2)
    platform.sim.config = SimulatorConfig(date_header=date_header)
    platform.advance(10 * 86400)
    before = sum(platform.slept)

    def of_day(day):
        return wait(agent_id="agent-2", started_after=starts[day], started_before=starts[day + 1], soft_fail=soft_fail)

    assert of_day(0)["id"] == runs[0]
    with pytest.raises(AirflowSkipException if soft_fail else AirflowSensorTimeout) as late:
        of_day(1)
    assert f"No run began from {starts[1]} until before {starts[2]}" in str(late.value)
    assert of_day(2)["id"] == runs[2]
    # All of it is long over, so there is nothing to wait for.
    assert sum(platform.slept) - before < 5


@pytest.mark.parametrize(
    ("date_header", "clock_skew", "longest"),
    [(True, 0.0, 50), (True, -600.0, 50), (True, 600.0, 50), (False, 0.0, 950), (False, 600.0, 950)],
)
def test_an_interval_that_passes_without_a_run_is_late_as_soon_as_none_can_appear(
    platform, wait, date_header, clock_skew, longest
):
    platform.sim.config = SimulatorConfig(date_header=date_header, clock_skew=clock_skew)
    start = platform.sim.now()
    platform.sim.start_scheduled_run("agent-1", after=301)
    # On a platform that does not tell its clock, ours counts.
    end = (start if date_header else datetime.now(UTC)) + timedelta(seconds=300)
    with pytest.raises(AirflowSensorTimeout, match="none can appear any more"):
        wait(agent_id="agent-1", started_after=end - timedelta(seconds=300), started_before=end)
    assert 330 <= sum(platform.slept) <= 300 + longest


def test_a_run_of_the_interval_is_waited_for_beyond_its_end(platform, wait):
    platform.sim.add_agent("agent-1", queue_seconds=0.0, run_seconds=1000.0)
    wanted = platform.sim.start_scheduled_run("agent-1", after=290)
    platform.sim.start_scheduled_run("agent-1", after=300)
    event = wait(agent_id="agent-1", started_after=NINE, started_before=NINE + timedelta(seconds=300))
    assert (event["id"], event["status"]) == (wanted, "COMPLETED")


def test_a_worker_is_held_for_settle_only_where_nothing_tells_the_time(platform):
    platform.sim.add_agent("agent-1", queue_seconds=0.0, run_seconds=1.0)
    for date_header, held in ((True, 0), (False, 30)):
        platform.sim.config = SimulatorConfig(date_header=date_header)
        moment = platform.sim.now()
        platform.sim.start_scheduled_run("agent-1")
        platform.advance(2)
        before = sum(platform.slept)
        op = sensor("reschedule", agent_id="agent-1", started_after=moment)
        op.poke({"ti": SimpleNamespace()})
        assert sum(platform.slept) - before == held
        # A run that is not over may take hours.
        platform.sim.add_agent("agent-2", queue_seconds=0.0, run_seconds=10_000.0)
        platform.sim.start_scheduled_run("agent-2")
        assert not sensor("reschedule", agent_id="agent-2", started_after=moment).poke({"ti": SimpleNamespace()})
        assert sum(platform.slept) - before == held


@pytest.mark.parametrize("clock_skew", [0.0, -600.0, 600.0])
def test_without_the_platforms_clock_a_submission_is_waited_for_too(platform, task, wait, clock_skew):
    platform.sim.config = SimulatorConfig(date_header=False, clock_skew=clock_skew)
    submission = ExecuteAgentOperator(task_id="run", agent_id="agent-1", wait_for_completion=False).execute(
        task.context()
    )
    assert wait(submission=submission)["id"] == platform.executions()[0]
    assert sum(platform.slept) <= 90


@pytest.mark.parametrize("on_ambiguous", ["all", "fail"])
def test_a_submission_whose_event_appears_late_is_taken_with_a_warning_or_refused(
    platform, task, wait, logged, on_ambiguous
):
    lags = iter([10_000_000.0])
    platform.sim.config = SimulatorConfig(record_lag=lambda rng: next(lags, 0.0))
    submission = ExecuteAgentOperator(task_id="run", agent_id="agent-1", wait_for_completion=False).execute(
        task.context()
    )
    theirs = platform.sim.start_scheduled_run("agent-1", after=100)
    warning = "No event of this run appeared within 30 seconds"
    if on_ambiguous == "all":
        assert wait(submission=submission, on_ambiguous=on_ambiguous)["id"] == theirs
        assert logged().count(warning) == 1
    else:
        with pytest.raises(AirflowFailException, match="no event of it appeared within `settle`"):
            wait(submission=submission, on_ambiguous=on_ambiguous)
        assert warning not in logged()


def test_a_run_that_is_over_already_needs_no_trigger(platform):
    event_id = platform.sim.start_scheduled_run("agent-1")
    platform.advance(100)
    op = AgentRunSensor(task_id="wait", agent_id="agent-1", event_id=event_id)
    assert op.execute({"ti": SimpleNamespace()})["id"] == event_id


@pytest.mark.parametrize("soft_fail", [True, False])
def test_a_key_that_is_revoked_while_it_is_waited_for_fails_whatever_is_soft(platform, wait, soft_fail):
    event_id = platform.sim.start_scheduled_run("agent-1")
    answered = []

    def revoking(request, answer):
        answered.append(request)
        if len(answered) > 1:
            platform.sim.api_keys = ()
        return answer()

    platform.sim.intercept(revoking)
    with pytest.raises(AirflowFailException, match="401"):
        wait(agent_id="agent-1", event_id=event_id, soft_fail=soft_fail)


# --- how it ends ---


FAILING = {
    "its run failed": lambda sim: sim.start_scheduled_run("failing"),
    "its run fails later": lambda sim: sim.start_scheduled_run("failing", after=30),
    "there is no such event": lambda _: "no-such-event",
    "the key is refused": lambda sim: (sim.faults.append(Fault(kind="status", status=401, times=None)), "event-1")[1],
}


@pytest.mark.parametrize("why", FAILING)
@pytest.mark.parametrize("option", ["never_fail", "soft_fail", None])
def test_soft_fail_and_never_fail_decide_alike_on_the_first_poll_and_later(platform, wait, logged, why, option):
    platform.sim.add_agent("failing", queue_seconds=0.0, run_seconds=10.0, end_status="FAILED", error="quota")
    event_id = FAILING[why](platform.sim)
    if why == "its run failed":
        platform.advance(60)
    skips = option == "never_fail" or (option == "soft_fail" and "run fail" in why)
    with pytest.raises(AirflowSkipException if skips else AirflowFailException) as caught:
        wait(agent_id="failing", event_id=event_id, **({option: True} if option else {}))
    # A subclass would stand in the user's log under a name that is documented nowhere.
    assert type(caught.value) in {AirflowSkipException, AirflowFailException}
    if skips:
        assert str(caught.value).count(f"Skipped, as {option} says.") == 1
        assert re.findall("The task is skipped .*?[.] ", logged()) == [f"The task is skipped ({option}). "]


def test_a_run_that_is_late_is_skipped_by_never_fail_in_each_mode(platform, wait):
    platform.sim.add_agent("slow", run_seconds=9000.0)
    event_id = platform.sim.start_scheduled_run("slow")
    with pytest.raises(AirflowSkipException, match="Skipped, as never_fail says."):
        wait(agent_id="slow", event_id=event_id, timeout=100, never_fail=True)


AS_TEXT = {"a dict": lambda one: one, "tojson": json.dumps, "a plain template": str}


@pytest.mark.parametrize("rendered", AS_TEXT)
def test_a_submission_that_a_template_has_rendered_is_waited_for(platform, task, wait, rendered):
    submission = ExecuteAgentOperator(task_id="run", agent_id="agent-1", wait_for_completion=False).execute(
        task.context()
    )
    assert wait(submission=AS_TEXT[rendered](submission))["id"] == platform.executions()[0]


@newer_airflow
@pytest.mark.parametrize("rendered", AS_TEXT)
def test_a_submission_that_is_rendered_in_the_triggerer_is_waited_for(platform, task, monkeypatch, rendered):
    monkeypatch.setattr(AgentRunTrigger, "task_instance", None, raising=False)
    submission = ExecuteAgentOperator(task_id="run", agent_id="agent-1", wait_for_completion=False).execute(
        task.context()
    )
    op = AgentRunSensor(task_id="wait", submission="{{ params.submission }}", start_from_trigger=True)
    op.start_trigger_args.trigger_kwargs["submission"] = AS_TEXT[rendered](submission)
    event = in_the_triggerer(op)
    assert event.xcoms["return_value"]["id"] == platform.executions()[0]


def test_a_failed_run_fails_without_retries(platform, wait):
    platform.sim.add_agent("agent-1", end_status="FAILED", error="out of luck")
    event_id = platform.sim.start_scheduled_run("agent-1")
    with pytest.raises(AirflowFailException, match="out of luck") as failure:
        wait(agent_id="agent-1", event_id=event_id)
    assert isinstance(failure.value.__cause__, AgentRunFailedError)


def test_soft_fail_skips_for_a_failed_run(platform, wait):
    platform.sim.add_agent("agent-1", end_status="FAILED", error="out of luck")
    event_id = platform.sim.start_scheduled_run("agent-1")
    with pytest.raises(AirflowSkipException):
        wait(agent_id="agent-1", event_id=event_id, soft_fail=True)


@pytest.mark.parametrize("named", ["event", "moment"])
@pytest.mark.parametrize("soft_fail", [True, False])
def test_a_late_run_is_a_sensors_timeout(platform, wait, soft_fail, named):
    platform.sim.add_agent("agent-1", run_seconds=1000.0)
    event_id = platform.sim.start_scheduled_run("agent-1")
    which = {"event_id": event_id} if named == "event" else {"started_after": NINE + timedelta(hours=1)}
    with pytest.raises(AirflowSkipException if soft_fail else AirflowSensorTimeout):
        wait(agent_id="agent-1", timeout=60, soft_fail=soft_fail, **which)
    assert 55 <= sum(platform.slept) <= 80


@pytest.mark.parametrize("soft_fail", [True, False])
def test_a_bad_key_fails_whatever_is_soft(platform, monkeypatch, wait, soft_fail):
    monkeypatch.setenv("AIRFLOW_CONN_AGENTS_DEFAULT", connection(platform.url, password=f"wrong-{KEY}"))
    with pytest.raises(AirflowFailException, match="401") as failure:
        wait(agent_id="agent-1", event_id="event-1", soft_fail=soft_fail)
    assert KEY not in str(failure.value)
    assert isinstance(failure.value.__cause__, AuthenticationError)
    assert failure.value.__cause__.__traceback__ is None


@pytest.mark.parametrize("soft_fail", [True, False])
def test_a_wrong_event_id_fails_whatever_is_soft(platform, wait, soft_fail):
    with pytest.raises(AirflowFailException, match="has no such event. Check both ids.*event=no-such-event"):
        wait(agent_id="agent-1", event_id="no-such-event", soft_fail=soft_fail)
    # As soon as every replica would have it.
    assert sum(platform.slept) <= 60


@pytest.mark.parametrize("soft_fail", [True, False])
def test_an_unknown_agent_fails_whatever_is_soft(platform, wait, soft_fail):
    with pytest.raises(AirflowFailException, match="404") as failure:
        wait(agent_id="nobody", event_id="event-1", soft_fail=soft_fail)
    assert isinstance(failure.value.__cause__, NotFoundError)


def test_a_submission_that_never_appears_is_lost(platform, task, wait):
    platform.sim.config = platform.sim.config.__class__(record_lag=10_000.0)
    submission = ExecuteAgentOperator(task_id="run", agent_id="agent-1", wait_for_completion=False).execute(
        task.context()
    )
    with pytest.raises(AirflowFailException, match="no event of it has appeared") as failure:
        wait(submission=submission)
    assert isinstance(failure.value.__cause__, AgentRunNotFoundError)


@pytest.mark.parametrize("soft_fail", [False, True])
def test_a_connection_that_is_not_found_for_a_while_ends_no_wait(platform, wait, monkeypatch, soft_fail):
    platform.sim.add_agent("agent-1", queue_seconds=0.0, run_seconds=300.0)
    event_id = platform.sim.start_scheduled_run("agent-1")
    LookUps(monkeypatch, lambda look_ups: 10 <= (look_ups.at[-1] - NINE).total_seconds() < 40)
    assert wait(agent_id="agent-1", event_id=event_id, soft_fail=soft_fail)["id"] == event_id


def test_a_connection_that_is_not_found_when_the_sensor_begins_is_looked_up_again(platform, wait, monkeypatch):
    event_id = platform.sim.start_scheduled_run("agent-1")
    LookUps(monkeypatch, lambda look_ups: (look_ups.at[-1] - NINE).total_seconds() < 60)
    assert wait(agent_id="agent-1", event_id=event_id)["id"] == event_id


@pytest.mark.parametrize("soft_fail", [False, True])
def test_a_deferrable_sensor_whose_connection_stays_missing_leaves_the_retries(platform, monkeypatch, soft_fail):
    LookUps(monkeypatch, lambda _: True)
    with pytest.raises(MissingConnectionError, match="does not exist.*the last 120 seconds has failed"):
        run(platform, sensor(agent_id="agent-1", event_id="e", soft_fail=soft_fail))
    assert sum(platform.slept) == pytest.approx(120.0)


@pytest.mark.parametrize(("for_good", "error"), [(True, AirflowFailException), (False, TemporaryError)])
@pytest.mark.parametrize("soft_fail", [False, True])
def test_a_wait_that_could_not_go_on_leaves_the_retries_where_a_new_one_may_succeed(for_good, error, soft_fail):
    payload = RunEnded(
        agents_conn_id="agents_default",
        submission=Submission(agent_id="agent-1", taken_at=NINE),
        outcome="error",
        error="No key.",
        for_good=for_good,
    ).to_json()
    op = sensor(agent_id="agent-1", event_id="e", soft_fail=soft_fail)
    with pytest.raises(error, match="No key."):
        op.resume_execution("execute_complete", {"event": payload}, {})


@pytest.mark.parametrize(
    ("end_status", "run_seconds", "error"),
    [("COMPLETED", 5.0, None), ("FAILED", 5.0, AirflowFailException), ("COMPLETED", 500.0, AirflowSensorTimeout)],
)
def test_the_arguments_at_the_deferral_decide_and_not_what_templates_give_later(
    platform, monkeypatch, end_status, run_seconds, error
):
    url = "https://app.example/{agent_id}/{event_id}"
    monkeypatch.setenv("AIRFLOW_CONN_AGENTS_DEFAULT", connection(platform.url, run_url=url))
    platform.sim.add_agent("agent-1", end_status=end_status, run_seconds=run_seconds)
    event_id = platform.sim.start_scheduled_run("agent-1")
    op = sensor(agent_id="agent-1", event_id=event_id, timeout=60.0)
    with pytest.raises(TaskDeferred) as deferred:
        run_to_deferral(op)
    payload = asyncio.run(first_event(deferred.value.trigger)).payload
    op.agent_id, op.event_id, op.started_after, op.agents_conn_id = "", None, "no moment", "gone"
    if error is None:
        assert op.execute_complete({}, payload)["id"] == event_id
        assert op.run_link == f"https://app.example/agent-1/{event_id}"
    else:
        with pytest.raises(error, match=event_id):
            op.execute_complete({}, payload)


def test_a_run_missing_at_the_timeout_is_named_as_the_sensor_was_deferred_with(platform):
    op = sensor(agent_id="agent-1", started_after="2026-01-01T10:00:00+00:00", timeout=60.0)
    with pytest.raises(TaskDeferred) as deferred:
        run_to_deferral(op)
    payload = asyncio.run(first_event(deferred.value.trigger)).payload
    op.started_after = "2027-01-01T10:00:00+00:00"
    with pytest.raises(
        AirflowSensorTimeout, match="^No run was known that began from 2026-01-01 10:00:00.*agent=agent-1"
    ):
        op.execute_complete({}, payload)


def test_what_may_pass_ends_nothing(platform, wait):
    event_id = platform.sim.start_scheduled_run("agent-1")
    platform.sim.faults.extend(Fault(kind="reset_before") for _ in range(9))
    assert wait(agent_id="agent-1", event_id=event_id)["id"] == event_id


@pytest.mark.parametrize("named", ["event", "moment"])
@pytest.mark.parametrize("status", ERROR_OF)
def test_refusals_for_some_minutes_fail_no_sensor(platform, wait, status, named):
    platform.sim.add_agent("agent-1", queue_seconds=0.0, run_seconds=900.0)
    event_id = platform.sim.start_scheduled_run("agent-1")
    refuse(platform, status, after=12 if named == "moment" else 120, seconds=240)
    which = {"event_id": event_id} if named == "event" else {"started_after": NINE}
    assert wait(agent_id="agent-1", **which)["id"] == event_id


@pytest.mark.parametrize("status", ERROR_OF)
def test_refusals_without_an_end_fail_a_sensor_after_five_minutes(platform, wait, status):
    platform.sim.add_agent("agent-1", queue_seconds=0.0, run_seconds=3600.0)
    event_id = platform.sim.start_scheduled_run("agent-1")
    began = platform.sim.clock()
    refuse(platform, status, after=120, seconds=3000)
    with pytest.raises(AirflowFailException, match=f"{status}.*Every request since 2026-01-01 09:0. *"):
        wait(agent_id="agent-1", event_id=event_id)
    assert 420 <= (platform.sim.clock() - began).total_seconds() <= 420 + 200


@pytest.mark.parametrize("status", ERROR_OF)
def test_a_refusal_of_the_first_look_fails_a_sensor_at_once(platform, wait, status):
    refuse(platform, status, after=0, seconds=1000)
    with pytest.raises(AirflowFailException, match=f"{status}"):
        wait(agent_id="agent-1", event_id="event-1")
    assert platform.slept == []


@pytest.mark.parametrize("way", ["poke", "reschedule"])
def test_a_refused_sensor_keeps_its_timeout(platform, monkeypatch, way):
    monkeypatch.setattr(
        "airflow.sdk.bases.sensor.time",
        SimpleNamespace(monotonic=lambda: datetime.now(UTC).timestamp(), sleep=time.sleep),
    )

    class Sensor(AgentRunSensor):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            self.arguments = arguments

    platform.sim.add_agent("agent-1", queue_seconds=0.0, run_seconds=3600.0)
    event_id = platform.sim.start_scheduled_run("agent-1")
    refuse(platform, 404, after=30, seconds=3000)
    with pytest.raises(AirflowSensorTimeout):
        run(
            platform,
            Sensor(task_id="wait", mode=way, poke_interval=5.0, agent_id="agent-1", event_id=event_id, timeout=60),
        )
    assert sum(platform.slept) <= 90


def test_a_look_of_many_slow_pages_puts_off_no_timeout_of_a_sensor_on_a_worker(platform, wait):
    if wait.way == "deferrable":
        pytest.skip("the time of an event loop does not move with that of the answers")
    event_id = platform.sim.start_scheduled_run("agent-1")
    platform.sim.config = replace(platform.sim.config, endless_tokens=True)

    def slowly(_request, answer):
        platform.traveller.shift(timedelta(seconds=15))
        return answer()

    platform.sim.intercept(slowly)
    began = platform.sim.clock()
    with pytest.raises(AirflowSensorTimeout):
        wait(agent_id="agent-1", event_id=event_id, timeout=60)
    assert (platform.sim.clock() - began).total_seconds() <= 60 + LAST_POLL_SECONDS + 30


@newer_airflow
@pytest.mark.parametrize("status", ERROR_OF)
def test_without_a_worker_only_the_first_refusal_fails_a_sensor_at_once(platform, status):
    def started(**which):
        op = AgentRunSensor(task_id="wait", agent_id="agent-1", start_from_trigger=True, poke_interval=5.0, **which)
        return AgentRunTrigger(**op.start_trigger_args.trigger_kwargs)

    platform.sim.add_agent("agent-1", queue_seconds=0.0, run_seconds=900.0)
    event_id = platform.sim.start_scheduled_run("agent-1")
    for which in ({"event_id": event_id}, {"started_after": NINE}):
        platform.sim.faults.clear()
        refuse(platform, status, after=0, seconds=60)
        began = platform.sim.clock()
        event = asyncio.run(first_event(started(**which)))
        assert str(status) in event.payload["error"]
        assert (platform.sim.clock() - began).total_seconds() < 5
        platform.sim.faults.clear()
        refuse(platform, status, after=12, seconds=240)
        assert asyncio.run(first_event(started(**which))).payload["outcome"] == "completed"


# --- what it refuses when the DAG is parsed ---


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({}, "none is given"),
        ({"agent_id": "agent-1"}, "none is given"),
        ({"agent_id": "agent-1", "event_id": "e", "started_after": NINE}, "given are event_id, started_after"),
        ({"event_id": "e"}, "agent"),
        ({"agent_id": " ", "event_id": "e"}, "agent"),
        ({"agent_id": "agent-1", "event_id": " "}, "event_id"),
        ({"agent_id": "agent-1", "started_after": "yesterday"}, "started_after"),
        ({"agent_id": "agent-1", "started_after": "2026-01-01T09:00:00"}, "time zone"),
        ({"agent_id": "agent-1", "started_after": datetime(2026, 1, 1)}, "time zone"),  # noqa: DTZ001
        ({"agent_id": "agent-1", "started_before": NINE}, "Give started_after"),
        ({"agent_id": "agent-1", "started_before": "{{ data_interval_end }}"}, "Give started_after"),
        ({"agent_id": "agent-1", "event_id": "e", "started_before": NINE}, "Give started_after"),
        ({"agent_id": "agent-1", "started_after": NINE, "started_before": NINE}, "must be later"),
        (
            {"agent_id": "agent-1", "started_after": "{{ x }}", "started_before": "noon"},
            "started_before of .* must be",
        ),
        (
            {"agent_id": "agent-1", "started_after": "noon", "started_before": "{{ x }}"},
            "started_after of .* must be",
        ),
        ({"submission": {"agent_id": "agent-1"}}, "submission"),
        ({"agent_id": "agent-1", "event_id": "e", "poke_interval": 0}, "poke_interval"),
        ({"agent_id": "agent-1", "event_id": "e", "timeout": -1}, "timeout"),
        ({"agent_id": "agent-1", "event_id": "e", "settle": 60, "appear_within": 30}, "at least settle"),
        ({"agent_id": "agent-1", "event_id": "e", "on_ambiguous": "guess"}, "on_ambiguous"),
        ({"agent_id": "agent-1", "event_id": "e", "deferrable": True, "mode": "poke"}, "Leave out mode"),
    ],
)
def test_a_wrong_argument_is_refused_when_the_dag_is_parsed(wrong, words):
    with pytest.raises(InvalidArgumentError, match=words):
        AgentRunSensor(task_id="wait", **wrong)


def test_a_submission_of_another_agent_is_refused(platform, task):
    submission = ExecuteAgentOperator(task_id="run", agent_id="agent-1", wait_for_completion=False).execute(
        task.context()
    )
    with pytest.raises(InvalidArgumentError, match="Leave agent_id out"):
        AgentRunSensor(task_id="wait", agent_id="agent-2", submission=submission)


def test_templates_and_xcoms_are_checked_when_they_are_known(platform):
    op = AgentRunSensor(task_id="wait", agent_id="{{ params.agent }}", event_id="{{ params.event }}")
    op.agent_id, op.event_id = "agent-1", " "
    with pytest.raises(AirflowFailException, match="event_id of .* must be"):
        run(platform, op)
    with DAG("d", schedule=None):
        started = ExecuteAgentOperator(task_id="start", agent_id="agent-1", wait_for_completion=False)
        AgentRunSensor(task_id="wait", submission=started.output)
        AgentRunSensor(task_id="of", agent_id="agent-1", started_after="{{ a }}", started_before=NINE)


@pytest.mark.parametrize(("rendered", "words"), [(None, "rendered to None"), ("", "a moment"), (NINE, "must be later")])
@pytest.mark.parametrize("soft_fail", [True, False])
def test_an_interval_whose_template_turns_out_wrong_fails_before_the_wait(platform, rendered, words, soft_fail):
    op = AgentRunSensor(
        task_id="wait", agent_id="agent-1", started_after=NINE, started_before="{{ end }}", soft_fail=soft_fail
    )
    op.started_before = rendered
    with pytest.raises(AirflowFailException, match=words):
        run(platform, op)
    assert platform.sim.count() == 0


def test_a_mode_may_come_from_the_dags_default_arguments():
    with DAG("d", schedule=None, default_args={"mode": "reschedule"}):
        op = AgentRunSensor(task_id="wait", agent_id="agent-1", event_id="e")
    assert (op.deferrable, op.poke_interval) == (False, 60.0)


def test_the_ways_of_waiting():
    named = {"agent_id": "agent-1", "event_id": "e"}
    assert AgentRunSensor(task_id="wait", **named).deferrable
    assert AgentRunSensor(task_id="wait", **named).poke_interval == 5.0
    assert not AgentRunSensor(task_id="wait", mode="poke", **named).deferrable
    assert not AgentRunSensor(task_id="wait", deferrable=False, **named).deferrable
    assert AgentRunSensor(task_id="wait", mode="reschedule", **named).poke_interval == 60.0


# --- from the triggerer alone ---


def task_of(**values):
    return SimpleNamespace(try_number=1, **values)


def in_the_triggerer(op, **task_instance):
    """What Airflow's triggerer does with a task that starts there."""
    arguments = op.start_trigger_args.trigger_kwargs
    assert json.loads(json.dumps(arguments)) == arguments
    trigger = AgentRunTrigger(**arguments)
    type(trigger).task_instance = task_of(**task_instance)
    try:
        return asyncio.run(first_event(trigger))
    finally:
        type(trigger).task_instance = None


@newer_airflow
def test_start_from_trigger_takes_no_worker_for_a_run_that_completed(platform, monkeypatch):
    monkeypatch.setattr(AgentRunTrigger, "task_instance", None, raising=False)
    event_id = platform.sim.start_scheduled_run("agent-1")
    op = AgentRunSensor(task_id="wait", agent_id="agent-1", event_id=event_id, start_from_trigger=True)
    event = in_the_triggerer(op, start_date=datetime.now(UTC))
    assert event.task_instance_state == "success"
    assert event.xcoms["return_value"]["id"] == event_id
    assert event.xcoms["usage"]["try_number"] == 1
    assert op.start_trigger_args.timeout > timedelta(seconds=op.timeout)


@newer_airflow
def test_start_from_trigger_resumes_a_worker_for_every_other_end(platform, monkeypatch):
    monkeypatch.setattr(AgentRunTrigger, "task_instance", None, raising=False)
    platform.sim.add_agent("agent-1", end_status="FAILED", error="out of luck")
    event_id = platform.sim.start_scheduled_run("agent-1")
    op = AgentRunSensor(task_id="wait", agent_id="agent-1", event_id=event_id, start_from_trigger=True)
    event = in_the_triggerer(op, start_date=datetime.now(UTC))
    with pytest.raises(AirflowFailException, match="out of luck"):
        op.resume_execution(op.start_trigger_args.next_method, {"event": event.payload}, {"ti": task_of()})


@newer_airflow
def test_a_triggerer_that_starts_again_does_not_start_the_time_again(platform, monkeypatch):
    monkeypatch.setattr(AgentRunTrigger, "task_instance", None, raising=False)
    platform.sim.add_agent("agent-1", run_seconds=5000.0)
    event_id = platform.sim.start_scheduled_run("agent-1")
    op = AgentRunSensor(task_id="wait", agent_id="agent-1", event_id=event_id, start_from_trigger=True, timeout=100)
    deferred_at = datetime.now(UTC)
    platform.advance(90)
    before = sum(platform.slept)
    event = in_the_triggerer(op, start_date=deferred_at)
    assert event.payload["outcome"] == "timed_out"
    assert sum(platform.slept) - before < 20


@newer_airflow
def test_a_template_that_turns_out_wrong_in_the_triggerer_fails_the_task(platform, monkeypatch):
    monkeypatch.setattr(AgentRunTrigger, "task_instance", None, raising=False)
    op = AgentRunSensor(task_id="wait", agent_id="agent-1", started_after="{{ nonsense }}", start_from_trigger=True)
    event = in_the_triggerer(op)
    with pytest.raises(AirflowFailException, match="started_after of AgentRunTrigger must be a moment"):
        op.resume_execution("execute_complete", {"event": event.payload}, {"ti": task_of()})


@newer_airflow
@pytest.mark.parametrize("agent_id", [" agent-1", "", "a/../b", None])
def test_an_agent_id_that_turns_out_wrong_in_the_triggerer_fails_the_task(platform, agent_id):
    op = AgentRunSensor(task_id="wait", agent_id="{{ params.agent }}", event_id="e", start_from_trigger=True)
    trigger = AgentRunTrigger(**op.start_trigger_args.trigger_kwargs)
    trigger.agent_id = agent_id
    event = asyncio.run(first_event(trigger))
    with pytest.raises(AirflowFailException, match="agent_id"):
        op.resume_execution("execute_complete", {"event": event.payload}, {"ti": task_of()})


@newer_airflow
@pytest.mark.parametrize("soft_fail", [True, False])
def test_an_interval_without_a_run_is_late_for_a_task_that_starts_in_the_triggerer(platform, monkeypatch, soft_fail):
    monkeypatch.setattr(AgentRunTrigger, "task_instance", None, raising=False)
    end = NINE + timedelta(seconds=300)
    platform.sim.start_scheduled_run("agent-1", after=400)
    op = AgentRunSensor(
        task_id="wait",
        agent_id="agent-1",
        started_after=NINE,
        started_before=end,
        soft_fail=soft_fail,
        start_from_trigger=True,
    )
    event = in_the_triggerer(op, start_date=datetime.now(UTC))
    with pytest.raises(AirflowSkipException if soft_fail else AirflowSensorTimeout, match="none can appear any more"):
        op.resume_execution("execute_complete", {"event": event.payload}, {"ti": task_of()})


@newer_airflow
def test_an_interval_whose_end_the_triggerer_renders_to_nothing_fails_the_task(platform, monkeypatch):
    monkeypatch.setattr(AgentRunTrigger, "task_instance", None, raising=False)
    op = AgentRunSensor(
        task_id="wait", agent_id="agent-1", started_after=NINE, started_before="{{ end }}", start_from_trigger=True
    )
    trigger = AgentRunTrigger(**op.start_trigger_args.trigger_kwargs)
    trigger.started_before = None  # as Airflow renders it in a DAG with native objects
    event = asyncio.run(first_event(trigger))
    assert "started_before was rendered to None" in event.payload["error"]


@newer_airflow
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"mode": "poke"}, "deferrable sensor"),
        ({"outlets": [1]}, "its outlets"),
        ({"on_success_callback": print}, "on_success_callback"),
    ],
)
def test_start_from_trigger_is_refused_where_it_would_lose_something(wrong, words):
    with pytest.raises(InvalidArgumentError, match=words):
        AgentRunSensor(task_id="wait", agent_id="agent-1", event_id="e", start_from_trigger=True, **wrong)


@newer_airflow
def test_start_from_trigger_is_refused_for_an_xcom():
    with DAG("d", schedule=None):
        started = ExecuteAgentOperator(task_id="start", agent_id="agent-1", wait_for_completion=False)
        with pytest.raises(InvalidArgumentError, match="Only a worker can read an XCom"):
            AgentRunSensor(task_id="wait", submission=started.output, start_from_trigger=True)


def test_it_is_an_option_of_the_instance_and_never_of_the_class():
    # Airflow would start mapped tasks in the triggerer with the class's arguments, and lose their own.
    assert AgentRunSensor.start_from_trigger is False
    assert AgentRunSensor.start_trigger_args is None
    if not TRIGGERS_END_TASKS:
        with pytest.raises(InvalidArgumentError, match=r"needs Airflow 3\.3"):
            AgentRunSensor(task_id="wait", agent_id="agent-1", event_id="e", start_from_trigger=True)


def test_parsing_a_dag_with_a_sensor_loads_no_http_client():
    code = (
        "import sys, airflow\n"
        "before = set(sys.modules)\n"
        "for name in [name for name in before if name.split('.')[0] in ('httpx', 'starlette')]: del sys.modules[name]\n"
        "import airflow_provider_agents.sensors\n"
        "assert not {'httpx', 'starlette', 'airflow_provider_agents.simulator'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)  # noqa: S603 - our own interpreter and code
    assert done.returncode == 0


def test_the_hook_is_the_operators(platform):
    assert AgentRunSensor(task_id="wait", agent_id="a", event_id="e").agents_conn_id == AgentsHook.default_conn_name


@newer_airflow
@pytest.mark.parametrize(
    "template",
    [
        "{{ ti.xcom_pull(task_ids='start', key='event_id') }}",
        "{{ task_instance.xcom_pull('start') }}",
        "{{ task_state_store.get('agent_run') }}",
    ],
)
@pytest.mark.parametrize("name", ["event_id", "agent_id", "agents_conn_id"])
def test_a_template_that_hangs_in_the_triggerer_is_refused(name, template):
    arguments = {"agent_id": "agent-1", "event_id": "e", name: template}
    with pytest.raises(InvalidArgumentError, match=f"would never start: the template of {name} uses"):
        AgentRunSensor(task_id="wait", start_from_trigger=True, **arguments)
    AgentRunSensor(task_id="wait", **arguments)


class _OwnPoke(AgentRunSensor):
    def poke(self, context):
        return super().poke(context)


class _OwnPreExecute(AgentRunSensor):
    def pre_execute(self, context):
        pass


@newer_airflow
@pytest.mark.parametrize(
    ("made", "arguments", "lost"),
    [
        (AgentRunSensor, {"pre_execute": print}, "pre_execute"),
        (AgentRunSensor, {"post_execute": print}, "post_execute"),
        (AgentRunSensor, {"on_execute_callback": print}, "on_execute_callback"),
        (AgentRunSensor, {"on_success_callback": print}, "on_success_callback"),
        (AgentRunSensor, {"multiple_outputs": True}, "multiple_outputs"),
        (_OwnPoke, {}, "the poke of _OwnPoke"),
        (_OwnPreExecute, {}, "the pre_execute of _OwnPreExecute"),
    ],
)
def test_what_a_task_without_a_worker_would_lose_is_refused(made, arguments, lost):
    with pytest.raises(InvalidArgumentError, match=f"start_from_trigger of task 'wait' would lose .*{lost}"):
        made(task_id="wait", agent_id="agent-1", event_id="e", start_from_trigger=True, **arguments)


def test_execution_timeout_bounds_a_deferred_sensor(platform):
    platform.sim.add_agent("slow", run_seconds=9000.0)
    event_id = platform.sim.start_scheduled_run("slow")
    op = sensor(agent_id="slow", event_id=event_id, execution_timeout=timedelta(seconds=100))
    with pytest.raises(TaskDeferred) as deferred:
        run_to_deferral(op)
    assert datetime.fromisoformat(deferred.value.trigger.deadline_at) == NINE + timedelta(seconds=100)


# --- rows that cannot be read ---


def test_an_event_whose_row_cannot_be_read_is_waited_for_and_the_time_out_says_why(platform, wait, logged):
    theirs = platform.sim.start_scheduled_run("agent-1")
    platform.sim.corrupt(theirs, {"status": None})
    with pytest.raises(AirflowSensorTimeout) as late:
        wait(agent_id="agent-1", event_id=theirs, timeout=300)
    # On a worker, the words of the error are Airflow's.
    assert "unreadable: status: " in str(late.value) + logged()
    assert theirs in str(late.value) + logged()
    platform.sim.restore(theirs)
    assert wait(agent_id="agent-1", event_id=theirs)["id"] == theirs


def test_a_row_whose_begin_cannot_be_read_hides_no_first_run(platform, wait):
    platform.sim.add_row("agent-1", {"startedAt": 7})
    theirs = platform.sim.start_scheduled_run("agent-1")
    assert wait(agent_id="agent-1", started_after=NINE)["id"] == theirs


def test_a_row_that_cannot_be_read_is_logged_once_for_all_pokes(platform, caplog):
    theirs = platform.sim.start_scheduled_run("agent-1")
    odd = platform.sim.add_row("agent-1", {"status": None})
    run(platform, sensor("poke", agent_id="agent-1", event_id=theirs, poke_interval=1.0))
    assert caplog.text.count(f"event={odd}") == 1
