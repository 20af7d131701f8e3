"""DAGs for `make ui`: what a person looks at in Airflow's pages."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.sdk import DAG

from airflow_provider_agents.operators import ExecuteAgentOperator

START = datetime(2026, 1, 1)  # noqa: DTZ001 - Airflow adds UTC
#: The simulator shows records at once, so a run is told from others after so little.
QUICK: dict[str, Any] = {"settle": 3.0, "appear_within": 20.0, "poll_interval": 1.0, "agents_conn_id": "agents_ui"}

with DAG("price_report", start_date=START, schedule=None):
    ExecuteAgentOperator(task_id="run_agent", agent_id="agent-prices", **QUICK)

with DAG("price_reports", start_date=START, schedule=None):
    ExecuteAgentOperator.partial(task_id="run_agents", **QUICK).expand(agent_id=["agent-london", "agent-paris"])

with DAG("failing_report", start_date=START, schedule=None):
    ExecuteAgentOperator(task_id="run_agent", agent_id="agent-failing", **QUICK)

with DAG("wrong_key", start_date=START, schedule=None):
    ExecuteAgentOperator(task_id="run_agent", agent_id="agent-prices", **{**QUICK, "agents_conn_id": "agents_wrong"})

with DAG("no_run_url", start_date=START, schedule=None):
    ExecuteAgentOperator(task_id="run_agent", agent_id="agent-news", **{**QUICK, "agents_conn_id": "agents_plain"})
