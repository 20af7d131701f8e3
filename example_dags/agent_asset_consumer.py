"""A DAG that runs when an agent's task has updated an asset. The asset event names the agent's run."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.sdk import Asset, dag, task

market_report = Asset("market_report")


@dag(schedule=[market_report], start_date=datetime(2026, 1, 1), catchup=False, tags=["agents"])
def agent_asset_consumer() -> None:
    """No XCom of the other DAG is read."""

    @task
    def note(triggering_asset_events: Any = None) -> list[dict[str, Any]]:
        """Which runs the asset has come from: a DAG run may be about several events."""
        runs = [event.extra["agent_run"] for event in triggering_asset_events[market_report]]
        for run in runs:
            print(f"{run['agent_id']} {run['event_id']} with {run['finalModel']}: {run['run_url']}")
        return runs

    note()


agent_asset_consumer()
