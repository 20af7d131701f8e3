"""Run all active agents of the account: the list comes from the platform when the DAG runs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.sdk import dag, task

from airflow_provider_agents.hooks import AgentsHook
from airflow_provider_agents.operators import ExecuteAgentOperator


@dag(schedule=None, start_date=datetime(2026, 1, 1), catchup=False, tags=["agents"])
def agent_all_active() -> None:
    """One mapped task for each active agent, named after it."""

    @task
    def active_agents() -> list[str]:
        """The ids. Leave the second condition out to run really all of them."""
        agents = AgentsHook().list_agents(limit=1000)
        return [agent.id for agent in agents if agent.status == "ACTIVE" and agent.id.startswith("agent-fleet-")]

    run_agents = ExecuteAgentOperator.partial(
        task_id="run_agents",
        # Airflow's pages show the agent in place of a number.
        map_index_template="{{ task.agent_id }}",
    ).expand(agent_id=active_agents())

    @task
    def report(events: Any) -> list[str]:
        """One line per agent."""
        return [f"{event['agentId']} {event['status']}" for event in events]

    report(run_agents.output)


agent_all_active()
