"""One run of an agent at a time, whatever asks for it: a pool with one slot that deferred tasks keep.

Make the pool once: `airflow pools set agent-shop 1 "one run at a time" --include-deferred`.
"""

from __future__ import annotations

from datetime import datetime

from airflow.sdk import dag

from airflow_provider_agents.operators import ExecuteAgentOperator


@dag(schedule=None, start_date=datetime(2026, 1, 1), catchup=False, tags=["agents"])
def agent_one_at_a_time() -> None:
    """Two tasks that may run at any time, and never at the same time."""
    for name in ("first", "second"):
        ExecuteAgentOperator(task_id=name, agent_id="agent-shop", pool="agent-shop")


agent_one_at_a_time()
