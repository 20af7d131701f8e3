"""What a user may write by mistake, and mypy refuses. Nothing runs this file: `make lint` reads it.

Each line names its error. If mypy no longer reports the error, the comment itself is one: `warn_unused_ignores`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_agents.budget import Budget
from airflow_provider_agents.operators import ExecuteAgentOperator
from airflow_provider_agents.sensors import AgentRunSensor
from airflow_provider_agents.watchers import AgentRunEventTrigger, finished_runs

if TYPE_CHECKING:
    from airflow_provider_agents.hooks import AgentsHook
    from airflow_provider_agents.testing import AgentsSimulator

ExecuteAgentOperator(task_id="run")  # type: ignore[call-arg]  # no agent_id
ExecuteAgentOperator("agent-1", task_id="run")  # type: ignore[call-arg]  # keywords only
ExecuteAgentOperator(task_id="run", agent_id="agent-1", if_running="queue")  # type: ignore[arg-type]
ExecuteAgentOperator(task_id="run", agent_id="agent-1", on_ambiguous="latest")  # type: ignore[arg-type]
ExecuteAgentOperator(task_id="run", agent_id="agent-1", timeout="2h")  # type: ignore[arg-type]
ExecuteAgentOperator(task_id="run", agent_id="agent-1", budget=20)  # type: ignore[arg-type]
AgentRunSensor(task_id="wait", agent_id="agent-1", on_ambiguous="latest")  # type: ignore[arg-type]
AgentRunSensor(task_id="wait", agent_id="agent-1", started_after=3600)  # type: ignore[arg-type]
AgentRunEventTrigger(statuses=1)  # type: ignore[arg-type]
Budget(runs=20, per="year")  # type: ignore[arg-type]
finished_runs([], story=None)  # type: ignore[call-arg]


def with_the_hook(hook: AgentsHook) -> None:
    """Methods of the hook."""
    hook.list_agents("agent-1")  # type: ignore[arg-type]  # a limit
    hook.cancel_run("event-1")  # type: ignore[attr-defined]  # the API has no way to
    hook.usage("agent-1")  # type: ignore[call-arg]  # since when


def with_the_fixture(agents_simulator: AgentsSimulator) -> None:
    """The fixture."""
    agents_simulator.add_agent("agent-1", run_second=1200)  # type: ignore[call-arg]
