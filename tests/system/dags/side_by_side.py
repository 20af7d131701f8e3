"""Tasks that start one agent at the same time, for a test with several triggerers."""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_provider_agents.operators import ExecuteAgentOperator

with DAG("system_side_by_side", schedule=None):
    ExecuteAgentOperator.partial(task_id="run", settle=20).expand(agent_id=["agent-shared"] * 4)
