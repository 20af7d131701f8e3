"""What is logged while a task waits for a run: the same on a worker and in a triggerer."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from airflow_provider_agents.runs.outcome import Outcome
from airflow_provider_agents.runs.patience import is_refusal
from airflow_provider_agents.runs.waiting import LateWarning, in_words, state_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_agents.api.models import ExecutionEvent
    from airflow_provider_agents.polling.subscriptions import Outage, Subscription
    from airflow_provider_agents.runs.outcome import Verdict
    from airflow_provider_agents.runs.tracker import RunTracker
    from airflow_provider_agents.runs.waiting import Say


class ProgressLogger:
    """Logs what is new about a wait: changes of state, outages, and now and then that it is still running."""

    __slots__ = ("_outage", "_say", "_state")

    def __init__(self, say: Say) -> None:
        self._say = say
        self._state = ""
        self._outage: Outage | None = None

    def report(self, state: str, outage: Outage | None, *, is_news: bool) -> None:
        """Log what has changed since the last report; without news, log that the task still waits."""
        self._report_outage(outage, is_news=is_news)
        if state != self._state:
            self._state = state
            self._say(logging.INFO, state)
        elif outage is None and not is_news:
            self._say(logging.INFO, f"Still waiting. {state}")

    def _report_outage(self, outage: Outage | None, *, is_news: bool) -> None:
        before, self._outage = self._outage, outage
        if outage is None:
            if before is not None:
                self._say(logging.INFO, f"The API answers again after {before.polls} failed looks.")
        elif before is None or is_refusal(outage.error) != is_refusal(before.error):
            self._say(logging.WARNING, in_words(outage.error))
        elif not is_news:
            since = f"{outage.since:%Y-%m-%d %H:%M:%S} UTC"
            self._say(logging.WARNING, f"Still no look at the run since {since}: {outage.error}")


class RunProgress:
    """What is reported of one run while a task waits for its end.

    Args:
        tracker: the run.
        say: logs changes of state and signs of life.
        on_known: called at most once, when exactly one event is known to be the run's and the run is active.
    """

    def __init__(self, tracker: RunTracker, say: Say, on_known: Callable[[ExecutionEvent], None]) -> None:
        self._tracker, self._say, self._on_known = tracker, say, on_known
        self._logger, self._late_warning = ProgressLogger(say), LateWarning(tracker)
        self._outage: Outage | None = None
        self._is_known = False
        self._report_known()

    def on_wake(self, subscription: Subscription[Verdict], is_news: bool) -> None:
        """Report what has changed; without news, log that the task still waits."""
        self._outage = subscription.outage
        self._late_warning.log_once(self._say)
        self._logger.report(state_of(self._tracker), subscription.outage, is_news=is_news)
        if not subscription.has_ended:
            self._report_known()

    def _report_known(self) -> None:
        if self._tracker.is_known and not self._is_known:
            self._is_known = True
            self._on_known(self._tracker.events[0])

    def complete(self, verdict: Verdict) -> Verdict:
        """The verdict, with the failure of the last poll if there was one."""
        if verdict.outcome == Outcome.TIMED_OUT and self._outage is not None:
            return replace(verdict, failure=str(self._outage.error))
        return verdict
