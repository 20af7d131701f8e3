"""A task that Airflow kills while it is on a worker: how soon it ends, and what it finishes first.

The tests send real signals to the main thread, as Airflow does, and their handler calls `on_kill`, as Airflow's does.
"""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_agents.interruption import Interruption, interruptible, uninterruptible
from airflow_provider_agents.operators import ExecuteAgentOperator
from airflow_provider_agents.sensors import AgentRunSensor
from airflow_provider_agents.simulator import Fault
from airflow_provider_agents.task_state import RECORD_KEY
from airflow_provider_agents.version_compat import AirflowRescheduleException

KILLED = "The task was killed"
LONG = 3600.0


def operator(**arguments):
    return ExecuteAgentOperator(**{"task_id": "run", "agent_id": "agent-1", "deferrable": False, **arguments})


class Killer:
    """Sends the signal once, from whichever thread something happens in."""

    def __init__(self, platform):
        self._platform, self._pass_time = platform, platform.advance
        self.op = None
        self.has_struck = False
        self.released = threading.Event()

    def handle(self, *_):
        self.op.on_kill()

    def strike(self):
        if not self.has_struck:
            self.has_struck = True
            signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)

    def strike_in_pause(self, after=0.0):
        def advance(seconds):
            self._pass_time(seconds)
            if sum(self._platform.slept) >= after:
                self.strike()

        self._platform.advance = advance

    def strike_in_request(self, method, path, *, holds=False):
        """The platform acts, the signal comes, and then the answer, or with `holds` no answer in this test."""

        def meanwhile(request, answer):
            reply = answer()
            if request.method == method and path in request.path and not self.has_struck:
                self.strike()
                if holds:
                    assert self.released.wait(20), "the request was not given up"
            return reply

        self._platform.sim.intercept(meanwhile)


@pytest.fixture
def killer(platform):
    killer = Killer(platform)
    before = signal.signal(signal.SIGTERM, killer.handle)
    try:
        yield killer
    finally:
        killer.released.set()
        signal.signal(signal.SIGTERM, before)


def end_killed(killer, op, context):
    """Execute a task that is killed meanwhile; what ends it goes past every handler of exceptions."""
    killer.op = op
    with pytest.raises(SystemExit) as ended:
        op.execute(context)
    killer.released.set()
    assert ended.value.code == 143


def asked(platform, method):
    return [request for request in platform.sim.requests if request.method == method]


# --- the operator waits for its run ---


def test_a_killed_task_ends_in_the_pause_between_two_polls(platform, task, killer, logged):
    platform.sim.add_agent("agent-1", run_seconds=LONG)
    killer.strike_in_pause(after=60)
    end_killed(killer, operator(), task.context())
    assert 60 <= sum(platform.slept) <= 70
    (mine,) = platform.sim.executions
    said = logged()
    assert said.count(KILLED) == 1
    assert f"request_id={mine.request_id} event={mine.event_id}" in said
    # The next try waits for the same run.
    assert operator().execute(task.context())["id"] == mine.event_id
    assert len(platform.sim.executions) == 1


def test_a_killed_task_gives_up_a_poll_that_hangs(platform, task, killer, logged):
    platform.sim.add_agent("agent-1", run_seconds=LONG)
    op = operator()
    context = task.context()
    task_push = context["ti"].xcom_push

    def push(key, value):
        task_push(key, value)
        if key == "event_id":
            killer.strike_in_request("GET", "/events", holds=True)

    context["ti"].xcom_push = push
    end_killed(killer, op, context)
    assert KILLED in logged()
    assert task.store[RECORD_KEY]["phase"] == "accepted"
    assert operator().execute(task.context())["id"] in platform.executions()
    assert len(platform.executions()) == 1


def test_a_task_killed_while_its_xcom_is_written_finishes_the_xcom_and_ends(platform, task, killer):
    platform.sim.add_agent("agent-1", run_seconds=LONG)
    context = task.context()
    pushed = []

    def push(key, value):
        killer.strike()
        pushed.append(key)

    context["ti"].xcom_push = push
    end_killed(killer, operator(), context)
    assert pushed == ["request_id"]
    assert platform.slept == []


def test_a_second_signal_does_not_disturb_airflow_while_it_notes_the_end(platform, task, killer):
    platform.sim.add_agent("agent-1", run_seconds=LONG)
    killer.strike_in_pause()
    end_killed(killer, operator(), task.context())
    record = dict(task.store)
    signal.raise_signal(signal.SIGTERM)  # a SystemExit here would end Airflow's own code
    assert task.store == record
    assert len(platform.executions()) == 1


# --- before the POST ---


@pytest.mark.parametrize("if_running", ["start", "skip", "attach"])
def test_a_task_killed_while_it_looks_around_before_the_post_starts_nothing(platform, task, killer, if_running, logged):
    killer.strike_in_request("GET", "/events", holds=True)
    end_killed(killer, operator(if_running=if_running), task.context())
    assert asked(platform, "POST") == []
    assert RECORD_KEY not in task.store
    assert KILLED not in logged()


def test_a_task_killed_while_the_agent_is_busy_starts_nothing(platform, task, killer):
    platform.sim.add_agent("agent-1", run_seconds=LONG)
    platform.sim.start_scheduled_run("agent-1")
    killer.strike_in_pause(after=30)
    end_killed(killer, operator(if_running="wait"), task.context())
    assert 30 <= sum(platform.slept) <= 40
    assert platform.executions() == []


def test_a_task_killed_while_its_connection_is_missing_ends(platform, task, killer, monkeypatch):
    monkeypatch.delenv("AIRFLOW_CONN_AGENTS_DEFAULT")
    killer.strike_in_pause()
    end_killed(killer, operator(), task.context())
    assert len(platform.slept) == 1


# --- around the POST ---


@pytest.mark.parametrize("deferrable", [False, True])
def test_a_post_that_is_under_way_is_finished_and_recorded(platform, task, killer, logged, deferrable):
    platform.sim.add_agent("agent-1", run_seconds=LONG)
    killer.strike_in_request("POST", "/execute")
    if deferrable:
        killer.op = op = operator(deferrable=True)
        with pytest.raises(TaskDeferred):
            op.execute(task.context())
    else:
        end_killed(killer, operator(), task.context())
    (mine,) = platform.sim.executions
    assert task.store[RECORD_KEY]["submission"]["request_id"] == mine.request_id
    assert task.xcoms["request_id"] == mine.request_id
    assert platform.slept == []
    assert f"request_id={mine.request_id}" in logged().partition(KILLED)[2]
    assert operator().execute(task.context())["id"] == mine.event_id
    assert len(platform.executions()) == 1


def test_a_task_killed_while_its_record_is_written_finishes_the_record(platform, task, killer):
    platform.sim.add_agent("agent-1", run_seconds=LONG)
    store = task.store
    store_set = store.set

    def write(key, value, **options):
        killer.strike()
        store_set(key, value, **options)

    store.set = write
    end_killed(killer, operator(), task.context())
    assert store[RECORD_KEY]["submission"]["request_id"] == platform.sim.executions[0].request_id


def test_a_task_killed_while_it_looks_for_a_run_in_doubt_ends_and_pays_once(platform, task, killer):
    platform.sim.add_fault(Fault(kind="reset_after", method="POST", times=1))
    platform.sim.config = platform.sim.config.__class__(record_lag=20.0)
    killer.strike_in_pause()
    end_killed(killer, operator(), task.context())
    assert task.store[RECORD_KEY]["phase"] == "submitting"
    assert operator().execute(task.context())["id"] in platform.executions()
    assert len(platform.executions()) == 1


def test_a_task_killed_in_the_pause_after_a_refused_post_leaves_nothing_in_doubt(platform, task, killer):
    platform.sim.add_fault(Fault(kind="status", status=429, method="POST", times=1))
    killer.strike_in_pause()
    end_killed(killer, operator(), task.context())
    assert task.store[RECORD_KEY]["submission"]["sent_at"] is None
    assert platform.executions() == []


def test_on_kill_writes_no_log_line_in_the_signal_handler(platform, task, killer, logged):
    platform.sim.add_agent("agent-1", run_seconds=LONG)
    said = []

    def handle(*_):
        killer.op.on_kill()
        said.append(KILLED in logged())

    signal.signal(signal.SIGTERM, handle)
    killer.strike_in_request("POST", "/execute")
    end_killed(killer, operator(), task.context())
    assert said == [False]
    assert logged().count(KILLED) == 1


# --- the sensor ---


def context(**ti):
    return {"ti": SimpleNamespace(try_number=1, max_tries=0, **ti)}


@pytest.fixture
def event_id(platform, monkeypatch):
    """The event of a run that goes on for long. Airflow's own pause between two pokes takes no time."""
    monkeypatch.setattr("airflow.sdk.bases.sensor.time", SimpleNamespace(monotonic=time.monotonic, sleep=time.sleep))
    platform.sim.add_agent("agent-1", queue_seconds=0.0, run_seconds=LONG)
    return platform.sim.start_scheduled_run("agent-1")


@pytest.mark.parametrize("quiet", [{}, {"soft_fail": True}, {"never_fail": True}], ids=str)
def test_a_killed_sensor_ends_in_airflows_pause_between_two_pokes(platform, killer, event_id, logged, quiet):
    killer.strike_in_pause(after=60)
    sensor = AgentRunSensor(task_id="wait", mode="poke", agent_id="agent-1", event_id=event_id, **quiet)
    end_killed(killer, sensor, context())
    assert 60 <= sum(platform.slept) <= 70
    assert f"{KILLED}. The run that it waited for is left as it is." in logged()


@pytest.mark.parametrize("mode", ["poke", "reschedule", None])
def test_a_killed_sensor_gives_up_a_poll_that_hangs(platform, killer, event_id, mode):
    killer.strike_in_request("GET", "/events", holds=True)
    sensor = AgentRunSensor(task_id="wait", **({"mode": mode} if mode else {}), agent_id="agent-1", event_id=event_id)
    end_killed(killer, sensor, context(get_first_reschedule_date=lambda _: None))
    assert platform.slept == []


def test_a_sensor_killed_at_the_end_of_a_poke_ends_before_airflows_pause(platform, killer, event_id):
    platform.sim.add_row("agent-1", {"status": None}, age=1.0)
    handler, written = logging.Handler(), []
    handler.emit = lambda _: written.append(killer.strike())
    logger = logging.getLogger("airflow_provider_agents")
    logger.addHandler(handler)
    try:
        sensor = AgentRunSensor(task_id="wait", mode="poke", agent_id="agent-1", event_id=event_id)
        end_killed(killer, sensor, context())
    finally:
        logger.removeHandler(handler)
    assert written  # the line was not torn
    assert platform.slept == []


def test_a_sensor_killed_while_it_asks_airflow_finishes_the_question_and_ends(platform, killer, event_id):
    finished = []

    def first_reschedule(_):
        killer.strike()
        finished.append(True)

    sensor = AgentRunSensor(task_id="wait", mode="reschedule", agent_id="agent-1", event_id=event_id)
    end_killed(killer, sensor, context(get_first_reschedule_date=first_reschedule))
    assert finished
    assert asked(platform, "GET") == []


def test_a_sensor_that_is_not_killed_is_rescheduled(killer, event_id):
    sensor = AgentRunSensor(task_id="wait", mode="reschedule", agent_id="agent-1", event_id=event_id)
    with pytest.raises(AirflowRescheduleException):
        sensor.execute(context(get_first_reschedule_date=lambda _: None))


# --- the parts ---


def test_a_block_outside_of_a_task_is_never_ended():
    interruption = Interruption()
    assert interruption.request() is False
    with interruptible(), uninterruptible():
        assert interruption.request() is False


def test_a_try_does_not_end_because_an_earlier_one_in_the_process_was_killed():
    interruption, ends = Interruption(), []
    for _ in range(2):
        with pytest.raises(SystemExit), interruption.running(lambda: ends.append("killed")), interruptible():
            interruption.request()
    with interruption.running(lambda: ends.append("killed")), interruptible():
        ends.append("not killed")
    assert ends == ["killed", "killed", "not killed"]


@pytest.mark.parametrize("is_killed", [True, False])
def test_the_output_of_a_killed_task_is_open_when_its_process_has_ended(is_killed):
    supervisor, task = socket.socketpair()
    script = (
        "from airflow_provider_agents.interruption import Interruption\n"
        "task = Interruption()\n"
        f"with task.running(print): {'task.request()' if is_killed else 'pass'}"
    )
    with supervisor, task:
        subprocess.run([sys.executable, "-c", script], stdout=task, check=True)  # noqa: S603 - our own script
        task.close()
        supervisor.setblocking(False)
        if is_killed:
            assert supervisor.recv(1) == b"\n"
            with pytest.raises(BlockingIOError):
                supervisor.recv(1)
        else:
            assert supervisor.recv(1) == b""
