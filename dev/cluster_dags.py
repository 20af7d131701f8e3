"""The DAG of `make cluster-test`: one mapped task for each agent, each wanting one run that COMPLETED."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import DAG, task

from airflow_provider_agents.operators import ExecuteAgentOperator

#: Kills take tries, too: none of them may be the last one.
RETRIES, RETRY_DELAY = 30, timedelta(seconds=1)

with DAG("cluster_runs", start_date=datetime(2026, 1, 1), schedule=None, max_active_runs=100, max_active_tasks=1000):  # noqa: DTZ001

    @task(retries=RETRIES, retry_delay=RETRY_DELAY)
    def agents(dag_run: Any = None) -> Any:
        """The agents of this DAG run."""
        return dag_run.conf["agents"]

    ExecuteAgentOperator.partial(
        task_id="run", settle=5.0, poll_interval=2.0, retries=RETRIES, retry_delay=RETRY_DELAY
    ).expand(agent_id=agents())
