"""Run an agent, wait without holding a worker, and use its final event in the next task."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.sdk import dag, task

from airflow_provider_agents.operators import ExecuteAgentOperator


@dag(schedule=None, start_date=datetime(2026, 1, 1), catchup=False, tags=["agents"])
def agent_deferred() -> None:
    """One agent, then a task that receives its final event."""
    run_agent = ExecuteAgentOperator(task_id="run_agent", agent_id="agent-123")

    @task
    def report(event: dict[str, Any]) -> str:
        """Use the event: the API's own field names, JSON types."""
        line = f"{event['id']} {event['status']} with {event['finalModel']} after {event['browserStepCount']} steps"
        print(line)
        return line

    report(run_agent.output)


agent_deferred()
