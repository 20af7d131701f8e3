"""DAGs for the tests of the whole system: what goes wrong, and each way to wait."""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.sdk import DAG, Asset, ExceptionRetryPolicy, RetryAction, RetryRule

from airflow_provider_agents.api.errors import AgentRunFailedError
from airflow_provider_agents.budget import Budget
from airflow_provider_agents.operators import CheckAgentBudgetOperator, ExecuteAgentOperator

START = datetime(2026, 1, 1)  # noqa: DTZ001 - Airflow adds UTC
#: The simulator shows records at once, so that nothing has to be waited for longer than this.
QUICK = {"settle": 2.0, "appear_within": 20.0, "poll_interval": 1.0}

with DAG("system_failed_run", start_date=START, schedule=None):
    ExecuteAgentOperator(task_id="run", agent_id="agent-failing", retries=1, retry_delay=timedelta(seconds=1), **QUICK)

with DAG("system_failed_is_final", start_date=START, schedule=None):
    final = {
        "retries": 1,
        "retry_delay": timedelta(hours=1),
        "retry_policy": ExceptionRetryPolicy(rules=[RetryRule(AgentRunFailedError, RetryAction.FAIL, reason="Final.")]),
    }
    ExecuteAgentOperator(task_id="failed", agent_id="agent-fragile", **final, **QUICK)
    ExecuteAgentOperator(task_id="outage", agent_id="agent-123", agents_conn_id="agents_down", **final, **QUICK)

with DAG("system_mapped_outlets", start_date=START, schedule=None):
    ExecuteAgentOperator.partial(task_id="run", outlets=[Asset("system_reports")], **QUICK).expand(
        agent_id=["agent-east", "agent-west"]
    )

with DAG("system_on_worker", start_date=START, schedule=None):
    ExecuteAgentOperator(task_id="run", agent_id="agent-worker", deferrable=False, **QUICK)

with DAG("system_wrong_key", start_date=START, schedule=None):
    ExecuteAgentOperator(
        task_id="run", agent_id="agent-123", agents_conn_id="agents_wrong_key", retries=3,
        retry_delay=timedelta(seconds=1), **QUICK,
    )  # fmt: skip

with DAG("system_budget", start_date=START, schedule=None):
    budget = Budget(runs=1, per=timedelta(days=1))
    check = CheckAgentBudgetOperator(task_id="check", agent_id="agent-spent", budget=budget)
    check >> ExecuteAgentOperator(task_id="skipped", agent_id="agent-spent", **QUICK)
    ExecuteAgentOperator(task_id="run", agent_id="agent-spent", budget=budget, retries=3, **QUICK)
    ExecuteAgentOperator.partial(task_id="mapped", budget=budget, retries=3, **QUICK).expand(agent_id=["agent-spent"])

with DAG("system_unknown_agent", start_date=START, schedule=None):
    ExecuteAgentOperator(task_id="run", agent_id="agent-unknown", retries=3, **QUICK)

with DAG("system_missing_connection", start_date=START, schedule=None):
    ExecuteAgentOperator(task_id="run", agent_id="agent-123", agents_conn_id="not_there", retries=0, **QUICK)

with DAG("system_wait_until_idle", start_date=START, schedule=None):
    ExecuteAgentOperator(task_id="run", agent_id="{{ params.agent }}", if_running="wait",
                         params={"agent": "agent-news"}, **QUICK)  # fmt: skip

with DAG("system_timeout", start_date=START, schedule=None):
    ExecuteAgentOperator(
        task_id="run", agent_id="agent-slow", timeout=4.0, retries=12, retry_delay=timedelta(seconds=1), **QUICK
    )

with DAG("system_killed", start_date=START, schedule=None):
    ExecuteAgentOperator(task_id="run", agent_id="agent-killed", **QUICK)
    ExecuteAgentOperator.partial(task_id="mapped", **QUICK).expand(agent_id=["agent-linked"])

with DAG("system_dag_test", start_date=START, schedule=None):
    ExecuteAgentOperator(task_id="run", agent_id="agent-prices", **QUICK)
