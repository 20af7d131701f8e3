"""Run an agent whose result is an asset, so that other DAGs run when there is a new one."""

from __future__ import annotations

from datetime import datetime

from airflow.sdk import Asset, dag

from airflow_provider_agents.operators import ExecuteAgentOperator


@dag(schedule=None, start_date=datetime(2026, 1, 1), catchup=False, tags=["agents"])
def agent_asset_producer() -> None:
    """One agent. The asset event of its task names the run."""
    ExecuteAgentOperator(task_id="run_agent", agent_id="agent-market", outlets=[Asset("market_report")])


agent_asset_producer()
