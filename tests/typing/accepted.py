"""What a user writes, and mypy accepts under `--strict`. Nothing runs this file: `make lint` reads it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, assert_type

from airflow.sdk import DAG, Asset, AssetWatcher, task

from airflow_provider_agents.api.client import AsyncClient, Client
from airflow_provider_agents.api.errors import AgentRunFailedError, AgentsError
from airflow_provider_agents.api.models import Accepted, Agent, ExecutionEvent
from airflow_provider_agents.api.settings import Settings
from airflow_provider_agents.budget import Budget
from airflow_provider_agents.operators import CheckAgentBudgetOperator, ExecuteAgentOperator
from airflow_provider_agents.sensors import AgentRunSensor
from airflow_provider_agents.simulator import ManualClock, Simulator, mock_transport
from airflow_provider_agents.watchers import AgentRunEventTrigger, finished_runs

if TYPE_CHECKING:
    from airflow_provider_agents.hooks import AgentsHook
    from airflow_provider_agents.runs.usage import Usage
    from airflow_provider_agents.testing import AgentsSimulator

with DAG("a_dag", schedule="@daily"):
    run = ExecuteAgentOperator(
        task_id="run",
        agent_id="agent-1",
        timeout=timedelta(hours=2),
        if_running="wait",
        on_ambiguous="fail",
        budget=Budget(runs=20, per="day"),
        retries=2,
    )
    ExecuteAgentOperator.partial(task_id="each", settle=30.0).expand(agent_id=["agent-1", "agent-2"])
    wait = AgentRunSensor(task_id="wait", submission=run.output, soft_fail=True)
    first = AgentRunSensor(task_id="first", agent_id="agent-1", started_after=datetime(2026, 1, 1, tzinfo=UTC))
    CheckAgentBudgetOperator(task_id="check", agent_id="agent-1", budget=Budget(runs=20, per="day")) >> run

ENDED = Asset(
    "ended",
    watchers=[AssetWatcher(name="ended", trigger=AgentRunEventTrigger(statuses=("COMPLETED", "FAILED")))],
)


@task
def report(triggering_asset_events: Any = None) -> list[str]:
    """The ids of the runs that have started this DAG run."""
    runs = finished_runs(triggering_asset_events[ENDED])
    assert_type(runs, list[dict[str, Any]])
    return [one["id"] for one in runs]


def with_the_hook(hook: AgentsHook) -> str:
    """A task of one's own, on a worker."""
    assert_type(hook.list_agents(limit=10), list[Agent])
    assert_type(hook.execute_agent("agent-1"), Accepted)
    assert_type(hook.list_events(agent_id="agent-1"), list[ExecutionEvent])
    used: Usage = hook.usage("agent-1", since=datetime(2026, 1, 1, tzinfo=UTC))
    works, words = hook.test_connection()
    assert_type(works, bool)
    return f"{words} {used}"


async def on_an_event_loop(hook: AgentsHook) -> list[Agent]:
    """The same in a trigger of one's own."""
    assert_type(await hook.aexecute_agent("agent-1"), Accepted)
    return await hook.alist_agents()


def with_the_client_alone(key: str) -> None:
    """The API without Airflow, here against the simulator."""
    simulator = Simulator(ManualClock())
    with Client(Settings(api_key=key), transport=mock_transport(simulator)) as client:
        assert_type(client, Client)


def errors_have_a_tree(hook: AgentsHook) -> tuple[str, ...]:
    """What a task catches."""
    try:
        hook.get_agent("agent-1")
    except AgentRunFailedError as error:
        return error.event_ids
    except AgentsError as error:
        return (str(error),)
    return ()


def test_of_a_dag(agents_simulator: AgentsSimulator) -> None:
    """A test of the user's own, with the fixture that the package brings."""
    agents_simulator.add_agent("agent-1", run_seconds=1200)
    event = agents_simulator.run(run)
    assert event["status"] == "COMPLETED"


CLIENTS: tuple[type[Client], type[AsyncClient]] = (Client, AsyncClient)
