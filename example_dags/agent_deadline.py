"""Be told when a DAG with an agent takes too long. Needs Airflow 3.1 or newer.

`agent_alerts.late` is a coroutine of yours in a file `agent_alerts.py` in Airflow's plugins folder: the triggerer calls
it, and imports no DAG file.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.sdk import dag
from airflow.sdk.definitions.deadline import AsyncCallback, DeadlineAlert, DeadlineReference

from airflow_provider_agents.operators import ExecuteAgentOperator


@dag(
    schedule=None,
    start_date=datetime(2026, 1, 1),
    catchup=False,
    tags=["agents"],
    deadline=DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(hours=1),
        callback=AsyncCallback("agent_alerts.late", kwargs={"text": "The briefing is late."}),
    ),
)
def agent_deadline() -> None:
    """After an hour somebody is told; after two the task fails."""
    ExecuteAgentOperator(task_id="run_agent", agent_id="agent-briefing", timeout=timedelta(hours=2))


agent_deadline()
