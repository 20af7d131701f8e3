"""Start a run and go on at once; what ties the task to its run is in XCom for whoever wants to look later."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.sdk import dag, task

from airflow_provider_agents.operators import ExecuteAgentOperator


@dag(schedule=None, start_date=datetime(2026, 1, 1), catchup=False, tags=["agents"])
def agent_start_only() -> None:
    """One agent, started and not waited for."""
    start_agent = ExecuteAgentOperator(
        task_id="start_agent",
        agent_id="agent-cleanup",
        wait_for_completion=False,
        # Do not pay for a second run while one is under way.
        if_running="skip",
    )

    @task
    def note(submission: dict[str, Any]) -> str:
        """The submission names the request; keep it with your own records."""
        return f"started {submission['agent_id']} as {submission['request_id']}"

    note(start_agent.output)


agent_start_only()
