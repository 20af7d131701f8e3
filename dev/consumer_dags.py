"""A DAG on an asset of finished runs whose task fails, or is killed, once it has read its runs, and is tried again.

For `make watcher` and `make cluster-test`. The asset and its watcher are those of `agent_finished_starts_dag`: Airflow
keeps a watcher that each file with the asset names.
"""

from __future__ import annotations

import json
import os
import signal
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zlib import crc32

from airflow.sdk import Asset, AssetWatcher, dag, task

from airflow_provider_agents.watchers import AgentRunEventTrigger, finished_runs

#: Each try writes the runs that it has read to a file in this folder: the next try deletes the XComs.
READINGS = Path(os.environ["CONSUMER_READINGS"])
#: The watcher's connection, and the seconds between two polls; the defaults are the trigger's.
CONNECTION = os.environ.get("CONSUMER_CONNECTION", "agents_default")
POLL_SECONDS = float(os.environ.get("CONSUMER_POLL_SECONDS", "5"))
#: Of three first tries, one is killed and two raise.
KILLED_OF = 3

agent_runs = Asset(
    "agent_runs",
    watchers=[
        AssetWatcher(
            name="agent_runs",
            trigger=AgentRunEventTrigger(
                statuses=("COMPLETED", "FAILED"), agents_conn_id=CONNECTION, poll_interval=POLL_SECONDS
            ),
        )
    ],
)


@dag(schedule=[agent_runs], start_date=datetime(2026, 1, 1), catchup=False)  # noqa: DTZ001
def retried_consumer() -> None:
    """Give each run to a task that fails first."""

    # Kills take tries, too: none of them may be the last one. More events arrive between two tries.
    @task(inlets=[agent_runs], retries=30, retry_delay=timedelta(seconds=5))
    def note(ti: Any = None, triggering_asset_events: Any = None, inlet_events: Any = None) -> list[str]:
        """Read the runs, and fail if no earlier try has read them."""
        runs = finished_runs(triggering_asset_events[agent_runs], history=inlet_events[agent_runs])
        is_first = not any(READINGS.glob(f"{ti.run_id}.*"))
        file = READINGS / f"{ti.run_id}.{ti.try_number}"
        file.write_text(json.dumps([run["id"] for run in runs]), encoding="utf-8")
        if is_first and crc32(ti.run_id.encode()) % KILLED_OF == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if is_first:
            raise RuntimeError("The first try fails once it has read its runs.")
        return [f"{run['agentId']} {run['id']} {run['status']}" for run in runs]

    note()


retried_consumer()
