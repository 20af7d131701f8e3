"""The waits of a trigger, on a feed. They say and decide what `runs.waiting` does for a worker."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from airflow_provider_agents.api.errors import TemporaryError
from airflow_provider_agents.runs.verdict import active_runs, is_terminal
from airflow_provider_agents.runs.waiting import Pace, StillBusyError, state_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from airflow_provider_agents.api.models import ExecutionEvent
    from airflow_provider_agents.feed.feed import Feed
    from airflow_provider_agents.feed.tickets import Ticket, Trouble
    from airflow_provider_agents.runs.matching import Look
    from airflow_provider_agents.runs.submission import Clock
    from airflow_provider_agents.runs.verdict import Verdict, Wait
    from airflow_provider_agents.runs.waiting import Say


class _Teller:
    """Says what is new about a wait: changes of state, troubles, and now and then that it goes on."""

    __slots__ = ("_say", "_state", "_trouble")

    def __init__(self, say: Say) -> None:
        self._say = say
        self._state = ""
        self._trouble: Trouble | None = None

    def tell(self, state: str, trouble: Trouble | None) -> None:
        began, ended = trouble is not None and self._trouble is None, trouble is None and self._trouble is not None
        before, self._trouble = self._trouble, trouble
        if trouble is not None and began:
            self._say(logging.WARNING, f"{trouble.error} The run goes on; looking again until it can be seen.")
        elif trouble is not None:
            self._say(
                logging.WARNING,
                f"Still no look at the run since {trouble.since:%Y-%m-%d %H:%M:%S} UTC: {trouble.error}",
            )
        elif ended and before is not None:
            self._say(logging.INFO, f"The API answers again after {before.looks} failed looks.")
        if state != self._state:
            self._state = state
            self._say(logging.INFO, state)
        elif not (began or ended or trouble is not None):
            self._say(logging.INFO, f"Still waiting. {state}")


async def wait_for_end(feed: Feed, wait: Wait, *, poll_interval: float, deadline_at: datetime, say: Say) -> Verdict:
    """Wait until there is a verdict, or until a last look at the deadline.

    Args:
        feed: of the run's connection.
        wait: the run.
        poll_interval: seconds between two looks.
        deadline_at: when to give up, on our clock. The run goes on after it.
        say: where changes of state and signs of life go.

    Raises:
        PermanentError: looking will not get better.
        InvalidConnectionError: the connection cannot be used.
    """
    name, teller = wait.submission.name, _Teller(say)

    def tell(ticket: Ticket[Verdict]) -> None:
        teller.tell(f"The run of {name}: {state_of(wait)}.", ticket.trouble)

    verdict = await feed.watch(wait, interval=poll_interval, deadline_at=deadline_at, tell=tell)
    ends = [event.completedAt for event in verdict.events if event.completedAt is not None]
    feed.note_end(verdict.outcome, max(ends, default=None))
    return verdict


class _Busy:
    """The runs that an agent was busy with: something to wait for until all of them are over."""

    seek = None

    def __init__(self, agent_id: str, active: Sequence[ExecutionEvent]) -> None:
        self.agent_id = agent_id
        self._active = {event.id: event for event in active}

    @property
    def going_on(self) -> Collection[ExecutionEvent]:
        return self._active.values()

    def take(self, look: Look, began_at: datetime) -> bool | None:  # noqa: ARG002 - it seeks nothing
        return None

    def update(self, event: ExecutionEvent) -> bool | None:
        if is_terminal(event):
            self._active.pop(event.id, None)
        return None if self._active else True

    def expire(self) -> bool:
        return False


async def wait_until_idle(
    feed: Feed, agent_id: str, *, poll_interval: float, deadline_at: datetime, now: Clock, say: Say
) -> None:
    """Wait until no run of the agent is active.

    Those that are active are followed with everything else; the agent itself is asked again once they are over.

    Raises:
        StillBusyError: a run was still active at a last look at the deadline.
        PermanentError: looking will not get better.
        InvalidConnectionError: the connection cannot be used.
    """
    pace = Pace(poll_interval, deadline_at, now, say)
    active: list[ExecutionEvent] = []

    def tell(ticket: Ticket[bool]) -> None:
        if ticket.trouble is not None:
            pace.sign_of_life(logging.WARNING, f"Still no look at agent {agent_id}: {ticket.trouble.error}")
        elif not ticket.over:
            pace.sign_of_life(logging.INFO, f"Still waiting for agent {agent_id} to become idle.")

    while True:
        over = pace.is_over()
        try:
            active = await feed.ask_together(("active", agent_id), lambda: active_runs(agent_id))
        except TemporaryError as error:
            pause = pace.failed(error).seconds
        else:
            pause = pace.looked().seconds
            if not active:
                return
        if over:
            reason = pace.last_error or f"event {active[0].id} is {active[0].status}"
            raise StillBusyError(
                f"Agent {agent_id} was not seen idle before the deadline ({reason}). Nothing was started."
            )
        if pace.last_error is not None:
            await feed.sleep(pause)
            continue
        ids = ", ".join(sorted(event.id for event in active)[:5])
        pace.speak(logging.INFO, f"Agent {agent_id} is busy with {ids}; waiting.")
        await feed.watch(_Busy(agent_id, active), interval=poll_interval, deadline_at=deadline_at, tell=tell)
