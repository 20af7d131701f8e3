"""Waiting in a triggerer until an agent is idle, and until it is this task's turn to start a run."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from airflow_provider_agents.api.errors import AgentBusyError, PermanentError
from airflow_provider_agents.clock import now
from airflow_provider_agents.polling.asking import IdleAgent
from airflow_provider_agents.polling.progress import SIGN_OF_LIFE_SECONDS
from airflow_provider_agents.polling.start_queue import StartQueue
from airflow_provider_agents.polling.timed_event import TimedEvent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from airflow_provider_agents.api.models import ExecutionEvent
    from airflow_provider_agents.polling.poller import SharedPoller
    from airflow_provider_agents.polling.progress import Say


_queues: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str], StartQueue]] = WeakKeyDictionary()


def _queue_of(poller: SharedPoller, agent_id: str) -> StartQueue:
    """The queue of an agent. It outlives the poller, which closes as soon as the last task is released."""
    queues = _queues.setdefault(asyncio.get_running_loop(), {})
    for key in [key for key, queue in queues.items() if not queue.is_of_use(now())]:
        del queues[key]
    return queues.setdefault((poller.name, agent_id), StartQueue())


async def wait_until_idle(
    poller: SharedPoller,
    agent_id: str,
    *,
    poll_interval: float,
    deadline_at: datetime,
    settle: float,
    hold_seconds: float,
    say: Say,
) -> None:
    """Wait until no run of the agent is active, and until it is this task's turn to start one.

    The active runs are followed with everything else.

    Args:
        poller: of the agent's connection.
        agent_id: the agent.
        poll_interval: seconds between two polls.
        deadline_at: when to give up, on our clock.
        settle: seconds within which the event of a run appears.
        hold_seconds: how long no other task is released after this one, unless its run is seen.
        say: logs changes of state and signs of life.

    Raises:
        AgentBusyError: the agent was not idle at the deadline, or other tasks came first.
        PermanentError: the API has refused to answer for `patience.REFUSED_SECONDS`.
        InvalidConnectionError: the connection cannot be used.
    """
    queue, task, news = _queue_of(poller, agent_id), object(), TimedEvent(asyncio.get_running_loop())

    def may_start(active: Sequence[ExecutionEvent]) -> str | None:
        if active:
            queue.see_active_run(settle, now())
        if queue.is_taken(now()):
            return "a task that came first was just released"
        return "a run that was accepted has not appeared yet" if poller.awaits_event(agent_id) else None

    queue.join(task, news.set)
    try:
        await _wait_for_turn(queue, task, agent_id, deadline_at, news, say)
        idle = IdleAgent(agent_id, say, may_start)
        try:
            is_idle = await poller.wait_for(idle, interval=poll_interval, deadline_at=deadline_at, on_wake=idle.on_wake)
        except PermanentError as error:
            queue.refuse(error)
            raise
        idle.check(is_idle)
        queue.release(hold_seconds, now())
    finally:
        queue.leave(task)


async def _wait_for_turn(
    queue: StartQueue, task: object, agent_id: str, deadline_at: datetime, news: TimedEvent, say: Say
) -> None:
    """Wait until no other task comes first."""
    if not queue.is_first(task):
        say(logging.INFO, f"Waiting for agent {agent_id}. Tasks that come first: {queue.ahead_of(task)}.")
    while not queue.is_first(task):
        left = (deadline_at - now()).total_seconds()
        if left <= 0.0:
            raise AgentBusyError(
                f"Agent {agent_id} was not free before the deadline. Tasks that came first and still wait for it: "
                f"{queue.ahead_of(task)}. Nothing was started."
            )
        is_woken = await news.wait(min(left, SIGN_OF_LIFE_SECONDS))
        queue.check(task)
        if not is_woken:
            say(logging.INFO, f"Still waiting for agent {agent_id}. Tasks that come first: {queue.ahead_of(task)}.")
