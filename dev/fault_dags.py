"""The DAGs that `make faults` torments: one mapped task for each agent, each wanting one run, and a watcher."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import DAG, Asset, AssetWatcher, task
from airflow.sdk.exceptions import AirflowFailException

from airflow_provider_agents.api.errors import AgentRunFailedError
from airflow_provider_agents.operators import ExecuteAgentOperator
from airflow_provider_agents.watchers import AgentRunEventTrigger


class OneRunOperator(ExecuteAgentOperator):
    """Waits where the DAG run's configuration says, and has no retries left once its run has failed."""

    def execute(self, context: Any) -> Any:
        """Set the way of waiting, then do what the operator does."""
        self.deferrable = bool(context["dag_run"].conf["deferrable"])
        try:
            return super().execute(context)
        except AgentRunFailedError as error:
            raise AirflowFailException(str(error)) from error

    def execute_complete(self, context: Any, event: Any = None) -> Any:
        """Do what the operator does."""
        try:
            return super().execute_complete(context, event)
        except AgentRunFailedError as error:
            raise AirflowFailException(str(error)) from error


with DAG("fault_runs", start_date=datetime(2026, 1, 1), schedule=None, max_active_tasks=200):  # noqa: DTZ001

    @task(retries=5, retry_delay=timedelta(seconds=1))
    def agents(dag_run: Any = None) -> Any:
        """The agents of this DAG run."""
        return dag_run.conf["agents"]

    OneRunOperator.partial(
        task_id="run",
        settle=3.0,
        appear_within=60.0,
        poll_interval=1.0,
        retries=8,
        retry_delay=timedelta(seconds=1),
        # A killed process is tried again at once; the last of these retries comes after what lasts for a minute.
        retry_exponential_backoff=2.0,
        max_retry_delay=timedelta(seconds=20),
    ).expand(agent_id=agents())

#: Every run of the account that ends. Its watcher polls only while the DAG below is not paused.
ENDED = Asset(
    "fault_runs_ended",
    watchers=[
        AssetWatcher(
            name="fault_runs_ended",
            trigger=AgentRunEventTrigger(statuses=("COMPLETED", "FAILED"), poll_interval=1.0, settle=3.0),
        )
    ],
)

with DAG("fault_watcher", start_date=datetime(2026, 1, 1), schedule=[ENDED], catchup=False):  # noqa: DTZ001

    @task
    def note() -> None:
        """Take the event."""

    note()
