"""The XComs of a task's own: when a worker pushes them, and which of them its trigger pushes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk.definitions.xcom_arg import PlainXComArg

from airflow_provider_agents.api.errors import AgentsError, InvalidArgumentError, one_line
from airflow_provider_agents.payloads import END_KEYS, END_KEYS_WITHOUT_PUSH, XCOM_KEYS
from airflow_provider_agents.runs.status import usage_of

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context, XComArg

    from airflow_provider_agents.hooks import AgentsHook
    from airflow_provider_agents.operators import ExecuteAgentOperator
    from airflow_provider_agents.payloads import XComKey
    from airflow_provider_agents.runs.outcome import Verdict
    from airflow_provider_agents.runs.record import RunRecord
    from airflow_provider_agents.runs.submission import Submission
    from airflow_provider_agents.sensors import AgentRunSensor


def push(task: ExecuteAgentOperator, context: Context, key: XComKey, value: Any) -> None:
    """Push an XCom, unless its value is None. Failures are only logged: the run is already paid for."""
    if not task.do_xcom_push or value is None:
        return
    try:
        context["ti"].xcom_push(key=key, value=value)
    except Exception:
        task.log.exception(
            "The XCom %s could not be pushed (%s). The task continues without it.", key, one_line(str(value))
        )


def push_event(task: ExecuteAgentOperator, context: Context, event_id: str | None, hook: AgentsHook) -> None:
    """Push the id of the run's event, as far as it is known, and log the link to the run."""
    push(task, context, "event_id", event_id)
    if log_run_url(task, task.agent_id, event_id, hook) and not task.deferrable:
        # Airflow pushes it when this process ends, which here is late.
        push(task, context, "run_url", task.run_link)


def push_again(
    task: ExecuteAgentOperator, context: Context, record: RunRecord, verdict: Verdict | None, hook: AgentsHook
) -> None:
    """Push the XComs of an earlier try's run: Airflow clears a task's XComs before each try."""
    push(task, context, "request_id", record.submission.request_id)
    push(task, context, "candidate_event_ids", list(record.candidate_event_ids) or None)
    if record.is_own and verdict is not None and verdict.event is not None:
        push_event(task, context, verdict.event.id, hook)
        push(task, context, "usage", usage_of(verdict.event, try_number=context["ti"].try_number))


def log_run_url(
    task: ExecuteAgentOperator | AgentRunSensor, agent_id: str, event_id: str | None, hook: AgentsHook
) -> bool:
    """Log the link to the run, and leave it for Airflow to push when this process ends.

    Returns:
        Whether the link is new.
    """
    try:
        url = hook.run_url(agent_id=agent_id, event_id=event_id)
    except AgentsError:
        return False  # a link is a comfort; what the run did is known already
    if url is None or url == task.run_link:
        return False
    task.log.info("See the run: %s", url)
    task.run_link = url
    return True


def keys_at_end(task: ExecuteAgentOperator | AgentRunSensor) -> tuple[XComKey, ...]:
    """The XComs that the trigger pushes at the end."""
    return END_KEYS if task.do_xcom_push else END_KEYS_WITHOUT_PUSH


def keys_of_event(task: ExecuteAgentOperator, submission: Submission) -> list[XComKey]:
    """The XComs that the trigger pushes once the run's event is known, beyond those that were pushed already."""
    if submission.event_id is not None:
        return []
    link: list[XComKey] = [] if task.run_link else ["run_url"]
    return ["event_id", *link] if task.do_xcom_push else link


class TaskOutput(PlainXComArg):
    """The task's result. A key that the task will not push is refused when the DAG is parsed."""

    def __getitem__(self, item: str) -> XComArg:
        if item not in XCOM_KEYS:
            raise InvalidArgumentError(
                f"output[{item!r}] of task {self.operator.task_id!r} would be empty: it is no XCom of its own. Set "
                "multiple_outputs=True to push each field of the event, or read the field in the next task."
            )
        return super().__getitem__(item)
