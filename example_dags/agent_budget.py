"""At most twenty runs and one hour of browser time a day; three failed runs in a row stop an agent until tomorrow."""

from __future__ import annotations

from datetime import datetime

from airflow.sdk import dag, task

from airflow_provider_agents.budget import Budget
from airflow_provider_agents.operators import CheckAgentBudgetOperator, ExecuteAgentOperator

BUDGET = Budget(runs=20, browser_seconds=3600, failures=3, per="day")


@dag(schedule=None, start_date=datetime(2026, 1, 1), catchup=False, tags=["agents"])
def agent_budget() -> None:
    """Run the agent while its budget lasts, and use yesterday's result after that."""
    check = CheckAgentBudgetOperator(task_id="check", agent_id="agent-research", budget=BUDGET)
    run_agent = ExecuteAgentOperator(task_id="run_agent", agent_id="agent-research", budget=BUDGET)

    @task(trigger_rule="all_skipped")
    def use_yesterdays_result() -> None:
        print("The budget is used up.")

    check >> [run_agent, use_yesterdays_result()]


agent_budget()
