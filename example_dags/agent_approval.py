"""A person looks at what an agent has done before anything is done with it. Needs Airflow 3.1 or newer."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import dag, task

from airflow_provider_agents.operators import ExecuteAgentOperator


@dag(schedule=None, start_date=datetime(2026, 1, 1), catchup=False, tags=["agents"])
def agent_approval() -> None:
    """Agent, approval, publication. Neither the agent nor the person holds a worker."""
    run_agent = ExecuteAgentOperator(task_id="run_agent", agent_id="agent-draft")

    approve = ApprovalOperator(
        task_id="approve",
        subject="Publish what the agent found?",
        body="{{ ti.xcom_pull(task_ids='run_agent') | tojson }}",
    )

    @task
    def publish(event: dict[str, Any]) -> str:
        """Skipped unless a person has said yes."""
        return f"published {event['id']}"

    published = publish(run_agent.output)
    run_agent >> approve >> published


agent_approval()
