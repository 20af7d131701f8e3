"""What is logged while a task waits: the same on a worker and in a triggerer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from airflow_provider_agents.runs.outcome import Outcome, format_ids
from airflow_provider_agents.runs.patience import REFUSED_SECONDS, is_refusal
from airflow_provider_agents.runs.status import describe_state, is_terminal

if TYPE_CHECKING:
    from airflow_provider_agents.api.errors import AgentsError
    from airflow_provider_agents.api.models import ExecutionEvent
    from airflow_provider_agents.polling.subscriptions import Outage, Subscription
    from airflow_provider_agents.runs.appearance import Appearance
    from airflow_provider_agents.runs.first_run import FirstRunSearch
    from airflow_provider_agents.runs.outcome import Verdict
    from airflow_provider_agents.runs.tracker import RunTracker

#: A task without news logs this often, in seconds, that it still waits. Else the log of a long run would read like
#: the log of a dead task.
SIGN_OF_LIFE_SECONDS = 300.0
#: Seconds by which a poll that is under way may outlast a deadline. Airflow's own time limit comes 180 seconds after
#: the deadline (`tasks.DEFER_MARGIN_SECONDS`), and must find the wait ended.
LAST_POLL_SECONDS = 60.0
#: Events that a log line names one by one: Airflow's page cuts long lines.
_NAMED = 5

#: (level, message), such as `logger.log`.
Say = Callable[[int, str], object]


class ProgressLogger:
    """Logs what is new about a wait: changes of state, outages, and now and then that it is still running."""

    __slots__ = ("_outage", "_say", "_state", "_subject")

    def __init__(self, say: Say, subject: str = "the run") -> None:
        self._say, self._subject = say, subject
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
                self._say(logging.INFO, f"The API answers again after {before.polls} failed polls.")
        elif before is None or is_refusal(outage.error) != is_refusal(before.error):
            self._say(logging.WARNING, in_words(outage.error))
        elif not is_news:
            since = f"{outage.since:%Y-%m-%d %H:%M:%S} UTC"
            self._say(logging.WARNING, f"No poll of {self._subject} has succeeded since {since}: {outage.error}")


class RunProgress:
    """What is reported of one run while a task waits for its end.

    Args:
        tracker: the run.
        say: logs changes of state and signs of life.
        on_known: called at most once, when exactly one event is known to be the run's and the run is active.
        on_appeared: called at most once, when it is known how soon the run's event appeared.
    """

    __slots__ = (
        "_exclusive_warning",
        "_has_appeared",
        "_is_known",
        "_late_warning",
        "_logger",
        "_on_appeared",
        "_on_known",
        "_outage",
        "_say",
        "_tracker",
    )

    def __init__(
        self,
        tracker: RunTracker,
        say: Say,
        on_known: Callable[[ExecutionEvent], None],
        on_appeared: Callable[[RunTracker, Appearance], None],
    ) -> None:
        self._tracker, self._say, self._on_known, self._on_appeared = tracker, say, on_known, on_appeared
        self._logger, self._late_warning = ProgressLogger(say), LateWarning(tracker)
        self._exclusive_warning = ExclusiveWarning(tracker, tracker.agent_id)
        self._outage: Outage | None = None
        self._is_known = False
        self._has_appeared = False
        self._report_known()

    def on_wake(self, subscription: Subscription[Verdict], is_news: bool) -> None:
        """Report what has changed; without news, log that the task still waits."""
        self._outage = subscription.outage
        appearance = self._tracker.appearance
        if appearance is not None and not self._has_appeared:
            self._has_appeared = True
            self._on_appeared(self._tracker, appearance)
        self._late_warning.log_once(self._say)
        self._exclusive_warning.log_once(self._say)
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


class LateWarning:
    """Logs once that the event of a run appeared late and was taken all the same."""

    __slots__ = ("_is_due", "_tracker")

    def __init__(self, tracker: RunTracker) -> None:
        self._tracker, self._is_due = tracker, tracker.policy.on_ambiguous != "fail"

    def log_once(self, say: Say) -> None:
        """Log the warning, if the event is late and no warning was logged."""
        if not (self._is_due and self._tracker.is_late):
            return
        self._is_due = False
        run = self._tracker.submission
        say(
            logging.WARNING,
            f"No event of this run appeared within {self._tracker.policy.settle:g} seconds. What appeared later is "
            "taken as the run, but may be another run's. Raise settle if the platform is slow, or refuse a late run "
            f"with on_ambiguous='fail'. agent={run.agent_id} request_id={run.request_id} "
            f"event={','.join(event.id for event in self._tracker.events[:_NAMED])}",
        )


class ExclusiveWarning:
    """Logs once that something else has started the agent of an exclusive task.

    Args:
        search: what the task waits for.
        agent_id: the agent.
    """

    __slots__ = ("_agent_id", "_is_due", "_search")

    def __init__(self, search: RunTracker | FirstRunSearch, agent_id: str) -> None:
        self._search, self._agent_id, self._is_due = search, agent_id, True

    def log_once(self, say: Say) -> None:
        """Log the warning, if there is a reason and no warning was logged."""
        if not (self._is_due and self._search.broke_exclusive):
            return
        self._is_due = False
        say(
            logging.WARNING,
            "This task is exclusive, but something else has started the agent too. The task now waits until "
            "`settle` has passed, as without `exclusive`. Leave `exclusive` out for this agent. "
            f"agent={self._agent_id}",
        )


def slow_appearance(tracker: RunTracker, appearance: Appearance) -> str:
    """The warning for an event that appeared close to the end of `settle`, or after it."""
    return (
        f"The event of a run appeared {appearance.seconds:.0f} seconds after its start was accepted, and settle is "
        f"{tracker.policy.settle:g} seconds. If events appear later than settle, tasks may take another run for their "
        f"own. Raise settle in the connection. {format_ids(tracker.submission, tracker.events[:_NAMED])}"
    )


def in_words(error: AgentsError) -> str:
    """What to log of the first failure of several."""
    if is_refusal(error):
        return f"{error} Asking again: the wait ends only if the API says nothing else for {REFUSED_SECONDS:g} seconds."
    return f"{error} The run is still running; polling again until the API answers."


def state_of(tracker: RunTracker) -> str:
    """What is known of a run, in sentences; the ids come last, since Airflow's page cuts long lines."""
    events = tracker.events
    states = ", ".join(map(describe_state, events[:_NAMED]))
    if not events:
        words = "No event of the run has appeared yet."
    elif len(events) > 1:
        words = f"{len(events)} runs could be this task's: {states}{', ...' if len(events) > _NAMED else ''}."
    elif tracker.is_named:
        words = f"The run is {states}."
    else:
        words = f"The run that fits is {states}."
    if events and tracker.criteria is not None and all(map(is_terminal, events)):
        words += f" The task waits for {_until_settled(tracker)}: until then another run could appear that fits."
    return f"{words} {format_ids(tracker.submission, events[:_NAMED])}"


def _until_settled(tracker: RunTracker) -> str:
    criteria = tracker.criteria
    if criteria is None or criteria.decidable_at is None:
        return f"`settle` ({tracker.policy.settle:g} s) to pass"
    return f"`settle` ({tracker.policy.settle:g} s) to pass, until {criteria.decidable_at:%H:%M:%S} UTC at the latest"
