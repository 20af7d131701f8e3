"""Subscribers with requests of their own: until an agent is idle, and until a run that is sought is known.

Both are the same on a worker and in a triggerer.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_provider_agents.api.errors import AgentBusyError
from airflow_provider_agents.polling.progress import ExclusiveWarning, ProgressLogger
from airflow_provider_agents.polling.subscriptions import AskingSubscriber
from airflow_provider_agents.runs.status import active_runs, describe_state, is_active

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from datetime import datetime

    from airflow_provider_agents.api.flow import Flow
    from airflow_provider_agents.api.models import ExecutionEvent
    from airflow_provider_agents.polling.progress import Say
    from airflow_provider_agents.polling.subscriptions import Outage, Subscription
    from airflow_provider_agents.runs.first_run import StartedRuns
    from airflow_provider_agents.runs.matching import Missing
    from airflow_provider_agents.runs.selector import RunSelector
    from airflow_provider_agents.runs.tracker import WaitPolicy

#: After this time the agent is asked for its active runs again, although those that are known are followed. A run that
#: vanishes, with its agent or from a queue, never ends.
_ASK_AGAIN_AFTER = timedelta(seconds=60)
#: Events that a log line names one by one.
_NAMED = 5


class IdleAgent(AskingSubscriber[bool]):
    """Waits until no run of an agent is active: the result is False if one still is at the deadline.

    Between two responses the active runs are followed, as all runs are.

    Args:
        agent_id: the agent.
        say: logs changes of state and signs of life.
        may_start: called with the active runs of each response. Returns why to wait although there is none, or None.
    """

    def __init__(
        self, agent_id: str, say: Say, may_start: Callable[[Sequence[ExecutionEvent]], str | None] = lambda _: None
    ) -> None:
        super().__init__(agent_id)
        self._may_start = may_start
        self._logger = ProgressLogger(say, f"agent {agent_id}")
        self._outage: Outage | None = None
        self._active: dict[str, ExecutionEvent] = {}
        self._asked_at: datetime | None = None
        self._reason = "the API has not answered in full"

    @property
    def key(self) -> object:
        """The agent."""
        return "active", self.agent_id

    def wants_request(self, now: datetime) -> bool:
        """Not while known runs are followed, except now and then."""
        return not self._active or self._asked_at is None or now - self._asked_at >= _ASK_AGAIN_AFTER

    def request_flow(self) -> Flow[list[ExecutionEvent]]:
        """The agent's active runs."""
        return active_runs(self.agent_id)

    def apply_response(self, response: list[ExecutionEvent], began_at: datetime) -> bool | None:
        """The agent is idle if no run is active and `may_start` has no objection."""
        self._asked_at = began_at
        objection = self._may_start(response)
        if not response and objection is None:
            return True
        # A row without an id cannot be followed.
        self._active = {} if any(event.lacks_id for event in response) else {event.id: event for event in response}
        self._reason = f"event {response[0].id} is {describe_state(response[0])}" if response else str(objection)
        return None

    @property
    def active(self) -> Collection[ExecutionEvent]:
        """The runs that have not ended."""
        return self._active.values()

    def apply_event(self, event: ExecutionEvent) -> bool | None:
        """Drop a run that has ended. Only the agent's response shows that no other run is active."""
        if not is_active(event):
            self._active.pop(event.id, None)
        return None

    def expire(self) -> bool:
        """A run is still active at the deadline."""
        return False

    def on_wake(self, subscription: Subscription[bool], is_news: bool) -> None:
        """Log what has changed; without news, log that the task still waits."""
        self._outage = subscription.outage
        if subscription.has_ended:
            return
        ids = sorted(self._active)
        busy = f"is busy with {', '.join(ids[:_NAMED])}" if ids else f"is not idle yet: {self._reason}"
        self._logger.report(f"Agent {self.agent_id} {busy}; waiting.", subscription.outage, is_news=is_news)

    def check(self, is_idle: bool) -> None:
        """Raise unless the result is that the agent is idle.

        Raises:
            AgentBusyError: it is not.
        """
        if not is_idle:
            reason = self._outage.error if self._outage is not None else self._reason
            raise AgentBusyError(
                f"Agent {self.agent_id} was not seen idle before the deadline ({reason}). Nothing was started. Raise "
                "timeout, or clear the task once the agent is idle."
            )


class RunSearch(AskingSubscriber["ExecutionEvent | Missing | None"]):
    """Waits until a run that another party starts is known: the result is None at the deadline.

    Args:
        selector: which run.
        policy: how the task waits.
        say: logs outages and signs of life.
    """

    def __init__(self, selector: RunSelector, policy: WaitPolicy, say: Say) -> None:
        super().__init__(selector.agent_id)
        self._selector, self._search, self._say = selector, selector.search(policy), say
        self._exclusive_warning = ExclusiveWarning(self._search, selector.agent_id)
        self._logger = ProgressLogger(say, f"agent {selector.agent_id}")

    @property
    def key(self) -> object:
        """The selector."""
        return self._selector

    def request_flow(self) -> Flow[StartedRuns]:
        """The runs among which this one is."""
        return self._selector.list_runs()

    def apply_response(self, response: StartedRuns, began_at: datetime) -> ExecutionEvent | Missing | None:  # noqa: ARG002 - the response has its own clocks
        """The run, or `Missing` if there is none and none can appear any more."""
        return self._search.apply_listing(response)

    def expire(self) -> None:
        """No run is known at the deadline."""

    def on_wake(self, subscription: Subscription[ExecutionEvent | Missing | None], is_news: bool) -> None:
        """Log outages; without news, log that the task still waits."""
        self._exclusive_warning.log_once(self._say)
        if not subscription.has_ended:
            self._logger.report(f"Not found yet: {self._selector.words}.", subscription.outage, is_news=is_news)
