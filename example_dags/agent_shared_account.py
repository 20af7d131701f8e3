"""An agent that other Airflows, or people, start as well: wait until it is idle, and never return another's run."""

from __future__ import annotations

from datetime import datetime

from airflow.sdk import dag

from airflow_provider_agents.operators import ExecuteAgentOperator


@dag(schedule=None, start_date=datetime(2026, 1, 1), catchup=False, max_active_runs=1, tags=["agents"])
def agent_shared_account() -> None:
    """One agent that is not this Airflow's alone."""
    ExecuteAgentOperator(
        task_id="run_agent",
        agent_id="agent-shared",
        # Asked just before the start, so two Airflows can still start a run in the same instant.
        if_running="wait",
        # Then all runs that may be this task's must end alike, or the task fails.
        on_ambiguous="all",
    )


agent_shared_account()
