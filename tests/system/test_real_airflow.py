"""The whole: a real api-server, scheduler, dag-processor and triggerer, and the platform behind HTTP."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import sys

import psycopg2
import pytest
from real_airflow import until

pytestmark = pytest.mark.system


def decoded(value):
    return json.loads(value) if isinstance(value, str) else value


def wait_for_log(airflow, dag_id, run_id, task_id, words, try_number=1):
    """A try's log once it holds `words`: its last lines are written after the state is known."""

    def written():
        log = airflow.log_text(dag_id, run_id, task_id, try_number)
        return log if words in log else None

    return until(written, 30, f"{words!r} in the log of {dag_id} {task_id}")


@pytest.fixture(scope="module")
def started(airflow, simulator):
    """The DAG runs that do not get in each other's way, all started at once: most of their time is waiting."""
    simulator.control("POST", "agents", {"agent_id": "agent-slow", "run_seconds": 9.0})
    simulator.control("POST", "agents", {"agent_id": "agent-busy", "run_seconds": 20.0, "queue_seconds": 0.0})
    simulator.control("POST", "runs", {"agentId": "agent-busy"})
    simulator.control("POST", "agents", {"agent_id": "agent-busy", "run_seconds": 1.0})
    dag_ids = {
        "agent_deferred": None,
        "system_on_worker": None,
        "system_failed_run": None,
        "system_wrong_key": None,
        "system_unknown_agent": None,
        "system_missing_connection": None,
        "system_timeout": None,
        "system_wait_until_idle": {"agent": "agent-busy"},
    }
    return {dag_id: airflow.trigger(dag_id, conf) for dag_id, conf in dag_ids.items()}


@pytest.fixture(scope="module")
def deferred_run(airflow, simulator, started):
    run_id = started["agent_deferred"]
    state = airflow.wait_for_dag_run("agent_deferred", run_id)
    return run_id, state, simulator.executions("agent-123")


def test_a_deferred_run_hands_its_own_final_event_to_the_next_task(airflow, simulator, deferred_run):
    run_id, state, executions = deferred_run
    assert state == "success", airflow.log_text("agent_deferred", run_id, "run_agent")
    assert len(executions) == 1
    event = decoded(airflow.xcom("agent_deferred", run_id, "run_agent"))
    assert event["id"] == executions[0]["eventId"]
    assert event["status"] == "COMPLETED"
    assert airflow.xcom("agent_deferred", run_id, "run_agent", "request_id") == executions[0]["requestId"]
    assert airflow.xcom("agent_deferred", run_id, "run_agent", "event_id") == executions[0]["eventId"]
    usage = decoded(airflow.xcom("agent_deferred", run_id, "run_agent", "usage"))
    assert usage["duration_seconds"] == pytest.approx(3.0)
    assert usage["try_number"] == 1
    assert event["id"] in airflow.xcom("agent_deferred", run_id, "report")


def test_the_log_tells_the_story_of_the_run_from_start_to_end(airflow, deferred_run):
    run_id, _, executions = deferred_run
    log = wait_for_log(airflow, "agent_deferred", run_id, "run_agent", f"COMPLETED: event {executions[0]['eventId']}")
    accepted = log.index(f"requestId {executions[0]['requestId']} is under way")
    running = log.index(f"probably event {executions[0]['eventId']}")
    completed = log.index(f"COMPLETED: event {executions[0]['eventId']}")
    assert accepted < running < completed
    assert "Traceback" not in log


def test_mapped_tasks_each_run_their_own_agent(airflow, simulator, deferred_run):
    run_id = airflow.trigger("agent_mapped")
    assert airflow.wait_for_dag_run("agent_mapped", run_id) == "success"
    for index, agent_id in enumerate(("agent-123", "agent-prices", "agent-news")):
        event = decoded(airflow.xcom("agent_mapped", run_id, "run_agents", map_index=index))
        request_id = airflow.xcom("agent_mapped", run_id, "run_agents", "request_id", map_index=index)
        mine = [done for done in simulator.executions(agent_id) if done["requestId"] == request_id]
        assert [done["eventId"] for done in mine] == [event["id"]]
        assert event["agentId"] == agent_id
    assert set(decoded(airflow.xcom("agent_mapped", run_id, "compare"))) == {"agent-123", "agent-prices", "agent-news"}


def test_a_task_that_does_not_wait_returns_what_ties_it_to_its_run(airflow, simulator):
    run_id = airflow.trigger("agent_start_only")
    assert airflow.wait_for_dag_run("agent_start_only", run_id) == "success"
    submission = decoded(airflow.xcom("agent_start_only", run_id, "start_agent"))
    assert submission["request_id"] in {done["requestId"] for done in simulator.executions("agent-123")}


def test_waiting_on_the_worker_gives_the_same(airflow, simulator, started):
    run_id = started["system_on_worker"]
    assert airflow.wait_for_dag_run("system_on_worker", run_id) == "success"
    event = decoded(airflow.xcom("system_on_worker", run_id, "run"))
    assert event["id"] == simulator.executions("agent-prices")[0]["eventId"]


def test_a_failed_run_fails_the_try_and_a_retry_starts_a_new_one(airflow, simulator, started):
    run_id = started["system_failed_run"]
    assert airflow.wait_for_dag_run("system_failed_run", run_id) == "failed"
    assert len(simulator.executions("agent-failing")) == 2
    assert wait_for_log(airflow, "system_failed_run", run_id, "run", "the agent could not finish its task", 2)
    assert decoded(airflow.xcom("system_failed_run", run_id, "run", "usage"))["try_number"] == 2


@pytest.mark.parametrize(
    ("dag_id", "words"),
    [
        ("system_wrong_key", "401. The API key of the connection is missing, wrong or revoked"),
        ("system_unknown_agent", "404. It does not exist, or the key does not own it"),
        (
            "system_missing_connection",
            "The connection 'not_there' does not exist, or cannot be read. Create it under Admin",
        ),
    ],
)
def test_what_no_retry_can_mend_fails_at_once_and_says_what_to_do(airflow, started, dag_id, words):
    run_id = started[dag_id]
    assert airflow.wait_for_dag_run(dag_id, run_id) == "failed"
    (instance,) = airflow.task_instances(dag_id, run_id)
    assert instance["try_number"] == 1
    log = wait_for_log(airflow, dag_id, run_id, "run", words)
    assert "under way" not in log


def test_a_busy_agent_is_waited_for_and_then_run(airflow, simulator, started):
    (stranger,) = [
        run["eventId"] for run in simulator.runs().values() if (run["agentId"], run["by"]) == ("agent-busy", "schedule")
    ]
    run_id = started["system_wait_until_idle"]
    assert airflow.wait_for_dag_run("system_wait_until_idle", run_id) == "success"
    (mine,) = simulator.executions("agent-busy")
    assert decoded(airflow.xcom("system_wait_until_idle", run_id, "run"))["id"] == mine["eventId"]
    assert wait_for_log(airflow, "system_wait_until_idle", run_id, "run", f"busy: event {stranger}")


def test_a_retry_after_a_timeout_waits_for_the_same_run(airflow, simulator, started):
    run_id = started["system_timeout"]
    assert airflow.wait_for_dag_run("system_timeout", run_id) == "success"
    (mine,) = simulator.executions("agent-slow")
    assert decoded(airflow.xcom("system_timeout", run_id, "run"))["id"] == mine["eventId"]
    assert wait_for_log(airflow, "system_timeout", run_id, "run", "was not over at the task's deadline")


def test_clearing_a_finished_task_starts_a_new_run(airflow, simulator, deferred_run):
    run_id, _, executions = deferred_run
    before = len(simulator.executions("agent-123"))
    airflow.clear("agent_deferred", run_id)
    assert airflow.wait_for_dag_run("agent_deferred", run_id) == "success"
    after = simulator.executions("agent-123")
    assert len(after) == before + 1
    assert decoded(airflow.xcom("agent_deferred", run_id, "run_agent"))["id"] == after[-1]["eventId"]
    assert after[-1]["eventId"] != executions[0]["eventId"]


def test_a_task_that_is_marked_failed_leaves_its_run_and_a_clear_takes_it_up_again(airflow, simulator):
    simulator.control("POST", "agents", {"agent_id": "agent-killed", "run_seconds": 20.0})
    run_id = airflow.trigger("system_killed")
    airflow.wait_for_task("system_killed", run_id, "run", "deferred")
    known = f": event {simulator.executions('agent-killed')[0]['eventId']} RUNNING"
    wait_for_log(airflow, "system_killed", run_id, "run", known)
    (mine,) = simulator.executions("agent-killed")
    airflow.set_task_state("system_killed", run_id, "run", "failed")
    said = f"no longer waits for the run of agent agent-killed, requestId {mine['requestId']}, event {mine['eventId']}"
    wait_for_log(airflow, "system_killed", run_id, "run", said)
    airflow.clear("system_killed", run_id)
    assert airflow.wait_for_dag_run("system_killed", run_id) == "success"
    assert decoded(airflow.xcom("system_killed", run_id, "run"))["id"] == mine["eventId"]
    assert len(simulator.executions("agent-killed")) == 1


def test_dag_test_runs_it_in_one_process(airflow, simulator, deferred_run):
    before = len(simulator.executions("agent-prices"))
    script = (
        "from airflow.dag_processing.dagbag import DagBag\n"
        "run = DagBag().get_dag('system_dag_test').test()\n"
        "print('ended as', run.state)\n"
    )
    done = subprocess.run(  # noqa: S603 - our own interpreter and script
        [sys.executable, "-c", script], env=airflow.env(), capture_output=True, text=True, check=False, timeout=120
    )
    assert "ended as success" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    assert len(simulator.executions("agent-prices")) == before + 1


# Last in this file: by now there have been successes, failures, refusals and retries.
def test_the_key_is_nowhere_but_in_the_connection(airflow, api_key, deferred_run):
    needles = {api_key.encode(), base64.b64encode(api_key.encode()), api_key.encode("utf-16-le")}
    searched = 0
    for file in airflow.home.rglob("*"):
        if not file.is_file() or file.is_symlink():
            continue
        content = file.read_bytes()
        searched += 1
        assert not any(needle in content for needle in needles), file
    assert searched > 20
    # The database row by row, through SQL: its files may hold rows compressed.
    address = {"host": "127.0.0.1", "port": airflow.postgres.port, "user": "airflow", "dbname": "postgres"}
    with contextlib.closing(psycopg2.connect(**address)) as database, database.cursor() as cursor:
        cursor.execute("select tablename from pg_tables where schemaname = 'public'")
        tables = [name for (name,) in cursor.fetchall()]
        rows = 0
        for table in tables:
            cursor.execute(f'select row_to_json("{table}")::text from "{table}"')  # noqa: S608 - the database's own names
            for (row,) in cursor.fetchall():
                rows += 1
                assert api_key not in row, table
                # bytea columns come as hexadecimal.
                assert api_key.encode().hex() not in row, table
    assert {"xcom", "rendered_task_instance_fields", "trigger", "task_instance", "log"} <= set(tables)
    assert rows > 100
