"""As few worker starts as can be: one for the run of an agent, none to wait for another one. Needs Airflow 3.3."""

from __future__ import annotations

from datetime import datetime

from airflow.sdk import dag

from airflow_provider_agents.operators import ExecuteAgentOperator
from airflow_provider_agents.sensors import AgentRunSensor


@dag(schedule=None, start_date=datetime(2026, 1, 1), catchup=False, tags=["agents"])
def agent_without_workers() -> None:
    """A run that this DAG starts, and then one that the platform does."""
    run_agent = ExecuteAgentOperator(task_id="run_agent", agent_id="agent-invoices", end_from_trigger=True)

    next_run = AgentRunSensor(
        task_id="next_run",
        agent_id="agent-hourly",
        started_after="{{ dag_run.run_after.isoformat() }}",
        start_from_trigger=True,
    )
    run_agent >> next_run


agent_without_workers()
