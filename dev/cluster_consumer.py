"""The DAG of `make cluster-test` that a watcher of the account starts: `retried_consumer` of consumer_dags.py."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from arrivals import Arrivals, judge, load_readings

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from cluster_database import Database
    from real_airflow import RealAirflow

    from airflow_provider_agents.simulator import Simulator
    from airflow_provider_agents.simulator.runs import Run

DAG = "retried_consumer"
#: Seconds that the last runs may take to arrive: a poll of the watcher, two tries with a pause, a triggerer that has
#: just been killed, and an event that Airflow 3.3 holds back until the next one.
ARRIVE_SECONDS = 120.0


def ended_between(runs: Iterable[Run], since: datetime, until: datetime) -> set[str]:
    """The events of the runs that ended within a period."""
    return {run.event_id for run in runs if since <= run.ended_at <= until}


class Consumer:
    """The DAG, and what reaches it.

    Args:
        airflow: that it runs in.
        database: of this Airflow.
        readings: the folder that the tries of its task write to.
    """

    def __init__(self, airflow: RealAirflow, database: Database, readings: Path) -> None:
        self._airflow, self._database, self._readings = airflow, database, readings

    def start(self) -> None:
        """Let it run, and the watcher with it."""
        self._airflow.unpause(DAG)
        self._airflow.parse_again(DAG)

    def finish(self, simulator: Simulator) -> Arrivals:
        """Wait until each run that has ended has arrived, or no longer, and judge.

        The watcher reports what ends after its start. It has certainly started when its first asset event is there.
        """
        ended_at = datetime.now(UTC)
        ((first_at,),) = self._database.rows("select min(timestamp) from asset_event")
        runs = [run for run, _ in simulator.runs()]
        wanted = ended_between(runs, first_at or min(run.ended_at for run in runs), ended_at)
        gives_up_at = time.monotonic() + ARRIVE_SECONDS
        while judge(wanted, self._returned()).lost and time.monotonic() < gives_up_at:
            self._airflow.revive()
            time.sleep(1.0)
        return judge(wanted, self._returned(), load_readings(self._readings))

    def _returned(self) -> dict[str, tuple[str, ...] | None]:
        rows = self._database.rows(
            "select run_id, value from tasks left join xcoms on xcoms.id = tasks.id and key = 'return_value' "
            "where dag_id = %s and task_id = 'note'",
            DAG,
        )
        found: dict[str, tuple[str, ...] | None] = {}
        for run_id, value in rows:
            lines = json.loads(value) if isinstance(value, str) else value
            found[run_id] = None if lines is None else tuple(line.split()[1] for line in lines)
        return found


def consumer_rows(arrivals: Arrivals) -> list[tuple[str, str]]:
    """The rows of the report."""
    return [
        ("runs that ended while a watcher was there", f"{arrivals.returned + len(arrivals.lost):,}"),
        ("of them, returned by a task of the watcher's DAG", f"{arrivals.returned:,}"),
        ("of them, lost", f"{len(arrivals.lost)}"),
        ("of them, returned twice", f"{len(arrivals.twice)}"),
        ("DAG runs of the watcher, and those whose task was tried again", f"{arrivals.dag_runs}, {arrivals.retried}"),
        ("tasks that were given other runs than before when they were tried again", f"{len(arrivals.changed)}"),
    ]
