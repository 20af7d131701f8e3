"""Do not pay again for a run that FAILED, but retry an outage. Needs Airflow 3.3 or newer."""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryRule, dag

from airflow_provider_agents.api.errors import AgentRunFailedError
from airflow_provider_agents.operators import ExecuteAgentOperator


@dag(schedule=None, start_date=datetime(2026, 1, 1), catchup=False, tags=["agents"])
def agent_failed_is_final() -> None:
    """The runs of this agent FAIL: the task fails after the first one."""
    ExecuteAgentOperator(
        task_id="run_agent",
        agent_id="agent-fragile",
        retries=3,
        retry_delay=timedelta(minutes=5),
        retry_policy=ExceptionRetryPolicy(
            rules=[RetryRule(AgentRunFailedError, RetryAction.FAIL, reason="A failed run is not paid for again.")]
        ),
    )


agent_failed_is_final()
