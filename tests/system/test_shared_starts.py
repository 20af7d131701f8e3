"""Tasks that start one agent at the same second, in a real Airflow with two triggerers that share their starts."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest
from real_airflow import COMPONENTS, QUICK_WORKERS, RealAirflow, connection_json, simulator_server, until

pytestmark = [pytest.mark.system, pytest.mark.trial]

DAG_ID, TASKS = "system_side_by_side", 4
DAG_FILE = Path(__file__).parent / "dags" / "side_by_side.py"


@pytest.fixture(scope="module")
def simulator(tmp_path_factory):
    key = f"sk-{secrets.token_hex(24)}"
    # No run is over before all tasks have deferred.
    options = ("--key", key, "--agent", "agent-shared:60")
    with simulator_server(tmp_path_factory.mktemp("simulator"), *options) as server:
        server.key = key
        yield server


@pytest.fixture(scope="module")
def airflow(tmp_path_factory, simulator):
    env = {
        **QUICK_WORKERS,
        "AIRFLOW_CONN_AGENTS_DEFAULT": connection_json(simulator.url, simulator.key),
        "AIRFLOW__AGENTS__SHARE_STARTS": "True",
        # So each of the two triggerers waits for half of the tasks.
        "AIRFLOW__TRIGGERER__CAPACITY": str(TASKS // 2),
    }
    second = {"triggerer-2": ["triggerer", "--skip-serve-logs"]}
    with RealAirflow(
        tmp_path_factory.mktemp("airflow"),
        dags=[DAG_FILE],
        env=env,
        database="postgres",
        components=(*COMPONENTS, *second),
        commands=second,
    ) as running:
        yield running


def jobs_of(instances):
    """The jobs of the triggerers that wait for tasks; None until each task has one."""
    jobs = [(instance["triggerer_job"] or {}).get("id") for instance in instances]
    return jobs if len(jobs) == TASKS and None not in jobs else None


def test_tasks_in_two_triggerers_each_get_one_of_their_runs(airflow, simulator):
    run_id = airflow.trigger(DAG_ID)
    jobs = until(lambda: jobs_of(airflow.task_instances(DAG_ID, run_id)), 120, "the deferral of all tasks")
    assert len(set(jobs)) == 2
    assert airflow.wait_for_dag_run(DAG_ID, run_id) == "success"
    results = [airflow.xcom(DAG_ID, run_id, "run", map_index=index) for index in range(TASKS)]
    events = [json.loads(value) if isinstance(value, str) else value for value in results]
    started = simulator.executions("agent-shared")
    assert sorted(event["id"] for event in events) == sorted(done["eventId"] for done in started)
    kept = airflow.api("GET", "/api/v2/variables?limit=100")["variables"]
    copies = [json.loads(one["value"]) for one in kept if one["key"].startswith("agent_run/")]
    assert sorted(copy["given_event_id"] for copy in copies) == sorted(event["id"] for event in events)
    assert simulator.key not in json.dumps(kept)
