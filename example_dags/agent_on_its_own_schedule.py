"""An agent that the platform starts on its own schedule, and a DAG that uses what it did."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import dag, task

from airflow_provider_agents.sensors import AgentRunSensor


@dag(schedule="@hourly", start_date=datetime(2026, 1, 1), catchup=False, tags=["agents"])
def agent_on_its_own_schedule() -> None:
    """The agent's first run that began in this hour, whenever the DAG itself runs."""
    nightly_run = AgentRunSensor(
        task_id="nightly_run",
        agent_id="agent-nightly",
        # A run that a person has started has no interval.
        started_after="{{ (data_interval_start | default(dag_run.run_after, true)).isoformat() }}",
        # In Airflow 3 the data interval of "@hourly" has no length. With a timetable that gives it one, such as
        # CronDataIntervalTimetable, write "{{ data_interval_end }}".
        started_before=(
            "{{ (data_interval_start | default(dag_run.run_after, true) + macros.timedelta(hours=1)).isoformat() }}"
        ),
        timeout=timedelta(hours=2),
        # An hour without a run is no incident: what follows is skipped.
        soft_fail=True,
    )

    @task
    def report(event: dict[str, Any]) -> str:
        """Use the event."""
        return f"{event['id']} began at {event['startedAt']}"

    report(nightly_run.output)


agent_on_its_own_schedule()
