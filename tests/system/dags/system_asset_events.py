"""Two DAGs on one asset: of one DAG run at a time, and of 16."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, Asset, task

from airflow_provider_agents.watchers import finished_runs

runs = Asset("system_runs")

for at_once in (1, 16):
    with DAG(f"system_asset_events_{at_once}", schedule=[runs], max_active_runs=at_once):

        @task(inlets=[runs])
        def note(triggering_asset_events: Any = None, inlet_events: Any = None) -> list[str]:
            """The ids of the runs that this DAG run is given."""
            return [run["id"] for run in finished_runs(triggering_asset_events[runs], history=inlet_events[runs])]

        note()
