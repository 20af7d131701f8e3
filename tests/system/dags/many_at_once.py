"""DAGs for the tests of the whole system: many tasks that start one agent at about the same time."""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.sdk import DAG

from airflow_provider_agents.operators import ExecuteAgentOperator

START = datetime(2026, 1, 1)  # noqa: DTZ001 - Airflow adds UTC
#: The simulator shows records at once. Every fifth run fails, so that a task may need several tries.
PERSISTENT = {
    "agents_conn_id": "agents_side_by_side",
    "settle": 15.0,
    "appear_within": 60.0,
    "poll_interval": 1.0,
    "retries": 9,
    "retry_delay": timedelta(seconds=1),
}

with DAG("system_mapped_twenty", start_date=START, schedule=None):
    ExecuteAgentOperator.partial(task_id="run", **PERSISTENT).expand(agent_id=["agent-mapped"] * 20)

# It ends before today, so that only the backfill starts it.
with DAG(
    "system_backfilled",
    start_date=START,
    end_date=datetime(2026, 1, 31),  # noqa: DTZ001 - Airflow adds UTC
    schedule="@daily",
    max_active_runs=5,
    catchup=False,
):
    ExecuteAgentOperator(task_id="run", agent_id="agent-backfilled", **PERSISTENT)

for name in ("left", "right"):
    with DAG(f"system_beside_{name}", start_date=START, schedule=None):
        ExecuteAgentOperator(task_id="run", agent_id="agent-beside", **PERSISTENT)
