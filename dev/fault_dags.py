"""The DAG that `make faults` torments: one mapped task for each agent, each wanting one run."""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowFailException

from airflow_provider_agents.api.errors import AgentRunFailedError
from airflow_provider_agents.operators import ExecuteAgentOperator


class OneRunOperator(ExecuteAgentOperator):
    """Waits where the DAG run's configuration says, and has no retries left once its run has failed."""

    def execute(self, context):  # noqa: ANN001, ANN201
        """Set the way of waiting, then do what the operator does."""
        self.deferrable = bool(context["dag_run"].conf["deferrable"])
        try:
            return super().execute(context)
        except AgentRunFailedError as error:
            raise AirflowFailException(str(error)) from error

    def execute_complete(self, context, event=None, submission=None):  # noqa: ANN001, ANN201
        """Do what the operator does."""
        try:
            return super().execute_complete(context, event, submission)
        except AgentRunFailedError as error:
            raise AirflowFailException(str(error)) from error


with DAG("fault_runs", start_date=datetime(2026, 1, 1), schedule=None, max_active_tasks=200):  # noqa: DTZ001

    @task(retries=5, retry_delay=timedelta(seconds=1))
    def agents(dag_run=None):  # noqa: ANN001, ANN201
        """The agents of this DAG run."""
        return dag_run.conf["agents"]

    OneRunOperator.partial(
        task_id="run",
        settle=3.0,
        appear_within=60.0,
        poll_interval=1.0,
        retries=8,
        retry_delay=timedelta(seconds=1),
    ).expand(agent_id=agents())
