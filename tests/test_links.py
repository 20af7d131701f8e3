"""The link to the run: what each process that has a task in its hands leaves for Airflow's pages."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred
from airflow.sdk import DAG
from conftest import Task, connection

from airflow_provider_agents.api.errors import AgentRunFailedError, AgentRunTimeoutError
from airflow_provider_agents.hooks import run_url_of
from airflow_provider_agents.links import RUN_URL_KEY, AgentRunLink
from airflow_provider_agents.operators import ExecuteAgentOperator
from airflow_provider_agents.sensors import AgentRunSensor
from airflow_provider_agents.triggers import AgentRunTrigger
from airflow_provider_agents.version_compat import TRIGGERS_END_TASKS

RUN_URL = "https://app.example/{agent_id}/runs/{event_id}"
AGENT_URL = "https://app.example/{agent_id}"

newer_airflow = pytest.mark.skipif(not TRIGGERS_END_TASKS, reason="needs Airflow 3.3")


class Supervisor:
    """What Airflow's own processes answer to a task or a trigger that asks for XComs."""

    def __init__(self):
        self.xcoms, self.pushed, self.answers = {}, [], None
        self.on_push = lambda: None

    def send(self, msg):
        from airflow.sdk.execution_time.comms import XComResult

        if "XCom" not in type(msg).__name__:
            return None
        if self.answers is not None:
            raise self.answers
        place = (msg.key, msg.task_id, msg.map_index)
        if type(msg).__name__ == "SetXCom":
            self.xcoms[place] = msg.value
            self.pushed.append(place)
            self.on_push()
            return None
        return XComResult(key=msg.key, value=self.xcoms.get(place))

    async def asend(self, msg):
        if type(msg).__name__ == "SetXCom":
            await self.before_push()
        return self.send(msg)

    async def before_push(self):
        """Take no time."""


@pytest.fixture
def supervisor(monkeypatch):
    supervisor = Supervisor()
    monkeypatch.setattr("airflow.sdk.execution_time.task_runner.SUPERVISOR_COMMS", supervisor, raising=False)
    return supervisor


@pytest.fixture
def linked(platform, monkeypatch):
    """A connection with a `run_url`."""

    def link(template=RUN_URL):
        monkeypatch.setenv("AIRFLOW_CONN_AGENTS_DEFAULT", connection(platform.url, run_url=template))
        return platform

    return link


def key(map_index=-1):
    return SimpleNamespace(dag_id="dag", task_id="run", run_id="manual", map_index=map_index)


def link_of(op, map_index=-1):
    """What Airflow writes when the process that runs this task ends."""
    return AgentRunLink().get_link(op, ti_key=key(map_index))


def operator(**arguments):
    return ExecuteAgentOperator(**{"task_id": "run", "agent_id": "agent-1", **arguments})


def deferred(op, task, map_index=-1):
    """A task that has deferred, and its trigger as the triggerer makes it."""
    with pytest.raises(TaskDeferred) as raised:
        op.execute(task.context())
    _, kwargs = raised.value.trigger.serialize()
    trigger = AgentRunTrigger(**json.loads(json.dumps(kwargs)))
    trigger.__dict__["_in_task"] = SimpleNamespace(**vars(key(map_index)), try_number=1, start_date=None)
    return trigger


@pytest.fixture
def in_a_task(monkeypatch):
    """A trigger knows the task that it runs for, as it does in a triggerer."""
    # Before Airflow 3.1 a trigger's own constructor sets it.
    instance = property(lambda self: self.__dict__.get("_in_task"), lambda self, value: None)
    monkeypatch.setattr(AgentRunTrigger, "task_instance", instance, raising=False)


async def first_event(trigger):
    async for event in trigger.run():
        return event
    raise AssertionError("the trigger ended without an event")


# --- where it leads ---


@pytest.mark.parametrize(
    ("agent_id", "event_id", "url"),
    [
        ("a", "e", "https://app.example/a/runs/e"),
        ("a/../b", "e?x=1#y", "https://app.example/a%2F..%2Fb/runs/e%3Fx%3D1%23y"),
        ("a", "javascript:alert(1)", "https://app.example/a/runs/javascript%3Aalert%281%29"),
        ("a", '"><script>', "https://app.example/a/runs/%22%3E%3Cscript%3E"),
        ("{event_id}", "e", "https://app.example/%7Bevent_id%7D/runs/e"),
        ("a", "\ud800", "https://app.example/a/runs/%3F"),
        ("a", "..", None),
        (".", "e", None),
        ("a", "", None),
        ("a", None, None),
    ],
)
def test_no_id_leads_anywhere_else(agent_id, event_id, url):
    assert run_url_of(RUN_URL, agent_id=agent_id, event_id=event_id) == url


def test_a_template_without_the_event_needs_none():
    assert run_url_of(AGENT_URL, agent_id="a", event_id=None) == "https://app.example/a"
    assert run_url_of(None, agent_id="a", event_id="e") is None


# --- what a page is told ---


def test_a_process_that_knows_no_better_leaves_the_link_that_is_there(supervisor):
    supervisor.xcoms[RUN_URL_KEY, "run", 3] = "https://app.example/a"
    assert link_of(operator(), 3) == "https://app.example/a"
    assert link_of(operator(), 4) == ""


@pytest.mark.parametrize("stored", ["javascript:alert(1)", "", 7, {"a": 1}, None])
def test_what_is_no_link_is_never_shown_as_one(supervisor, stored):
    supervisor.xcoms[RUN_URL_KEY, "run", -1] = stored
    assert link_of(operator()) == ""


def test_xcoms_that_cannot_be_read_break_nothing(supervisor):
    supervisor.answers = RuntimeError("the API server is gone")
    assert link_of(operator()) == ""


def test_a_mapped_task_that_was_never_expanded_has_no_link(supervisor):
    with DAG("dag", schedule=None):
        mapped = ExecuteAgentOperator.partial(task_id="run").expand(agent_id=["a", "b"])
    assert link_of(mapped, 0) == ""


def test_the_pages_know_the_link_of_each_kind_of_task():
    try:
        from airflow.serialization.serialized_objects import DagSerialization
    except ImportError:  # as it was called before Airflow 3.2
        from airflow.serialization.serialized_objects import SerializedDAG as DagSerialization

    with DAG("dag", schedule=None) as dag:
        operator()
        ExecuteAgentOperator.partial(task_id="mapped").expand(agent_id=["a", "b"])
        AgentRunSensor(task_id="wait", agent_id="a", event_id="e")
        AgentRunSensor.partial(task_id="waits", agent_id="a").expand(event_id=["e", "f"])
    pages = DagSerialization.from_dict(DagSerialization.to_dict(dag))
    for task_id in ("run", "mapped", "wait", "waits"):
        (link,) = pages.get_task(task_id).operator_extra_link_dict.values()
        assert (link.name, link.xcom_key) == ("Agent run", "run_url")


# --- what a worker leaves ---


def test_without_a_run_url_there_is_no_link(platform, task, supervisor):
    op = operator(deferrable=False)
    op.execute(task.context())
    assert link_of(op) == ""
    assert RUN_URL_KEY not in task.xcoms


def test_a_worker_that_waits_shows_the_link_while_it_waits(linked, task):
    platform = linked()
    platform.sim.add_agent("agent-1", run_seconds=120.0)
    context, pushed_at = task.context(), []
    push = context["ti"].xcom_push
    context["ti"].xcom_push = lambda key, value: (pushed_at.append((key, sum(platform.slept))), push(key, value))
    op = operator(deferrable=False)
    event = op.execute(context)
    assert task.xcoms[RUN_URL_KEY] == link_of(op) == f"https://app.example/agent-1/runs/{event['id']}"
    assert dict(pushed_at)[RUN_URL_KEY] < 60 < dict(pushed_at)["usage"]


def test_a_worker_that_defers_shows_what_is_known_already(linked, task, supervisor):
    platform = linked(AGENT_URL)
    op = operator()
    trigger = deferred(op, task)
    assert link_of(op) == "https://app.example/agent-1"
    assert trigger.show == ["event_id"]
    linked(RUN_URL)
    op = operator()
    trigger = deferred(op, task)
    assert link_of(op) == ""
    assert trigger.show == ["event_id", RUN_URL_KEY]
    assert supervisor.pushed == []
    platform.sim.add_agent("agent-2", run_seconds=50.0)
    event_id = platform.sim.start_scheduled_run("agent-2")
    op = operator(agent_id="agent-2", if_running="attach", durable=False)
    trigger = deferred(op, task)
    assert link_of(op) == f"https://app.example/agent-2/runs/{event_id}"
    assert task.xcoms["event_id"] == event_id
    assert trigger.show == []


def test_a_task_that_does_not_wait_links_to_its_agent_and_to_no_run(linked, task):
    linked(AGENT_URL)
    op = operator(wait_for_completion=False, durable=False)
    op.execute(task.context())
    assert link_of(op) == "https://app.example/agent-1"
    linked(RUN_URL)
    op = operator(wait_for_completion=False, durable=False)
    op.execute(task.context())
    assert link_of(op) == ""


def test_a_failed_run_has_its_link(linked, task):
    platform = linked()
    platform.sim.add_agent("agent-1", end_status="FAILED")
    op = operator()
    event = asyncio.run(first_event(deferred(op, task)))
    op = operator()
    with pytest.raises(AgentRunFailedError):
        op.execute_complete(task.resumed(), event.payload)
    assert link_of(op) == f"https://app.example/agent-1/runs/{platform.executions()[0]}"


def test_a_run_that_is_only_probably_ours_has_no_link(linked, task, supervisor):
    platform = linked()
    platform.sim.add_agent("agent-1", run_seconds=100.0)
    op = operator(timeout=30.0)  # before the event is known to be the run's
    event = asyncio.run(first_event(deferred(op, task)))
    assert len(event.payload["events"]) == 1
    op = operator(timeout=30.0)
    with pytest.raises(AgentRunTimeoutError):
        op.execute_complete(task.resumed(), event.payload)
    assert link_of(op) == ""
    assert "event_id" not in task.xcoms


def test_runs_that_cannot_be_told_apart_have_no_link(linked, task, supervisor):
    platform = linked()
    platform.sim.add_agent("agent-1", schedule_every=1000.0, schedule_offset=2.0)
    op = operator(deferrable=False, on_ambiguous="fail")
    with pytest.raises(AirflowFailException):
        op.execute(task.context())
    assert link_of(op) == ""


def test_a_new_try_forgets_the_link_of_the_last_one(linked, task):
    platform = linked()
    op = operator(deferrable=False, durable=False)
    op.execute(task.context())
    assert link_of(op)
    platform.sim.api_keys = ("another",)
    with pytest.raises(AirflowFailException):
        op.execute(task.context())
    assert link_of(op) == ""


def test_a_sensor_links_to_the_run_that_it_waits_for(linked, task, supervisor, in_a_task):
    platform = linked()
    platform.sim.add_agent("agent-1", run_seconds=50.0)
    event_id = platform.sim.start_scheduled_run("agent-1")
    platform.advance(5)
    op = AgentRunSensor(task_id="run", agent_id="agent-1", event_id=event_id)
    trigger = deferred(op, task)
    assert link_of(op) == f"https://app.example/agent-1/runs/{event_id}"
    assert trigger.show == []
    event = asyncio.run(first_event(trigger))
    op = AgentRunSensor(task_id="run", agent_id="agent-1", event_id=event_id)
    op.execute_complete(task.resumed(), event.payload)
    assert link_of(op) == f"https://app.example/agent-1/runs/{event_id}"


# --- what a trigger pushes while the task is deferred ---


@newer_airflow
def test_a_trigger_pushes_the_event_and_the_link_once_as_soon_as_the_run_is_known(
    linked, task, supervisor, in_a_task, logged
):
    platform = linked()
    platform.sim.add_agent("agent-1", run_seconds=300.0)
    trigger = deferred(operator(), task, map_index=2)
    pushed_after = []
    supervisor.on_push = lambda: pushed_after.append(sum(platform.slept))
    asyncio.run(first_event(trigger))
    (mine,) = platform.executions()
    assert supervisor.pushed == [("event_id", "run", 2), (RUN_URL_KEY, "run", 2)]
    assert supervisor.xcoms["event_id", "run", 2] == mine
    assert supervisor.xcoms[RUN_URL_KEY, "run", 2] == f"https://app.example/agent-1/runs/{mine}"
    # As soon as nothing else can be taken for it, and long before its end.
    assert 30 <= pushed_after[0] <= pushed_after[1] < 60
    assert f"See the run: https://app.example/agent-1/runs/{mine}" in logged()


@newer_airflow
def test_a_worker_at_the_end_leaves_the_same_link(linked, task, supervisor, in_a_task):
    platform = linked()
    platform.sim.add_agent("agent-1", run_seconds=300.0)
    event = asyncio.run(first_event(deferred(operator(), task)))
    op = operator()
    assert link_of(op) == supervisor.xcoms[RUN_URL_KEY, "run", -1]
    op.execute_complete(task.resumed(), event.payload)
    assert link_of(op) == supervisor.xcoms[RUN_URL_KEY, "run", -1]


@newer_airflow
def test_a_run_that_is_over_when_it_is_known_is_left_to_the_worker(linked, task, supervisor, in_a_task):
    linked()
    asyncio.run(first_event(deferred(operator(), task)))
    assert supervisor.pushed == []


@newer_airflow
def test_without_a_run_url_nothing_is_pushed_before_the_end(platform, task, supervisor, in_a_task):
    platform.sim.add_agent("agent-1", run_seconds=300.0)
    event = asyncio.run(first_event(deferred(operator(), task)))
    assert supervisor.pushed == []
    operator().execute_complete(task.resumed(), event.payload)
    assert task.xcoms["event_id"] == platform.executions()[0]


@newer_airflow
def test_do_xcom_push_false_leaves_the_link_alone(linked, task, supervisor, in_a_task):
    platform = linked()
    platform.sim.add_agent("agent-1", run_seconds=300.0)
    asyncio.run(first_event(deferred(operator(do_xcom_push=False), task)))
    assert [place[0] for place in supervisor.pushed] == [RUN_URL_KEY]


@newer_airflow
def test_runs_that_cannot_be_told_apart_are_not_pushed(linked, task, supervisor, in_a_task):
    platform = linked()
    platform.sim.add_agent("agent-1", run_seconds=100.0, schedule_every=1000.0, schedule_offset=2.0)
    asyncio.run(first_event(deferred(operator(), task)))
    assert supervisor.pushed == []


@newer_airflow
def test_a_push_that_fails_fails_nothing_and_is_not_repeated(linked, task, supervisor, in_a_task, logged):
    platform = linked()
    platform.sim.add_agent("agent-1", run_seconds=300.0)
    supervisor.answers = RuntimeError("the database is gone")
    event = asyncio.run(first_event(deferred(operator(), task)))
    assert event.payload["outcome"] == "completed"
    assert logged().count("Not pushed while the task is deferred: the XComs event_id, run_url (RuntimeError)") == 1


@newer_airflow
def test_a_push_that_is_never_answered_delays_nothing(linked, task, supervisor, in_a_task):
    platform = linked()
    platform.sim.add_agent("agent-1", run_seconds=40.0)

    async def never():
        await asyncio.get_running_loop().create_future()

    supervisor.before_push = never
    event = asyncio.run(first_event(deferred(operator(), task)))
    assert event.payload["outcome"] == "completed"
    assert sum(platform.slept) < 50


@newer_airflow
def test_pushes_that_are_never_answered_hold_up_no_other_for_long(linked, supervisor, in_a_task, logged):
    platform = linked()
    triggers = []
    for number in range(40):
        platform.sim.add_agent(f"agent-{number}", queue_seconds=0.0, run_seconds=3600.0)
        triggers.append(deferred(operator(agent_id=f"agent-{number}"), Task()))

    async def never():
        await asyncio.get_running_loop().create_future()

    async def main():
        waits = [asyncio.ensure_future(first_event(trigger)) for trigger in triggers]
        await asyncio.sleep(300)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)

    supervisor.before_push = never
    asyncio.run(main())
    assert logged().count("Not pushed while the task is deferred") == 40


@newer_airflow
def test_a_trigger_that_was_stopped_pushes_no_more(linked, task, supervisor, in_a_task):
    platform = linked()
    platform.sim.add_agent("agent-1", run_seconds=300.0)

    async def stopped_in_between():
        trigger = asyncio.ensure_future(first_event(deferred(operator(), task)))

        async def slowly():
            trigger.cancel()
            await asyncio.sleep(1)

        supervisor.before_push = slowly
        with pytest.raises(asyncio.CancelledError):
            await trigger
        await asyncio.sleep(60)

    asyncio.run(stopped_in_between())
    assert [place[0] for place in supervisor.pushed] == ["event_id"]


@newer_airflow
def test_a_trigger_without_a_task_pushes_nothing(linked, task, supervisor):
    # As in `dag.test()`.
    platform = linked()
    platform.sim.add_agent("agent-1", run_seconds=300.0)
    asyncio.run(first_event(deferred(operator(), task)))
    assert supervisor.pushed == []


def test_a_task_without_a_record_leaves_it_to_the_worker(linked, task):
    # Cleared, it starts another run at once, and its old trigger lives on for two seconds.
    linked()
    assert deferred(operator(durable=False), task).show == []


@newer_airflow
def test_a_backend_of_the_deployments_own_gets_nothing_from_a_trigger(linked, task, supervisor, in_a_task, monkeypatch):
    from airflow.sdk.bases.xcom import BaseXCom

    class Backend(BaseXCom):
        """It would block."""

    monkeypatch.setattr("airflow.sdk.execution_time.xcom.XCom", Backend)
    platform = linked()
    platform.sim.add_agent("agent-1", run_seconds=300.0)
    asyncio.run(first_event(deferred(operator(), task)))
    assert [place[0] for place in supervisor.pushed] == [RUN_URL_KEY]


@newer_airflow
def test_a_task_that_ends_in_its_trigger_has_the_link(linked, task, supervisor, in_a_task):
    platform = linked()
    event = asyncio.run(first_event(deferred(operator(end_from_trigger=True), task)))
    assert event.xcoms[RUN_URL_KEY] == f"https://app.example/agent-1/runs/{platform.executions()[0]}"


@newer_airflow
def test_a_sensor_that_takes_no_worker_has_the_link_all_the_same(linked, supervisor, in_a_task):
    platform = linked()
    platform.sim.add_agent("agent-1", run_seconds=50.0)
    event_id = platform.sim.start_scheduled_run("agent-1")
    op = AgentRunSensor(task_id="run", agent_id="agent-1", event_id=event_id, start_from_trigger=True)
    trigger = AgentRunTrigger(**op.start_trigger_args.trigger_kwargs)
    trigger.__dict__["_in_task"] = SimpleNamespace(**vars(key()), try_number=1, start_date=None)
    event = asyncio.run(first_event(trigger))
    assert event.xcoms[RUN_URL_KEY] == f"https://app.example/agent-1/runs/{event_id}"
    assert supervisor.pushed == [(RUN_URL_KEY, "run", -1)]
