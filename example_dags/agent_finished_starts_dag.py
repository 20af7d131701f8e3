"""A DAG that runs whenever a run of any agent has finished, whoever has started it. No task waits for it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.sdk import Asset, AssetWatcher, dag, task

from airflow_provider_agents.watchers import AgentRunEventTrigger, finished_runs

agent_runs = Asset(
    "agent_runs",
    watchers=[AssetWatcher(name="agent_runs", trigger=AgentRunEventTrigger(statuses=("COMPLETED", "FAILED")))],
)


@dag(schedule=[agent_runs], start_date=datetime(2026, 1, 1), catchup=False, tags=["agents"])
def agent_finished_starts_dag() -> None:
    """One DAG run for all runs that had finished in one look."""

    @task(inlets=[agent_runs])
    def note(triggering_asset_events: Any = None, inlet_events: Any = None) -> list[str]:
        """Each run once, though a restart of the triggerer may repeat some. A retry is given the same runs again."""
        runs = finished_runs(triggering_asset_events[agent_runs], history=inlet_events[agent_runs])
        return [f"{run['agentId']} {run['id']} {run['status']}" for run in runs]

    note()


agent_finished_starts_dag()
