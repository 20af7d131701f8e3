"""The whole: a real api-server, scheduler, dag-processor and triggerer, and the platform behind HTTP."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import sys
from itertools import chain

import psycopg2
import pytest
from real_airflow import RealAirflowError, until

pytestmark = pytest.mark.system


def decoded(value):
    return json.loads(value) if isinstance(value, str) else value


def wait_for_log(airflow, dag_id, run_id, task_id, words, try_number=1):
    """A try's log once it holds `words`: its last lines are written after the state is known."""

    def written():
        log = airflow.log_text(dag_id, run_id, task_id, try_number)
        return log if words in log else None

    return until(written, 30, f"{words!r} in the log of {dag_id} {task_id}")


def link_of(airflow, dag_id, run_id, task_id, map_index=-1):
    """Where the task's page leads, once it leads anywhere."""
    path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/links?map_index={map_index}"
    return until(lambda: airflow.api("GET", path)["extra_links"]["Agent run"], 15, f"the link of {task_id}")


def copies_of(airflow, dag_id):
    """The Variables in which tasks of a DAG keep copies of their records: from Airflow 3.4 on, while a run goes on."""
    found = airflow.api("GET", "/api/v2/variables?limit=100")["variables"]
    return [one["key"] for one in found if f" {dag_id}." in (one["description"] or "")]


@pytest.fixture(scope="module")
def started(airflow, simulator):
    """The DAG runs that do not get in each other's way, all started at once: most of their time is waiting."""
    simulator.control("POST", "agents", {"agent_id": "agent-slow", "run_seconds": 25.0})
    # Longer than the slowest machine takes to start the task that must wait for it.
    simulator.control("POST", "agents", {"agent_id": "agent-busy", "run_seconds": 100.0, "queue_seconds": 0.0})
    simulator.control("POST", "runs", {"agentId": "agent-busy"})
    simulator.control("POST", "agents", {"agent_id": "agent-spent"})
    simulator.control("POST", "runs", {"agentId": "agent-spent"})
    simulator.control("POST", "agents", {"agent_id": "agent-busy", "run_seconds": 1.0})
    airflow.api(
        "POST", "/api/v2/pools", {"name": "agent-shop", "slots": 1, "description": "", "include_deferred": True}
    )
    dag_ids = {
        "agent_deferred": None,
        "agent_mapped": None,
        "agent_one_at_a_time": None,
        "system_on_worker": None,
        "system_failed_run": None,
        "system_wrong_key": None,
        "system_unknown_agent": None,
        "system_missing_connection": None,
        "system_timeout": None,
        "system_budget": None,
        "system_failed_is_final": None,
        "system_mapped_outlets": None,
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
    assert usage["duration_seconds"] == pytest.approx(15.0)
    assert usage["try_number"] == 1
    assert event["id"] in airflow.xcom("agent_deferred", run_id, "report")
    link = link_of(airflow, "agent_deferred", run_id, "run_agent")
    assert link == f"https://app.example/agent-123/runs/{event['id']}"


def test_the_log_tells_the_story_of_the_run_from_start_to_end(airflow, deferred_run):
    run_id, _, executions = deferred_run
    completed = "A run COMPLETED, the only one that fits this task's request."
    log = wait_for_log(airflow, "agent_deferred", run_id, "run_agent", completed)
    ids = f"agent=agent-123 request_id={executions[0]['requestId']}"
    lines = (
        f"The run was accepted. {ids}",
        "The triggerer waits for the run from now on, until",
        f"The run that fits is RUNNING. {ids} event={executions[0]['eventId']}",
        "until then another run could appear that fits.",
        f"{completed} {ids} event={executions[0]['eventId']}",
    )
    places = [log.index(line) for line in lines]
    assert places == sorted(places)
    assert "Traceback" not in log


def test_mapped_tasks_each_run_their_own_agent(airflow, simulator, started):
    run_id = started["agent_mapped"]
    assert airflow.wait_for_dag_run("agent_mapped", run_id) == "success"
    for index, agent_id in enumerate(("agent-prices", "agent-news", "agent-weather")):
        event = decoded(airflow.xcom("agent_mapped", run_id, "run_agents", map_index=index))
        request_id = airflow.xcom("agent_mapped", run_id, "run_agents", "request_id", map_index=index)
        mine = [done for done in simulator.executions(agent_id) if done["requestId"] == request_id]
        assert [done["eventId"] for done in mine] == [event["id"]]
        assert event["agentId"] == agent_id
    assert set(decoded(airflow.xcom("agent_mapped", run_id, "compare"))) == {
        "agent-prices",
        "agent-news",
        "agent-weather",
    }


def test_a_task_that_does_not_wait_returns_what_ties_it_to_its_run(airflow, simulator):
    run_id = airflow.trigger("agent_start_only")
    assert airflow.wait_for_dag_run("agent_start_only", run_id) == "success"
    submission = decoded(airflow.xcom("agent_start_only", run_id, "start_agent"))
    assert submission["request_id"] in {done["requestId"] for done in simulator.executions("agent-cleanup")}


def test_waiting_on_the_worker_gives_the_same(airflow, simulator, started):
    run_id = started["system_on_worker"]
    assert airflow.wait_for_dag_run("system_on_worker", run_id) == "success"
    event = decoded(airflow.xcom("system_on_worker", run_id, "run"))
    assert event["id"] == simulator.executions("agent-worker")[0]["eventId"]


def test_a_failed_run_fails_the_try_and_a_retry_starts_a_new_one(airflow, simulator, started):
    run_id = started["system_failed_run"]
    assert airflow.wait_for_dag_run("system_failed_run", run_id) == "failed"
    assert len(simulator.executions("agent-failing")) == 2
    assert wait_for_log(airflow, "system_failed_run", run_id, "run", "the agent could not finish its task", 2)
    assert decoded(airflow.xcom("system_failed_run", run_id, "run", "usage"))["try_number"] == 2


@pytest.mark.parametrize(
    ("dag_id", "words"),
    [
        ("system_wrong_key", "401: The API key of the connection is missing, wrong or revoked"),
        ("system_unknown_agent", "404: The agent does not exist, or the key does not own it"),
    ],
)
def test_what_no_retry_can_mend_fails_at_once_and_says_what_to_do(airflow, started, dag_id, words):
    run_id = started[dag_id]
    assert airflow.wait_for_dag_run(dag_id, run_id) == "failed"
    (instance,) = airflow.task_instances(dag_id, run_id)
    assert instance["try_number"] == 1
    log = wait_for_log(airflow, dag_id, run_id, "run", words)
    assert "The run was accepted." not in log


def test_a_budget_that_is_used_up_starts_nothing_and_is_asked_once(airflow, simulator, started):
    run_id = started["system_budget"]
    assert airflow.wait_for_dag_run("system_budget", run_id) == "failed"
    assert states_of(airflow, "system_budget", run_id) == {
        "check": "skipped",
        "skipped": "skipped",
        "run": "failed",
        "mapped": "failed",
    }
    assert {
        row["try_number"] for row in airflow.task_instances("system_budget", run_id) if row["state"] == "failed"
    } == {1}
    words = "The task's budget for agent agent-spent leaves no room for another run: 1 of 1 runs since"
    for task_id in ("check", "run"):
        wait_for_log(airflow, "system_budget", run_id, task_id, words)
    assert simulator.executions("agent-spent") == []


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
    assert wait_for_log(airflow, "system_timeout", run_id, "run", "not finished at the deadline")


def test_a_task_that_is_marked_failed_leaves_its_run_and_a_clear_takes_it_up_again(airflow, simulator):
    for agent_id in ("agent-killed", "agent-linked"):
        simulator.control("POST", "agents", {"agent_id": agent_id, "run_seconds": 20.0})
    run_id = airflow.trigger("system_killed")
    airflow.wait_for_task("system_killed", run_id, "run", "deferred")
    wait_for_log(airflow, "system_killed", run_id, "run", "is RUNNING. agent=agent-killed")
    (mine,) = simulator.executions("agent-killed")
    # While they are deferred, each task leads to its own run.
    for task_id, map_index, agent_id in (("run", -1, "agent-killed"), ("mapped", 0, "agent-linked")):
        airflow.wait_for_task("system_killed", run_id, task_id, "deferred", map_index=map_index)
        event_id = simulator.executions(agent_id)[0]["eventId"]
        link = link_of(airflow, "system_killed", run_id, task_id, map_index)
        assert link == f"https://app.example/{agent_id}/runs/{event_id}"
    assert states_of(airflow, "system_killed", run_id) == {"run": "deferred", "mapped": "deferred"}
    airflow.set_task_state("system_killed", run_id, "run", "failed")
    said = wait_for_log(airflow, "system_killed", run_id, "run", "This triggerer no longer waits for the run.")
    assert f"agent=agent-killed request_id={mine['requestId']}" in said
    airflow.clear("system_killed", run_id, "run")
    assert airflow.wait_for_dag_run("system_killed", run_id) == "success"
    assert decoded(airflow.xcom("system_killed", run_id, "run"))["id"] == mine["eventId"]
    assert len(simulator.executions("agent-killed")) == 1


@pytest.fixture(scope="module")
def cleared(airflow, simulator, deferred_run):
    """The finished DAG run once it is cleared: its new try runs while other tests do."""
    before = len(simulator.executions("agent-123"))
    airflow.clear("agent_deferred", deferred_run[0])
    return before


@pytest.fixture(scope="module")
def sensed(airflow, simulator, started, cleared):
    """DAG runs that wait for runs which something else has started, all at once."""
    simulator.control("POST", "agents", {"agent_id": "agent-sensed", "run_seconds": 30.0, "queue_seconds": 0.0})
    simulator.control("POST", "agents", {"agent_id": "agent-odd", "run_seconds": 10.0, "end_status": "FAILED"})
    event = simulator.control("POST", "runs", {"agentId": "agent-sensed"})["eventId"]
    failing = simulator.control("POST", "runs", {"agentId": "agent-odd"})["eventId"]
    conf = {"agent": "agent-odd", "event": event, "failing": failing}
    run_ids = {
        "system_sensor_ways": airflow.trigger("system_sensor_ways"),
        "system_sensor_soft": airflow.trigger("system_sensor_soft", {**conf, "event": failing}),
        "system_in_the_triggerer": airflow.trigger("system_in_the_triggerer", conf),
        "agent_start_then_wait": airflow.trigger("agent_start_then_wait"),
        "agent_on_its_own_schedule": airflow.trigger("agent_on_its_own_schedule"),
        "agent_without_workers": airflow.trigger("agent_without_workers"),
        "agent_approval": airflow.trigger("agent_approval"),
    }
    return run_ids, conf


def states_of(airflow, dag_id, run_id):
    return {row["task_id"]: row["state"] for row in airflow.task_instances(dag_id, run_id)}


def test_a_sensor_waits_for_the_submission_in_each_of_its_ways(airflow, simulator, sensed):
    run_id = sensed[0]["system_sensor_ways"]
    assert airflow.wait_for_dag_run("system_sensor_ways", run_id) == "success"
    request_id = airflow.xcom("system_sensor_ways", run_id, "submit", "request_id")
    (mine,) = [done["eventId"] for done in simulator.executions("agent-sensed") if done["requestId"] == request_id]
    for way in ("deferrable", "poke", "reschedule"):
        assert decoded(airflow.xcom("system_sensor_ways", run_id, way))["id"] == mine


def test_clearing_a_finished_task_starts_a_new_run(airflow, simulator, deferred_run, cleared):
    run_id, _, executions = deferred_run
    assert airflow.wait_for_dag_run("agent_deferred", run_id) == "success"
    after = simulator.executions("agent-123")
    assert len(after) == cleared + 1
    assert decoded(airflow.xcom("agent_deferred", run_id, "run_agent"))["id"] == after[-1]["eventId"]
    assert after[-1]["eventId"] != executions[0]["eventId"]


def test_soft_fail_covers_what_is_late_or_failed_and_nothing_else(airflow, sensed):
    run_id = sensed[0]["system_sensor_soft"]
    assert airflow.wait_for_dag_run("system_sensor_soft", run_id) == "failed"
    assert states_of(airflow, "system_sensor_soft", run_id) == {
        "failed": "skipped",
        "late": "skipped",
        "bad_key": "failed",
        "wrong_id": "failed",
    }
    again = airflow.taken_for_killed("system_sensor_soft", run_id)
    for row in airflow.task_instances("system_sensor_soft", run_id):
        assert row["try_number"] == 1 + again.count(row["task_id"])
    assert wait_for_log(airflow, "system_sensor_soft", run_id, "wrong_id", "The agent has no such event")


def test_a_task_ends_in_the_triggerer_with_its_xcoms(airflow, simulator, sensed):
    run_ids, conf = sensed
    dag_id, run_id = "system_in_the_triggerer", run_ids["system_in_the_triggerer"]
    assert airflow.wait_for_dag_run(dag_id, run_id) == "failed"
    assert states_of(airflow, dag_id, run_id) == {
        "operator": "success",
        "event": "success",
        "failing": "failed",
        "late": "failed",
        "mapped": "success",
    }
    mine = airflow.xcom(dag_id, run_id, "operator", "event_id")
    assert mine in {done["eventId"] for done in simulator.executions("agent-prices")}
    assert decoded(airflow.xcom(dag_id, run_id, "operator"))["id"] == mine
    assert decoded(airflow.xcom(dag_id, run_id, "operator", "usage"))["try_number"] == 1
    assert decoded(airflow.xcom(dag_id, run_id, "event"))["id"] == conf["event"]
    assert decoded(airflow.xcom(dag_id, run_id, "mapped", map_index=0))["id"] == conf["event"]
    assert "The task ends here, without a worker" in airflow.log_text(dag_id, run_id, "event")
    until(lambda: not copies_of(airflow, dag_id), 60, "the deletion of the record's copy by the trigger")


def test_clearing_a_task_that_its_trigger_has_ended_starts_a_new_run(airflow, simulator, sensed):
    dag_id, run_id = "system_in_the_triggerer", sensed[0]["system_in_the_triggerer"]
    airflow.wait_for_dag_run(dag_id, run_id)
    before = airflow.xcom(dag_id, run_id, "operator", "event_id")
    airflow.clear(dag_id, run_id, "operator")
    airflow.wait_for_task(dag_id, run_id, "operator", "deferred", "running")
    airflow.wait_for_task(dag_id, run_id, "operator", "success")
    assert airflow.xcom(dag_id, run_id, "operator", "event_id") != before


def test_the_examples_that_wait_for_other_runs_work(airflow, simulator, sensed):
    run_ids = sensed[0]
    for dag_id in ("agent_start_then_wait", "agent_on_its_own_schedule", "agent_without_workers"):
        assert airflow.wait_for_dag_run(dag_id, run_ids[dag_id]) == "success", dag_id
    nightly = decoded(airflow.xcom("agent_on_its_own_schedule", run_ids["agent_on_its_own_schedule"], "nightly_run"))
    assert simulator.runs()[nightly["id"]]["by"] == "schedule"


def test_a_pool_that_deferred_tasks_keep_runs_one_at_a_time(airflow, simulator, started):
    dag_id, run_id = "agent_one_at_a_time", started["agent_one_at_a_time"]
    assert airflow.wait_for_dag_run(dag_id, run_id) == "success"
    runs = simulator.runs()
    (_, first_ended), (second_began, _) = sorted(
        (runs[event_id]["acceptedAt"], runs[event_id]["endsAt"])
        for event_id in (airflow.xcom(dag_id, run_id, name, "event_id") for name in ("first", "second"))
    )
    assert first_ended <= second_began


def test_an_approval_stands_between_an_agent_and_what_follows(airflow, sensed):
    dag_id, run_id = "agent_approval", sensed[0]["agent_approval"]
    path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/approve/-1/hitlDetails"

    def asked():
        with contextlib.suppress(RealAirflowError):
            return airflow.api("GET", path)
        return None

    # By now it has stood there for a while: Airflow's scheduler can take a task that is answered at once for killed.
    until(asked, 120, "the question to a person")
    assert states_of(airflow, dag_id, run_id)["publish"] is None
    airflow.api("PATCH", path, {"chosen_options": ["Approve"], "params_input": {}})
    assert airflow.wait_for_dag_run(dag_id, run_id) == "success"
    assert airflow.xcom(dag_id, run_id, "publish").startswith("published event-")


def test_a_finished_run_starts_a_dag_whoever_has_started_it(airflow, simulator, sensed):
    dag_id = "agent_finished_starts_dag"
    airflow.unpause(dag_id)
    airflow.parse_again(dag_id)
    simulator.control("POST", "agents", {"agent_id": "agent-stranger", "run_seconds": 1.0, "queue_seconds": 0.0})
    wanted = set()

    def told():
        # The watcher begins some seconds after its DAG is there, and tells of nothing before.
        wanted.add(simulator.control("POST", "runs", {"agentId": "agent-stranger"})["eventId"])
        lines = [
            line
            for run in airflow.api("GET", f"/api/v2/dags/{dag_id}/dagRuns?limit=100")["dag_runs"]
            if run["state"] == "success"
            for line in decoded(airflow.xcom(dag_id, run["dag_run_id"], "note")) or ()
        ]
        return [line for line in lines if line.split()[1] in wanted]

    lines = until(told, 120, "a DAG run for a finished run", pause=3.0)
    assert all(line.startswith("agent-stranger ") and line.endswith(" COMPLETED") for line in lines)
    assert len(lines) == len(set(lines))


# Late in this file: its task looks for the connection for two minutes.
def test_a_connection_that_stays_away_fails_the_task_and_says_what_to_create(airflow, started):
    run_id = started["system_missing_connection"]
    assert airflow.wait_for_dag_run("system_missing_connection", run_id) == "failed"
    words = "The connection 'not_there' does not exist, or cannot be read. Create it under Admin"
    log = wait_for_log(airflow, "system_missing_connection", run_id, "run", words)
    assert "The run was accepted." not in log


# Late in this file: it parses the DAG files with a listener, and Airflow then takes those that it refuses for gone
# until it parses them again.
@pytest.fixture(scope="module")
def dag_tested(airflow, simulator, deferred_run, tmp_path_factory):
    """`dag.test()` in one process, with OpenLineage: what it printed, the executes, the events that were emitted."""
    before = simulator.executions("agent-prices")
    script = (
        "from airflow.dag_processing.dagbag import DagBag\n"
        "bag = DagBag()\n"
        "run = bag.get_dag('system_dag_test').test()\n"
        "print('ended as', run.state)\n"
        "print('refused', sorted(bag.import_errors.items()))\n"
    )
    events = tmp_path_factory.mktemp("openlineage") / "events.jsonl"
    transport = {"type": "file", "log_file_path": str(events), "append": True}
    done = subprocess.run(  # noqa: S603 - our own interpreter and script
        [sys.executable, "-c", script],
        env=airflow.env() | {"AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport)},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    emitted = [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else []
    return done.stdout + done.stderr[-3000:], simulator.executions("agent-prices")[len(before) :], emitted


def test_dag_test_runs_it_in_one_process(dag_tested):
    said, executions, _ = dag_tested
    assert "ended as success" in said, said[-6000:]
    assert len(executions) == 1


def test_the_openlineage_listener_tells_of_the_run(dag_tested, simulator, api_key):
    said, (execution,), emitted = dag_tested
    task_events = [event for event in emitted if event["job"]["name"] == "system_dag_test.run"]
    # Twice, as the task is deferred in between.
    assert [event["eventType"] for event in task_events] == ["START", "START", "COMPLETE"], said[-6000:]
    told = task_events[-1]["run"]["facets"]
    assert told["agents_run"]["agentId"] == "agent-prices"
    assert told["agents_run"]["eventId"] == execution["eventId"] == told["externalQuery"]["externalQueryId"]
    assert told["agents_run"]["outcome"] == "completed"
    assert told["externalQuery"]["source"] == simulator.url
    assert {event["run"]["facets"]["agents_run"].get("outcome") for event in task_events[:-1]} == {None}
    assert api_key not in json.dumps(emitted)


def test_airflow_refuses_tasks_that_end_in_their_trigger_where_openlineage_listens(dag_tested):
    said, _, _ = dag_tested
    (refused,) = [line for line in said.splitlines() if line.startswith("refused")]
    assert "has end_from_trigger=True with listeners from plugins" in refused


def notes_of(airflow, dag_id):
    """What the task `note` of each DAG run returned; None while a DAG run has not ended."""
    dag_runs = airflow.api("GET", f"/api/v2/dags/{dag_id}/dagRuns?limit=100")["dag_runs"]
    if any(run["state"] not in {"success", "failed"} for run in dag_runs):
        return None
    return [decoded(airflow.xcom(dag_id, run["dag_run_id"], "note")) for run in dag_runs]


def test_each_run_reaches_one_dag_run_however_many_are_active_at_once(airflow):
    if airflow.release < (3, 4):
        pytest.skip("Airflow before 3.4 loses events of a burst")
    dag_ids = [f"system_asset_events_{at_once}" for at_once in (1, 16)]
    for dag_id in dag_ids:
        airflow.unpause(dag_id)
    (asset,) = airflow.api("GET", "/api/v2/assets?name_pattern=system_runs")["assets"]

    def emit(*ids):
        payload = {"kind": "finished_runs", "version": 1, "runs": [{"id": one} for one in ids]}
        airflow.api("POST", "/api/v2/assets/events", {"asset_id": asset["id"], "extra": {"payload": payload}})

    # Each event repeats two runs of the one before: a watcher does so after a restart of its triggerer.
    wanted = [f"run-{number:02}" for number in range(20)]
    for start in range(0, len(wanted), 2):
        emit(*wanted[max(0, start - 2) : start + 2])

    def all_given():
        noted = [notes_of(airflow, dag_id) for dag_id in dag_ids]
        return noted if all(lists and set(wanted) <= set(chain(*lists)) for lists in noted) else None

    for lists in until(all_given, 180, "a DAG run for each run", pause=5.0):
        assert sorted(chain(*lists)) == wanted


def test_each_mapped_task_names_its_own_run_in_its_asset_event(airflow, started):
    run_id = started["system_mapped_outlets"]
    assert airflow.wait_for_dag_run("system_mapped_outlets", run_id) == "success"
    emitted = airflow.api("GET", "/api/v2/assets/events?source_dag_id=system_mapped_outlets")["asset_events"]
    named = {one["source_map_index"]: one["extra"]["agent_run"]["event_id"] for one in emitted}
    returned = [decoded(airflow.xcom("system_mapped_outlets", run_id, "run", map_index=index)) for index in (0, 1)]
    assert named == {index: event["id"] for index, event in enumerate(returned)}
    assert [event["agentId"] for event in returned] == ["agent-east", "agent-west"]


def test_a_retry_policy_ends_a_task_whose_run_failed_and_retries_an_outage(airflow, simulator, started):
    run_id = started["system_failed_is_final"]
    # Without the policy, it would be up for retry for an hour.
    airflow.wait_for_task("system_failed_is_final", run_id, "failed", "failed")
    # The try waits two minutes for the platform to come back; most of them have passed by now.
    airflow.wait_for_task("system_failed_is_final", run_id, "outage", "up_for_retry", seconds=180)
    assert len(simulator.executions("agent-fragile")) == 1


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
    assert {"trigger", "task_instance", "log"} <= set(tables)
    # XComs and rendered fields, by the names of Airflow up to 3.3 or of 3.4.
    assert {"xcom", "rendered_task_instance_fields"} <= set(tables) or {"xcom_v2", "rtif_v2"} <= set(tables)
    assert rows > 100
