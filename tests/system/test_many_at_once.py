"""Tasks that start one agent side by side, in a real Airflow: each event goes to one task, and no run is doubled."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime

import pytest
from real_airflow import connection_to, until

from airflow_provider_agents.simulator import Simulator, SimulatorConfig, running_server

pytestmark = [pytest.mark.system, pytest.mark.trial]

#: With retries, on a machine that does other things as well.
SECONDS = 300
BACKFILLED_DAYS = 10


@pytest.fixture(scope="module")
def platform(airflow, api_key):
    """A platform whose every fifth run fails."""
    numbers = itertools.count(1)
    config = SimulatorConfig(
        queue_seconds=0.0, run_seconds=6.0, end_status=lambda _: "COMPLETED" if next(numbers) % 5 else "FAILED"
    )
    simulator = Simulator(lambda: datetime.now(UTC), config=config, api_keys=(api_key,), seed=1)
    for agent_id in ("agent-mapped", "agent-backfilled", "agent-beside"):
        simulator.add_agent(agent_id)
    with running_server(simulator) as url:
        connection = {"connection_id": "agents_side_by_side", **connection_to(url, api_key)}
        airflow.api("POST", "/api/v2/connections", connection)
        yield simulator


@pytest.fixture(scope="module")
def started(airflow, platform):
    """All of it at once: the DAG runs of each agent, by agent."""
    for dag_id in ("system_mapped_twenty", "system_backfilled", "system_beside_left", "system_beside_right"):
        airflow.unpause(dag_id)
    # The two begin in the same second.
    beside = [(dag_id, airflow.trigger(dag_id)) for dag_id in ("system_beside_left", "system_beside_right")]
    mapped = [("system_mapped_twenty", airflow.trigger("system_mapped_twenty"))]
    days = {"from_date": "2026-01-01T00:00:00Z", "to_date": f"2026-01-{BACKFILLED_DAYS:02}T00:00:00Z"}
    backfill = {"dag_id": "system_backfilled", **days, "max_active_runs": 5, "run_backwards": False, "dag_run_conf": {}}
    airflow.api("POST", "/api/v2/backfills", backfill)

    def all_days():
        runs = airflow.api("GET", "/api/v2/dags/system_backfilled/dagRuns?run_type=backfill&limit=50")["dag_runs"]
        return [("system_backfilled", run["dag_run_id"]) for run in runs] if len(runs) == BACKFILLED_DAYS else None

    backfilled = until(all_days, 60, "the DAG runs of the backfill")
    return {"agent-mapped": mapped, "agent-backfilled": backfilled, "agent-beside": beside}


@pytest.mark.parametrize(
    ("agent_id", "count"), [("agent-beside", 2), ("agent-mapped", 20), ("agent-backfilled", BACKFILLED_DAYS)]
)
def test_tasks_side_by_side_each_have_a_run_of_their_own_and_pay_for_no_other(
    airflow, platform, started, agent_id, count
):
    tries, returned, named = 0, [], []
    for dag_id, run_id in started[agent_id]:
        state = airflow.wait_for_dag_run(dag_id, run_id, SECONDS)
        found = airflow.api("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances?limit=50")["task_instances"]
        for task in found:
            index, last_try = task["map_index"], task["try_number"]
            assert task["state"] == "success", airflow.log_text(dag_id, run_id, "run", last_try, index)
            tries += task["try_number"]
            xcoms = [
                airflow.xcom(dag_id, run_id, "run", *key, map_index=task["map_index"]) for key in ((), ("event_id",))
            ]
            event = json.loads(xcoms[0]) if isinstance(xcoms[0], str) else xcoms[0]
            returned.append(event["id"])
            named.append(xcoms[1])
            assert platform.final_status(event["id"]) == "COMPLETED"
        assert state == "success"
    executions = [done for done in platform.executions if done.agent_id == agent_id]
    failed = [done for done in executions if platform.final_status(done.event_id) == "FAILED"]
    assert len(returned) == count
    assert len(set(returned)) == count
    # Where a run of a sibling's retry may be among its candidates, a task does not say which event is its own.
    assert all(name in {None, event_id} for name, event_id in zip(named, returned, strict=True))
    assert len(executions) == tries == count + len(failed)
    assert set(returned) <= {done.event_id for done in executions}
