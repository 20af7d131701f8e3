"""What users' tests are given: the fixture, its time, and the page of the docs about it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import time
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import time_machine
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)
from airflow.sdk import DAG
from conftest import needs_airflow

from airflow_provider_agents import clock
from airflow_provider_agents.api.errors import AgentRunFailedError, AgentRunNotFoundError, AgentRunTimeoutError
from airflow_provider_agents.hooks import AgentsHook
from airflow_provider_agents.operators import ExecuteAgentOperator
from airflow_provider_agents.sensors import AgentRunSensor
from airflow_provider_agents.testing import SkippedTime
from airflow_provider_agents.version_compat import TRIGGERS_END_TASKS
from airflow_provider_agents.watchers import AgentRunEventTrigger

ROOT = Path(__file__).parents[1]
remembers = pytest.mark.skipif(not TRIGGERS_END_TASKS, reason="no task state store before Airflow 3.3")


@pytest.fixture(params=["on the worker", "deferred"])
def waiting(request):
    return {"deferrable": request.param == "deferred"}


def operator(agent_id="prices", **arguments):
    return ExecuteAgentOperator(task_id="run", agent_id=agent_id, **arguments)


# --- the fixture ---


def test_twenty_minutes_with_the_default_arguments_take_an_instant(agents_simulator, waiting):
    agents_simulator.add_agent("prices", run_seconds=1200)
    began, began_there = time.monotonic(), agents_simulator.now()
    event = agents_simulator.run(operator(**waiting))
    assert event["id"] == agents_simulator.executions("prices")[0].event_id
    assert (event["status"], event["browserSessionSeconds"]) == ("COMPLETED", 1200)
    assert timedelta(seconds=1201) <= agents_simulator.now() - began_there < timedelta(seconds=1300)
    # Generous: what matters is that it is not minutes.
    assert time.monotonic() - began < 20


def test_a_short_run_is_not_told_before_it_has_settled(agents_simulator, waiting):
    agents_simulator.add_agent("prices", run_seconds=1)
    began_there = agents_simulator.now()
    agents_simulator.run(operator(settle=30, **waiting))
    assert timedelta(seconds=30) <= agents_simulator.now() - began_there < timedelta(seconds=60)


def test_a_run_that_failed_says_why(agents_simulator, waiting):
    agents_simulator.add_agent("news", ends="FAILED", error="quota")
    with pytest.raises(AgentRunFailedError, match="quota"):
        agents_simulator.run(operator("news", **waiting))


def test_runs_end_as_told_in_turn_and_the_last_word_holds(agents_simulator):
    agents_simulator.add_agent("news", ends=["FAILED", "COMPLETED"])
    with pytest.raises(AgentRunFailedError):
        agents_simulator.run(operator("news"))
    ends = [agents_simulator.run(operator("news", durable=False))["status"] for _ in range(2)]
    assert ends == ["COMPLETED", "COMPLETED"]
    assert len(agents_simulator.executions("news")) == 3


@remembers
def test_a_retry_takes_up_the_run_that_goes_on(agents_simulator, waiting):
    agents_simulator.add_agent("prices", run_seconds=1200)
    task = operator(timeout=900, **waiting)
    began_there = agents_simulator.now()
    with pytest.raises(AgentRunTimeoutError):
        agents_simulator.run(task)
    assert timedelta(seconds=900) <= agents_simulator.now() - began_there < timedelta(seconds=930)
    assert agents_simulator.run(task)["status"] == "COMPLETED"
    assert len(agents_simulator.executions()) == 1


@remembers
@pytest.mark.parametrize("keep_task_state", [True, False])
def test_a_cleared_task_waits_for_its_run_while_that_run_goes_on(agents_simulator, waiting, keep_task_state):
    agents_simulator.add_agent("prices", run_seconds=1200)
    task = operator(timeout=900, **waiting)
    with pytest.raises(AgentRunTimeoutError):
        agents_simulator.run(task)
    agents_simulator.clear(task, keep_task_state=keep_task_state)
    assert agents_simulator.run(task)["status"] == "COMPLETED"
    assert len(agents_simulator.executions()) == 1


@remembers
@pytest.mark.parametrize("keep_task_state", [True, False])
def test_a_clear_of_a_finished_task_wants_a_new_run(agents_simulator, waiting, keep_task_state):
    agents_simulator.add_agent("prices")
    task = operator(**waiting)
    assert agents_simulator.run(task) == agents_simulator.run(task)
    agents_simulator.clear(task, keep_task_state=keep_task_state)
    agents_simulator.run(task)
    assert len(agents_simulator.executions()) == 2


@needs_airflow("3.4")
def test_what_a_clear_has_discarded_is_followed_by_a_new_run_once_its_run_has_ended(agents_simulator, waiting):
    agents_simulator.add_agent("prices", run_seconds=1200)
    for keep_task_state, started in ((True, 1), (False, 2)):
        task = operator(timeout=900, **waiting)
        with pytest.raises(AgentRunTimeoutError):
            agents_simulator.run(task)
        agents_simulator.advance(600)
        before = len(agents_simulator.executions())
        agents_simulator.clear(task, keep_task_state=keep_task_state)
        with contextlib.suppress(AgentRunTimeoutError):
            agents_simulator.run(task)
        assert len(agents_simulator.executions()) - before + 1 == started


def test_a_task_that_was_not_run_cannot_be_cleared(agents_simulator):
    with pytest.raises(ValueError, match="was given before"):
        agents_simulator.clear(operator())


def test_a_lost_answer_a_busy_platform_and_late_records_start_one_run(agents_simulator, waiting):
    agents_simulator.add_agent("prices")
    agents_simulator.fail_requests(429, times=3, retry_after=20)
    agents_simulator.fail_requests(503, to="looks")
    agents_simulator.drop_responses()
    agents_simulator.delay_events(10)
    agents_simulator.limit_requests(10, seconds=20)
    assert agents_simulator.run(operator(**waiting))["status"] == "COMPLETED"
    assert len(agents_simulator.executions("prices")) == 1


def test_a_run_that_is_never_shown_counts_as_lost(agents_simulator, waiting):
    agents_simulator.add_agent("prices")
    agents_simulator.delay_events(1e6)
    with pytest.raises(AgentRunNotFoundError):
        agents_simulator.run(operator(**waiting))


def test_an_agent_that_was_not_added_is_unknown_to_the_platform(agents_simulator):
    agents_simulator.add_agent("prices")
    with pytest.raises(AirflowFailException, match="404"):
        agents_simulator.run(operator("prizes"))
    assert agents_simulator.executions() == []


def test_a_refused_key_fails_for_good(agents_simulator):
    agents_simulator.add_agent("prices")
    agents_simulator.fail_requests(401, times=None)
    with pytest.raises(AirflowFailException, match="401"):
        agents_simulator.run(operator())


def test_a_sensor_waits_for_a_run_that_begins_while_it_waits(agents_simulator):
    agents_simulator.add_agent("nightly", run_seconds=600)
    sensor = AgentRunSensor(task_id="wait", agent_id="nightly", started_after=agents_simulator.now())
    nightly = agents_simulator.start_run("nightly", after=900)
    assert agents_simulator.run(sensor)["id"] == nightly
    assert agents_simulator.executions() == []


def test_a_sensor_is_late_or_skipped_as_it_says(agents_simulator):
    agents_simulator.add_agent("nightly", run_seconds=900)
    event_id = agents_simulator.start_run("nightly")
    with pytest.raises(AirflowSensorTimeout):
        agents_simulator.run(AgentRunSensor(task_id="wait", agent_id="nightly", event_id=event_id, timeout=300))
    agents_simulator.add_agent("nightly", ends="FAILED")
    event_id = agents_simulator.start_run("nightly")
    agents_simulator.advance(100)
    with pytest.raises(AirflowSkipException):
        agents_simulator.run(AgentRunSensor(task_id="soft", agent_id="nightly", event_id=event_id, soft_fail=True))


def test_a_task_waits_until_a_busy_agent_is_idle(agents_simulator, waiting):
    agents_simulator.add_agent("prices", run_seconds=600)
    theirs = agents_simulator.start_run("prices")
    event = agents_simulator.run(operator(if_running="wait", **waiting))
    assert event["id"] == agents_simulator.executions("prices")[0].event_id != theirs
    assert agents_simulator.platform.truth(theirs).ended_at <= agents_simulator.platform.truth(event["id"]).accepted_at


def test_other_connections_lead_there_too(agents_simulator):
    agents_simulator.connect("agents_billing")
    agents_simulator.add_agent("prices")
    assert AgentsHook("agents_billing").get_agent("prices").id == "prices"
    with httpx.Client(base_url=agents_simulator.url, headers={"X-Api-Key": agents_simulator.api_key}) as http:
        assert http.get("/v1/agents/prices").status_code == 200


# --- `run`: one try of a task ---


def test_another_task_object_is_another_task_instance_even_with_the_same_id(agents_simulator, waiting):
    agents_simulator.add_agent("prices")
    ids = [agents_simulator.run(operator(**waiting))["id"] for _ in range(2)]
    assert ids == [done.event_id for done in agents_simulator.executions()]


@pytest.mark.parametrize("mode", [{}, {"mode": "poke"}, {"mode": "reschedule"}], ids=["deferred", "poke", "reschedule"])
def test_a_sensor_waits_in_each_of_its_modes_and_takes_no_time(agents_simulator, mode):
    agents_simulator.add_agent("nightly", run_seconds=900)
    real = time.monotonic()
    sensor = AgentRunSensor(task_id="wait", agent_id="nightly", started_after=agents_simulator.now(), **mode)
    nightly = agents_simulator.start_run("nightly", after=600)
    assert agents_simulator.run(sensor)["id"] == nightly
    event_id = agents_simulator.start_run("nightly")
    late = AgentRunSensor(task_id="late", agent_id="nightly", event_id=event_id, timeout=500, **mode)
    began_there = agents_simulator.now()
    with pytest.raises(AirflowSensorTimeout):
        agents_simulator.run(late)
    assert timedelta(seconds=500) <= agents_simulator.now() - began_there < timedelta(seconds=700)
    # Generous: what matters is that it is not the half hour that passes on the platform.
    assert time.monotonic() - real < 60


def mapped_task():
    return ExecuteAgentOperator.partial(task_id="mapped").expand(agent_id=["prices"])


class Prompted(ExecuteAgentOperator):
    template_fields = (*ExecuteAgentOperator.template_fields, "prompts")

    def __init__(self, prompts, **arguments):
        super().__init__(**arguments)
        self.prompts = prompts


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (mapped_task, "one operator or sensor, and this is a MappedOperator. Of a mapped task, make one instance"),
        (lambda: operator().output, "this is a TaskOutput"),
        (lambda: ExecuteAgentOperator, "this is the class ExecuteAgentOperator"),
        (lambda: DAG("other", schedule=None), "this is a DAG"),
        (lambda: operator("{{ params.agent }}"), "no templates and no XComs, and agent_id of run needs that"),
        (lambda: operator("{% if ds %}prices{% endif %}"), "agent_id of run needs that"),
        (lambda: operator(agents_conn_id="agents_{{ ds }}"), "agents_conn_id of run needs that"),
        (lambda: AgentRunSensor(task_id="wait", submission=operator().output), "submission of wait needs that"),
        (
            lambda: Prompted(prompts=[{"text": "{{ ds }}"}], task_id="run", agent_id="prices"),
            "prompts of run needs that",
        ),
        (
            lambda: Prompted(prompts={"a": (operator("x").output,)}, task_id="p", agent_id="prices"),
            "prompts of p needs that",
        ),
    ],
)
def test_what_cannot_be_run_on_its_own_is_refused_before_anything_is_started(agents_simulator, make, words):
    agents_simulator.add_agent("prices")
    with DAG("whole", schedule=None):
        task = make()
    with pytest.raises(ValueError, match=f"{words}.*dag.test"):
        agents_simulator.run(task)
    assert agents_simulator.platform.count() == 0


def test_a_task_of_a_dag_runs_without_the_tasks_around_it(agents_simulator):
    agents_simulator.add_agent("prices")
    with DAG("whole", schedule=None, params={"shop": "north"}):
        task = ContextReader(task_id="run", agent_id="prices", trigger_rule="one_failed", read=lambda context: context)
        ExecuteAgentOperator(task_id="before", agent_id="unknown") >> task
    context = agents_simulator.run(task)
    assert (context["dag"].dag_id, context["params"]["shop"], context["ti"].dag_id) == ("whole", "north", "whole")


def test_an_async_test_runs_a_task_as_any_other_does(agents_simulator, waiting):
    agents_simulator.add_agent("prices")

    async def scene():
        return agents_simulator.run(operator(**waiting))

    assert asyncio.run(scene())["status"] == "COMPLETED"
    assert len(agents_simulator.executions()) == 1


class ContextReader(ExecuteAgentOperator):
    def __init__(self, read, **arguments):
        super().__init__(**arguments)
        self.read = read

    def execute(self, context):
        return self.read(context)


def read_in_a_task(agents_simulator, read):
    return agents_simulator.run(ContextReader(task_id="run", agent_id="prices", read=read, retries=2))


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda context: context["dag_run"].run_id == context["run_id"] == context["ti"].run_id, True),
        (lambda context: context["dag_run"].conf, {}),
        (lambda context: context["dag_run"].clear_number, 0),
        (lambda context: context["dag_run"].run_after == context["logical_date"] == context["data_interval_end"], True),
        (lambda context: context["logical_date"].strftime("%Y-%m-%d") == context["ds"] == context["ts"][:10], True),
        (lambda context: context["task_instance"] is context["ti"], True),
        (lambda context: (context["ti"].try_number, context["ti"].max_tries, context["ti"].map_index), (1, 2, -1)),
        (lambda context: context["ti"].task.agent_id + context["task"].task_id, "pricesrun"),
        (lambda context: context["ti"].get_template_context() is context, True),
        (lambda context: context["ti"].xcom_push(key="k", value=[1]) or context["ti"].xcom_pull(key="k"), [1]),
        (lambda context: context["ti"].xcom_pull(task_ids="run", key="none", default=7), 7),
        (lambda context: context.get("var"), None),
    ],
)
def test_a_task_finds_in_its_context_what_airflow_puts_there(agents_simulator, read, expected):
    assert read_in_a_task(agents_simulator, read) == expected


@pytest.mark.parametrize(
    ("read", "error", "words"),
    [
        (lambda context: context["var"], KeyError, "no 'var' into the context. Use dag.test"),
        (lambda context: context["ti"].log_url, AttributeError, r"gives a task no ti.log_url. Use dag.test"),
        (lambda context: context["dag_run"].queued_at, AttributeError, "gives a task no dag_run.queued_at. Use"),
        (lambda context: context["ti"].xcom_pull(task_ids="list"), ValueError, "no XCom of 'list'. Use dag.test"),
        (lambda context: context["ti"].xcom_push("k", object()), TypeError, "serialize"),
    ],
)
def test_what_a_context_lacks_is_named_with_a_way_out(agents_simulator, read, error, words):
    with pytest.raises(error, match=words):
        read_in_a_task(agents_simulator, read)


def test_hooks_around_execute_run_as_on_a_worker(agents_simulator):
    calls = []

    class Hooked(ExecuteAgentOperator):
        def pre_execute(self, context):
            calls.append(("pre_execute", context["ti"].try_number))

        def post_execute(self, context, result=None):
            calls.append(("post_execute", result["status"]))

    agents_simulator.add_agent("prices")
    task = Hooked(
        task_id="run",
        agent_id="prices",
        pre_execute=lambda _: calls.append("before"),
        post_execute=lambda _, result: calls.append(("after", result["status"])),
    )
    agents_simulator.run(task)
    # A task that defers takes two worker processes; only the last one has a result.
    begins = ["before", ("pre_execute", 1)]
    assert calls == [*begins, *begins, ("after", "COMPLETED"), ("post_execute", "COMPLETED")]


def test_what_a_step_sets_on_the_task_is_gone_when_the_task_resumes(agents_simulator):
    class Forgetful(ExecuteAgentOperator):
        note = "as parsed"

        def execute(self, context):
            self.note = "as executed"
            return super().execute(context)

        def execute_complete(self, context, event=None, submission=None):
            return self.note

    agents_simulator.add_agent("prices")
    assert agents_simulator.run(Forgetful(task_id="run", agent_id="prices")) == "as parsed"


@remembers
@pytest.mark.parametrize("day", ["2020-02-29T23:59:59+00:00", "2035-01-01T00:00:00+00:00"])
def test_a_stopped_clock_of_the_test_is_the_platforms_too_and_waits_end(agents_simulator, waiting, day):
    agents_simulator.add_agent("prices", run_seconds=1200)
    with time_machine.travel(day, tick=False):
        task = operator(timeout=900, **waiting)
        with pytest.raises(AgentRunTimeoutError):
            agents_simulator.run(task)
        event = agents_simulator.run(task)
    assert event["createdAt"].startswith(day[:19])
    assert len(agents_simulator.executions()) == 1


def test_a_clock_that_is_set_back_between_two_tries_is_refused(agents_simulator):
    agents_simulator.add_agent("prices", run_seconds=1200)
    task = operator(timeout=300)
    with pytest.raises(AgentRunTimeoutError):
        agents_simulator.run(task)
    with (
        time_machine.travel("2020-01-01T00:00:00+00:00"),
        pytest.raises(ValueError, match="the clock was set back after the last try.*Freeze the clock around all tries"),
    ):
        agents_simulator.run(task)
    assert len(agents_simulator.executions()) == 1


# --- several at once ---


async def first_event(trigger):
    async with aclosing(trigger.run()) as events:
        return (await anext(events)).payload


def test_dozens_wait_at_once_and_each_gets_its_own_run(agents_simulator):
    agents_simulator.delay_events(3)
    agents_simulator.limit_requests(20, seconds=1)
    triggers = []
    for number in range(40):
        agents_simulator.add_agent(f"agent-{number}", run_seconds=10.0 * number)
        task = ExecuteAgentOperator(task_id=f"run-{number}", agent_id=f"agent-{number}")
        with pytest.raises(TaskDeferred) as deferred:
            task.execute({"ti": SimpleNamespace(try_number=1, max_tries=0, xcom_push=lambda key, value: None)})
        triggers.append(deferred.value.trigger)

    async def all_events():
        return await asyncio.gather(*map(first_event, triggers))

    ids = [payload["events"][0]["id"] for payload in asyncio.run(all_events())]
    assert ids == [done.event_id for done in agents_simulator.executions()]


def test_a_watcher_tells_of_a_run_that_the_platform_starts(agents_simulator):
    agents_simulator.add_agent("nightly", run_seconds=600)
    nightly = agents_simulator.start_run("nightly", after=300)
    payload = asyncio.run(first_event(AgentRunEventTrigger(agent_id="nightly")))
    assert [run["id"] for run in payload["runs"]] == [nightly]


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (
            lambda sim: sim.add_agent("a", ends="FAILD"),
            "ends must be COMPLETED or FAILED, or a list of these, got 'FAILD'",
        ),
        (lambda sim: sim.add_agent("a", ends=[]), "ends must be"),
        (lambda sim: sim.add_agent("a", error="quota"), "give ends='FAILED' with it"),
        (lambda sim: sim.add_agent("a", run_seconds="20 min"), "run_seconds must be a number of seconds"),
        (lambda sim: sim.add_agent("", run_seconds=20), "agent_id must be a text that is not empty"),
        (lambda sim: sim.executions("pricez"), "no agent 'pricez' .it has: prices.: add it"),
        (lambda sim: sim.start_run("pricez"), "no agent 'pricez'"),
        (lambda sim: sim.start_run("prices", after=-1), "after must be a number of seconds, 0 or more"),
        (lambda sim: sim.fail_requests(429, to="polls"), "to must be one of everything, execute, looks"),
        (lambda sim: sim.fail_requests(42), "status must be from 100 to 599"),
        (lambda sim: sim.limit_requests(5, seconds=0), "rate_limit must be a pair"),
        (lambda sim: sim.delay_events(-1), "record_lag must be"),
        (lambda sim: sim.advance(-1), "time only moves on"),
    ],
)
def test_a_mistake_in_a_test_is_said_clearly(agents_simulator, mistake, words):
    agents_simulator.add_agent("prices")
    with pytest.raises(ValueError, match=words):
        mistake(agents_simulator)


# --- its time ---


def test_waits_end_in_the_order_of_real_time_and_take_none():
    ended = []

    async def wait(seconds):
        await clock.asleep(seconds)
        ended.append((seconds, round(clock.loop_time() - began)))

    async def all_waits():
        nonlocal began
        began = clock.loop_time()
        await asyncio.gather(*map(wait, (3600, 60, 5, 86400)))

    began, real = 0.0, time.monotonic()
    with clock.replaced_by(SkippedTime()):
        asyncio.run(all_waits())
    assert ended == [(5, 5), (60, 60), (3600, 3600), (86400, 86400)]
    assert time.monotonic() - real < 10


def test_no_time_is_skipped_while_something_real_is_under_way():
    async def scene():
        sleeping = asyncio.create_task(clock.asleep(3600))
        with time_of_test.working():
            # As an answer from the network would: by way of a thread, and a few hands on the loop.
            await asyncio.to_thread(lambda: None)
            for _ in range(500):
                await asyncio.sleep(0)
            assert not sleeping.done()
        await sleeping

    time_of_test = SkippedTime()
    with clock.replaced_by(time_of_test):
        asyncio.run(scene())


def test_a_wait_that_is_given_up_skips_nothing():
    async def scene():
        began = clock.loop_time()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await clock.asleep(3600)
        await clock.asleep(1)
        return clock.loop_time() - began

    with clock.replaced_by(SkippedTime()):
        assert 1 <= asyncio.run(scene()) < 60


def test_what_is_not_the_providers_waits_in_real_time(agents_simulator):
    async def scene():
        began = asyncio.get_running_loop().time()
        await asyncio.gather(clock.asleep(3600), asyncio.sleep(0.05))
        return asyncio.get_running_loop().time() - began

    # A loop's timers end up to its clock's resolution early.
    assert 0.04 < asyncio.run(scene()) < 10
    assert agents_simulator.now() - datetime.now(UTC) > timedelta(seconds=3590)


def test_the_system_has_its_time_again_after_the_block():
    with clock.replaced_by(SkippedTime()):
        clock.sleep(3600)
        assert clock.now() - datetime.now(UTC) > timedelta(seconds=3590)
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=10)


# --- as a plugin, and as the docs say ---


def pytest_in(directory):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTEST"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=directory, env={**kept, "TMPDIR": str(directory)}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def files_of(page):
    return dict(re.findall(r'```python title="([^"]+)"\n(.*?)```', (ROOT / "docs" / page).read_text(), re.DOTALL))


def test_a_suite_that_does_not_use_it_loads_nothing_for_it(tmp_path):
    (tmp_path / "test_other.py").write_text(
        "import os, sys\n"
        "def test_nothing_is_loaded_or_set(request):\n"
        "    assert 'airflow_provider_agents.pytest_plugin' in sys.modules\n"
        "    ours = {name for name in sys.modules if name.startswith('airflow_provider_agents.')}\n"
        "    assert ours == {'airflow_provider_agents.pytest_plugin'}\n"
        "    assert not {'airflow', 'httpx', 'starlette', 'uvicorn', 'pydantic'} & set(sys.modules)\n"
        "    assert not [name for name in os.environ if name.startswith('AIRFLOW')]\n"
        "    assert 'agents_simulator' not in request.fixturenames\n"
    )
    done = pytest_in(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@remembers
def test_the_docs_tests_run_as_they_stand(tmp_path):
    for name, text in files_of("testing-your-dags.md").items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    done = pytest_in(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 passed" in done.stdout
