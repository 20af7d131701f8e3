"""Waiting in a triggerer until an agent is idle, and until it is this task's turn to start a run."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from airflow_provider_agents.clock import timeout
from airflow_provider_agents.polling.poller import SIGN_OF_LIFE_SECONDS
from airflow_provider_agents.polling.start_queue import StartQueue
from airflow_provider_agents.polling.timed_event import TimedEvent
from airflow_provider_agents.runs.status import is_active
from airflow_provider_agents.runs.waiting import (
    LAST_LOOK_SECONDS,
    BusyPause,
    Pace,
    StillBusyError,
)
from airflow_provider_agents.runs.waiting import wait_until_idle as idle_steps

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from airflow_provider_agents.api.flow import Sleep
    from airflow_provider_agents.api.models import ExecutionEvent
    from airflow_provider_agents.polling.poller import SharedPoller
    from airflow_provider_agents.polling.subscriptions import Subscription
    from airflow_provider_agents.runs.listing import Listing
    from airflow_provider_agents.runs.submission import Clock
    from airflow_provider_agents.runs.waiting import Say


class ActiveRuns:
    """The active runs of an agent, as a subscriber: its result is True once all of them have ended."""

    criteria = None

    def __init__(self, agent_id: str, active: Sequence[ExecutionEvent]) -> None:
        self.agent_id = agent_id
        self._active = {event.id: event for event in active}

    @property
    def active(self) -> Collection[ExecutionEvent]:
        """Those that have not ended."""
        return self._active.values()

    def apply_listing(self, listing: Listing, began_at: datetime) -> bool | None:  # noqa: ARG002 - it seeks nothing
        """Nothing: no complete look is asked for."""
        return None

    def apply_event(self, event: ExecutionEvent) -> bool | None:
        """Drop a run that has ended."""
        if not is_active(event):
            self._active.pop(event.id, None)
        return None if self._active else True

    def expire(self) -> bool:
        """Some are still active at the deadline."""
        return False


#: Seconds after which the agent is asked for again, although its active runs are followed. A run that vanishes, with
#: its agent or from a queue, never ends.
_ASK_AGAIN_SECONDS = 60.0
_queues: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str], StartQueue]] = WeakKeyDictionary()


def _queue_of(poller: SharedPoller, agent_id: str, now: Clock) -> StartQueue:
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
    now: Clock,
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
        now: our clock.
        say: logs changes of state and signs of life.

    Raises:
        StillBusyError: the agent was not idle at the deadline, or other tasks came first.
        PermanentError: the API has refused to answer for `patience.REFUSED_SECONDS`.
        InvalidConnectionError: the connection cannot be used.
    """
    queue, task, news = _queue_of(poller, agent_id, now), object(), TimedEvent(asyncio.get_running_loop())
    pace = Pace(poll_interval, deadline_at, now, say, queue.patience)

    def may_start(active: Sequence[ExecutionEvent]) -> str | None:
        if active:
            queue.see_active_run(settle, now())
        return "a task that came first was just released" if queue.is_taken(now()) else None

    def on_wake(subscription: Subscription[bool], is_news: bool) -> None:  # noqa: ARG001 - `Pace` decides when to log
        if subscription.outage is not None:
            pace.sign_of_life(logging.WARNING, f"Still no look at agent {agent_id}: {subscription.outage.error}")
        elif not subscription.has_ended:
            pace.sign_of_life(logging.INFO, f"Still waiting for agent {agent_id} to become idle.")

    async def rest(pause: Sleep) -> None:
        # A row without an id cannot be followed.
        if not isinstance(pause, BusyPause) or any(event.lacks_id for event in pause.active):
            await poller.sleep(pause.seconds)
            return
        ask_again_at = now() + timedelta(seconds=max(_ASK_AGAIN_SECONDS, poll_interval))
        await poller.wait_for(
            ActiveRuns(agent_id, pause.active),
            interval=poll_interval,
            deadline_at=min(deadline_at, ask_again_at),
            on_wake=on_wake,
        )

    queue.join(task, news.set)
    try:
        await _wait_for_turn(queue, task, agent_id, pace, news, now)
        async with timeout((deadline_at - now()).total_seconds() + LAST_LOOK_SECONDS):
            await poller.ask(idle_steps(agent_id, pace, may_start=may_start), patient=True, rest=rest)
        queue.release(hold_seconds, now())
    except TimeoutError:
        raise StillBusyError(
            f"Agent {agent_id} was not seen idle before the deadline (the API has not answered in full). Nothing was "
            "started. Raise timeout, or clear the task once the API answers."
        ) from None
    finally:
        queue.leave(task)


async def _wait_for_turn(
    queue: StartQueue, task: object, agent_id: str, pace: Pace, news: TimedEvent, now: Clock
) -> None:
    """Wait until no other task comes first."""
    if not queue.is_first(task):
        pace.speak(logging.INFO, f"Waiting for agent {agent_id}. Tasks that come first: {queue.ahead_of(task)}.")
    while not queue.is_first(task):
        if pace.is_over():
            raise StillBusyError(
                f"Agent {agent_id} was not free before the deadline. Tasks that came first and still wait for it: "
                f"{queue.ahead_of(task)}. Nothing was started."
            )
        await news.wait(min((pace.deadline_at - now()).total_seconds(), SIGN_OF_LIFE_SECONDS))
        pace.sign_of_life(
            logging.INFO, f"Still waiting for agent {agent_id}. Tasks that come first: {queue.ahead_of(task)}."
        )
