"""The DAG of `make upgrade`: plain and mapped tasks, each waiting for a run of its own agent."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.sdk import DAG, task

from airflow_provider_agents.operators import ExecuteAgentOperator

with DAG("upgrade_runs", start_date=datetime(2026, 1, 1), schedule=None):  # noqa: DTZ001

    @task
    def agents(dag_run: Any = None) -> Any:
        """The agents of the mapped task."""
        return dag_run.conf["mapped"]

    ExecuteAgentOperator(task_id="plain", agent_id="{{ dag_run.conf['plain'] }}", settle=3.0, poll_interval=2.0)
    ExecuteAgentOperator(
        task_id="attach",
        agent_id="{{ dag_run.conf['attach'] }}",
        if_running="attach",
        settle=3.0,
        poll_interval=2.0,
    )
    ExecuteAgentOperator.partial(task_id="mapped", settle=3.0, poll_interval=2.0).expand(agent_id=agents())
