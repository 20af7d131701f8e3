"""What a task does about budgets: its own and its connection's, asked just before a run is started."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowSkipException, BaseOperator

from airflow_provider_agents import validation
from airflow_provider_agents.api.errors import BudgetExceededError, InvalidArgumentError
from airflow_provider_agents.hooks import AgentsHook
from airflow_provider_agents.runs.spending import check_budget
from airflow_provider_agents.tasks import connect, fail_without_retry, start_window

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import tzinfo

    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_agents.api.client import Client
    from airflow_provider_agents.budget import Budget


def check_budgets(task: Any, client: Client) -> None:
    """Ask both budgets of a task: the stricter one holds.

    Args:
        task: its `agent_id`, its `budget` or None, and its log.
        client: of the task's connection.

    Raises:
        BudgetExceededError: there is no room for another run, and that budget is to fail the task.
        AirflowSkipException: there is no room, and the budget is to skip the task.
        AgentsError: the runs cannot be read, so it is not known whether there is room.
    """
    exceeded = _find_exceeded(task, client)
    for budget, error in exceeded:
        if budget.over == "fail":
            raise error
    for _, error in exceeded:
        _skip(task, error)


def _find_exceeded(task: Any, client: Client) -> list[tuple[Budget, BudgetExceededError]]:
    exceeded: list[tuple[Budget, BudgetExceededError]] = []
    for owner, budget in (("task", task.budget), ("connection", client.settings.budget)):
        if budget is None:
            continue
        try:
            client.run_flow(check_budget(budget, task.agent_id, _time_zone_of(task), owner=owner))
        except BudgetExceededError as error:
            exceeded.append((budget, error))
    return exceeded


def _time_zone_of(task: Any) -> tzinfo:
    zone: tzinfo = task.dag.timezone if task.has_dag() else UTC
    return zone


def _skip(task: Any, error: BudgetExceededError) -> None:
    # Airflow shows no reason for a skip.
    task.log.warning("The task is skipped. %s", error)
    raise AirflowSkipException(str(error))


ARGUMENTS = validation.Arguments(
    {
        "agent_id": validation.agent_id,
        "agents_conn_id": validation.connection_id,
        "budget": validation.budget,
    }
)


class CheckAgentBudgetOperator(BaseOperator):
    """Ask whether a budget leaves room for a run of an agent; if not, skip the task and what depends on it.

    The task starts nothing, and returns True. A task after it with `trigger_rule="all_skipped"` runs if there is no
    room. The connection's budget is asked as well; `over` of the two does not matter here.

    Args:
        agent_id: the agent. Templated.
        agents_conn_id: the connection. Templated.
        budget: what the agent's or the account's runs may use. None: only the connection's budget is asked.

    Raises:
        InvalidArgumentError: an argument cannot be used (when the DAG is parsed, as far as it is known then).
        AirflowSkipException: there is no room.
        AirflowFailException: what no retry can fix, such as no budget in the task and its connection; its `__cause__`
            is the typed error.
        TemporaryError: the API could not be used, after repetitions.
    """

    template_fields: Sequence[str] = ("agent_id", "agents_conn_id")
    ui_color = "#e6e0f8"

    def __init__(
        self,
        *,
        agent_id: str,
        agents_conn_id: str = AgentsHook.default_conn_name,
        budget: Budget | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.agent_id = agent_id
        self.agents_conn_id = agents_conn_id
        self.budget = budget
        if not validation.made_from_mapped(self):
            ARGUMENTS.check(self, parsing=True)

    @fail_without_retry
    def execute(self, context: Context) -> bool:  # noqa: ARG002 - Airflow's
        """Ask the budgets."""
        ARGUMENTS.check(self)
        hook = connect(self.agents_conn_id, self.log.warning)
        if self.budget is None and hook.settings().budget is None:
            raise InvalidArgumentError(
                f"There is no budget to check. Set budget of task {self.task_id!r}, or the extra budget of the "
                f"connection {self.agents_conn_id!r}."
            )
        with hook.get_conn(window=start_window(self.log.warning)) as client:
            for _, error in _find_exceeded(self, client):
                _skip(self, error)
        return True
