"""Start a run now, do something else, and wait for it later."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.sdk import dag, task

from airflow_provider_agents.operators import ExecuteAgentOperator
from airflow_provider_agents.sensors import AgentRunSensor


@dag(schedule=None, start_date=datetime(2026, 1, 1), catchup=False, tags=["agents"])
def agent_start_then_wait() -> None:
    """One agent that works while another task does."""
    start_agent = ExecuteAgentOperator(task_id="start_agent", agent_id="agent-orders", wait_for_completion=False)

    @task
    def prepare() -> str:
        """Whatever can be done meanwhile."""
        return "the table"

    # What the operator returned ties this task to that run, and to no other one of the agent.
    wait_for_agent = AgentRunSensor(task_id="wait_for_agent", submission=start_agent.output)

    @task
    def load(table: str, event: dict[str, Any]) -> str:
        """Needs both."""
        return f"{event['id']} into {table}"

    load(prepare(), wait_for_agent.output)


agent_start_then_wait()
