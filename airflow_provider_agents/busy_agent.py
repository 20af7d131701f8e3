"""What a task does if its agent is busy: the argument `if_running`, applied before anything is started."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal, NoReturn, assert_never

from airflow.providers.common.compat.sdk import AirflowSkipException

from airflow_provider_agents.api.errors import AgentBusyError
from airflow_provider_agents.clock import now
from airflow_provider_agents.polling.blocking import run_flow_until, wait_until_idle
from airflow_provider_agents.runs.status import active_runs, describe_state
from airflow_provider_agents.runs.submission import Submission
from airflow_provider_agents.tasks import WAITS_IN_TRIGGERER, deadline_of, defer_timeout
from airflow_provider_agents.triggers import AgentIdleTrigger

if TYPE_CHECKING:
    from datetime import datetime

    from airflow_provider_agents.api.client import Client
    from airflow_provider_agents.operators import ExecuteAgentOperator
    from airflow_provider_agents.payloads import AgentIdle

#: What a task does if its agent is busy.
IfRunning = Literal["start", "attach", "wait", "skip", "fail"]

#: With `if_running="wait"`, a task's turn to start is made longer up to this after turns that were too short, in
#: seconds. A cluster that takes longer to resume a task has no free worker slots.
_LONGEST_HOLD_SECONDS = 3600.0


def apply_if_running(
    task: ExecuteAgentOperator, client: Client, idle: AgentIdle | None, *, settle: float, began_at: datetime
) -> Submission | None:
    """Do what `if_running` says.

    Args:
        task: the task.
        client: of the task's connection.
        idle: how an earlier wait for the agent ended, if there was one.
        settle: seconds after which a new run shows that the agent is busy.
        began_at: when this try began.

    Returns:
        The run to attach to, or None once a new one may be started.

    Raises:
        AgentBusyError: the agent is busy, or the task's turn to start is over at its deadline.
        AirflowSkipException: the agent is busy.
        TaskDeferred: the task waits in the triggerer.
    """
    if task.if_running == "start":
        return None
    active = run_flow_until(client, active_runs(task.agent_id), deadline_of(task, began_at))
    deadline_at = idle.deadline_at if idle is not None else deadline_of(task, began_at)
    if not active:
        _wait_for_turn(task, idle, deadline_at, settle=settle)
        return None
    busy = f"Agent {task.agent_id} is busy: event {active[0].id} is {describe_state(active[0])}."
    match task.if_running:
        case "attach" if active[0].lacks_id:
            raise AgentBusyError(
                f"{busy} The task cannot wait for a row without a readable id, and nothing was started."
            )
        case "attach":
            level = logging.INFO if active[0].unreadable is None else logging.WARNING
            task.log.log(level, "%s Waiting for that run; none is started.", busy)
            return Submission.for_event(active[0], task.agent_id, now())
        case "skip":
            # Airflow shows no reason for a skip.
            task.log.warning("The task is skipped (if_running='skip'): %s Nothing was started.", busy)
            raise AirflowSkipException(f"{busy} Nothing was started.")
        case "fail":
            raise AgentBusyError(
                f"{busy} Nothing was started. Clear the task once the agent is idle, or set if_running='wait'."
            )
        case "wait":
            pass
        case _:
            assert_never(task.if_running)
    if task.deferrable:
        task.log.info("%s %s", busy, WAITS_IN_TRIGGERER.format("until the agent is idle", deadline_at))
        _defer_until_idle(
            task, deadline_at, settle=settle, hold_seconds=idle.hold_seconds if idle is not None else settle
        )
    wait_until_idle(client, task.agent_id, poll_interval=task.poll_interval, deadline_at=deadline_at, say=task.log.log)
    return None


def _wait_for_turn(task: ExecuteAgentOperator, idle: AgentIdle | None, deadline_at: datetime, *, settle: float) -> None:
    """Go on only if it is this task's turn to start the idle agent.

    Raises:
        AgentBusyError: the turn is over, at the deadline.
        TaskDeferred: the task waits for its turn, or for another one.
    """
    if idle is not None and idle.is_stale(now()):
        _queue_again(task, idle, settle=settle)
    if idle is None and task.if_running == "wait" and task.deferrable:
        # Another worker may find the agent idle in the same instant. Only the triggerer's queue sees both tasks.
        task.log.info("%s", WAITS_IN_TRIGGERER.format("for its turn to start the agent", deadline_at))
        _defer_until_idle(task, deadline_at, settle=settle, hold_seconds=settle)


def _queue_again(task: ExecuteAgentOperator, idle: AgentIdle, *, settle: float) -> NoReturn:
    """Give up a turn to start that has lasted too long: another task may start its run just now.

    Raises:
        AgentBusyError: the deadline has passed.
    """
    words = f"This task's turn to start agent {idle.agent_id} ended before a worker resumed the task."
    if now() >= idle.deadline_at:
        raise AgentBusyError(f"{words} Its deadline has passed, and nothing was started.")
    # On a cluster that takes long to resume a task, the next turn would end the same way.
    hold_seconds = min(2 * idle.hold_seconds, max(settle, _LONGEST_HOLD_SECONDS))
    task.log.warning("%s Waiting for another turn of %g seconds.", words, hold_seconds)
    _defer_until_idle(task, idle.deadline_at, settle=settle, hold_seconds=hold_seconds)


def _defer_until_idle(
    task: ExecuteAgentOperator, deadline_at: datetime, *, settle: float, hold_seconds: float
) -> NoReturn:
    task.defer(
        trigger=AgentIdleTrigger(
            agents_conn_id=task.agents_conn_id,
            agent_id=task.agent_id,
            poll_interval=task.poll_interval,
            deadline_at=deadline_at.isoformat(),
            settle=settle,
            hold_seconds=hold_seconds,
        ),
        method_name="start_when_idle",
        kwargs={},
        timeout=defer_timeout(deadline_at, poll_interval=task.poll_interval),
    )
    raise AssertionError("unreachable: defer raises")
