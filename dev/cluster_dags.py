"""The DAG of `make cluster-test`: mapped tasks that each want one run that COMPLETED, and two without a budget left."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import DAG, Context, task

from airflow_provider_agents.budget import Budget
from airflow_provider_agents.operators import ExecuteAgentOperator

#: Kills take tries, too: none of them may be the last one.
RETRIES, RETRY_DELAY = 30, timedelta(seconds=1)


class StartTogether(ExecuteAgentOperator):
    """Begins at a full multiple of so many seconds, so that several tasks start their agent in the same second.

    Args:
        start_every: seconds; 0 to begin at once.
    """

    def __init__(self, *, start_every: float = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.start_every = start_every

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the agent."""
        if self.start_every:
            time.sleep(-time.time() % self.start_every)
        return super().execute(context)


with DAG("cluster_runs", start_date=datetime(2026, 1, 1), schedule=None, max_active_runs=100, max_active_tasks=1000):  # noqa: DTZ001

    @task(retries=RETRIES, retry_delay=RETRY_DELAY)
    def agents(dag_run: Any = None) -> Any:
        """What each task of this DAG run is made with."""
        return dag_run.conf["tasks"]

    StartTogether.partial(task_id="run", poll_interval=2.0, retries=RETRIES, retry_delay=RETRY_DELAY).expand_kwargs(
        agents()
    )

    # The agent has had a run in the last hours.
    for number in range(2):
        ExecuteAgentOperator(
            task_id=f"over_budget_{number}",
            agent_id="agent-spent",
            budget=Budget(runs=1, per=timedelta(days=1)),
            retries=RETRIES,
            retry_delay=RETRY_DELAY,
        )
