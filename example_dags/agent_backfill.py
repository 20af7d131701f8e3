"""A DAG with an agent that can be backfilled without paying for a run in each interval."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.sdk import dag, task

from airflow_provider_agents.operators import ExecuteAgentOperator


@dag(schedule="@daily", start_date=datetime(2026, 1, 1), catchup=False, max_active_runs=1, tags=["agents"])
def agent_backfill() -> None:
    """The agent runs in the DAG runs of the schedule and of people, and not in those of a backfill."""

    @task.short_circuit(ignore_downstream_trigger_rules=False)
    def is_no_backfill(dag_run: Any = None) -> bool:
        """An agent sees the web of today, whatever the interval is."""
        return bool(dag_run.run_type != "backfill")

    run_agent = ExecuteAgentOperator(task_id="run_agent", agent_id="agent-archive")

    @task(trigger_rule="none_failed")
    def load(event: dict[str, Any] | None = None) -> str:
        """Runs in a backfill, too; without an event there."""
        return f"loaded {event['id']}" if event else "loaded what was there"

    is_no_backfill() >> run_agent
    load(run_agent.output)


agent_backfill()
