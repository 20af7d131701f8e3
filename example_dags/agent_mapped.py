"""Run several agents at once: one mapped task each, all waited for in the triggerer."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.sdk import dag, task

from airflow_provider_agents.operators import ExecuteAgentOperator


@dag(schedule=None, start_date=datetime(2026, 1, 1), catchup=False, tags=["agents"])
def agent_mapped() -> None:
    """Several agents, then one task that receives all their events."""
    run_agents = ExecuteAgentOperator.partial(task_id="run_agents", poll_interval=5).expand(
        agent_id=["agent-prices", "agent-news", "agent-weather"]
    )

    @task
    def compare(events: list[dict[str, Any]]) -> dict[str, int]:
        """One number per agent."""
        return {event["agentId"]: event["browserStepCount"] for event in events}

    compare(run_agents.output)


agent_mapped()
