"""How to wait: the same dialogue for a worker that sleeps and for a trigger that awaits.

A failure that may pass never ends a wait: the run goes on, whatever we can see of it. It is waited out with growing
pauses until the deadline. A refusal ends the wait once `patience` says so.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_agents.api.errors import AgentsError, NoAnswerError, PermanentError, TemporaryError
from airflow_provider_agents.api.flow import Flow, Sleep, Step, through
from airflow_provider_agents.runs.outcome import format_ids, is_certain
from airflow_provider_agents.runs.patience import REFUSED_SECONDS, Patience, is_refusal
from airflow_provider_agents.runs.status import active_runs, describe_state, is_terminal

if TYPE_CHECKING:
    from airflow_provider_agents.api.models import ExecutionEvent
    from airflow_provider_agents.runs.submission import Clock
    from airflow_provider_agents.runs.tracker import RunTracker

#: A wait that has nothing to report says so this often, so that a log of a long run is not taken for a dead task.
SIGN_OF_LIFE_SECONDS = 300.0
#: Seconds by which a look that is under way may outlast a deadline. Airflow's own time limit comes 180 seconds after
#: the deadline (`tasks.DEFER_MARGIN_SECONDS`), and must find the wait ended.
LAST_LOOK_SECONDS = 60.0
#: Pauses after failures grow to this many poll intervals, and to no more than two minutes.
_LONGEST_BACKOFF_SECONDS = 120.0
#: Events that a log line names one by one: Airflow's page cuts long lines.
_NAMED = 5

R = TypeVar("R")

#: (level, message), such as `logger.log`.
Say = Callable[[int, str], object]


class Pace:
    """When to look next: the interval, or longer after failures; never beyond the deadline.

    Args:
        poll_interval: seconds between two looks.
        deadline_at: when to give up, on our clock.
        now: our clock.
        say: where failures go.
        patience: which failure ends the wait.
    """

    def __init__(
        self, poll_interval: float, deadline_at: datetime, now: Clock, say: Say, patience: Patience | None = None
    ) -> None:
        self._interval, self.deadline_at, self.now, self._say = poll_interval, deadline_at, now, say
        self._patience = patience if patience is not None else Patience()
        self._failures = 0
        self._failing_since: datetime | None = None
        self._spoke_at = now()
        self.last_error: AgentsError | None = None

    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return self.now() >= self.deadline_at

    def failed(self, error: AgentsError) -> Sleep:
        """Say so, and how long to wait.

        Raises:
            AgentsError: the failure ends the wait.
        """
        final = self._patience.failed(error, self.now())
        if final is not None:
            raise final from (error if final is not error else None)
        before, self.last_error = self.last_error, error
        self._failures += 1
        if self._failing_since is None or (is_refusal(error) and not (before and is_refusal(before))):
            self._failing_since = self._failing_since or self.now()
            self.speak(logging.WARNING, in_words(error))
        else:
            self.sign_of_life(
                logging.WARNING, f"Still no look at the run since {self._failing_since:%Y-%m-%d %H:%M:%S} UTC: {error}"
            )
        longest = max(self._interval, _LONGEST_BACKOFF_SECONDS)
        backoff = min(self._interval * 2.0 ** min(self._failures - 1, 16), longest)
        backoff *= random.uniform(0.75, 1.25)  # noqa: S311 - jitter is no secret
        asked_for = error.retry_after_seconds if isinstance(error, TemporaryError) else None
        return self._until_deadline(max(backoff, asked_for or 0.0))

    def looked(self) -> Sleep:
        """A look that was answered; how long to wait for the next."""
        if self._failing_since is not None:
            self.speak(logging.INFO, f"The API answers again after {self._failures} failed looks.")
        self._failures, self._failing_since, self.last_error = 0, None, None
        self._patience.succeeded()
        return self._until_deadline(self._interval)

    def speak(self, level: int, message: str) -> None:
        """Say something new."""
        self._spoke_at = self.now()
        self._say(level, message)

    def sign_of_life(self, level: int, message: str) -> None:
        """Say it if nothing was said for long."""
        if self.now() - self._spoke_at >= timedelta(seconds=SIGN_OF_LIFE_SECONDS):
            self.speak(level, message)

    def _until_deadline(self, seconds: float) -> Sleep:
        # The last pause ends at the deadline, for one last look.
        return Sleep(min(seconds, max(0.0, (self.deadline_at - self.now()).total_seconds())))


def bounded(listing: Flow[R], deadline_at: datetime, *, now: Clock) -> Flow[R]:
    """The same look, given up `LAST_LOOK_SECONDS` after a deadline: a listing can have many slow pages.

    Raises:
        NoAnswerError: it was given up.
    """
    ends_at = deadline_at + timedelta(seconds=LAST_LOOK_SECONDS)

    def perform(step: Step) -> Flow[Any]:
        if now() >= ends_at:
            raise NoAnswerError("The API has not answered in full before the deadline.")
        return (yield step)

    return through(listing, perform)


def in_words(error: AgentsError) -> str:
    """What to log of the first failure of several."""
    if is_refusal(error):
        return f"{error} Asking again: the wait ends only if the API says nothing else for {REFUSED_SECONDS:g} seconds."
    return f"{error} The run goes on; looking again until it can be seen."


class LateWarning:
    """Logs once that the event of a run appeared late and was taken all the same."""

    def __init__(self, wait: RunTracker) -> None:
        self._wait, self._is_due = wait, wait.policy.on_ambiguous != "fail"

    def log_once(self, say: Say) -> None:
        """Log the warning, if the event is late and no warning was logged."""
        if not (self._is_due and self._wait.is_late):
            return
        self._is_due = False
        run = self._wait.submission
        say(
            logging.WARNING,
            f"No event of this run appeared within {self._wait.policy.settle:g} seconds. What appeared later is taken "
            "as the run, but may be another run's. Raise settle if the platform is slow, or refuse a late run with "
            f"on_ambiguous='fail'. agent={run.agent_id} request_id={run.request_id} "
            f"event={','.join(event.id for event in self._wait.events[:_NAMED])}",
        )


def state_of(wait: RunTracker) -> str:
    """What is known of a run, in sentences; the ids come last, since Airflow's page cuts long lines."""
    events = wait.events
    states = ", ".join(map(describe_state, events[:_NAMED]))
    if not events:
        words = "No event of the run has appeared yet."
    elif len(events) > 1:
        words = f"{len(events)} runs could be this task's: {states}{', ...' if len(events) > _NAMED else ''}."
    elif is_certain(wait.submission, events):
        words = f"The run is {states}."
    else:
        words = f"The run that fits is {states}."
    if events and wait.criteria is not None and all(map(is_terminal, events)):
        words += f" The task waits for {_until_settled(wait)}: until then another run could appear that fits."
    return f"{words} {format_ids(wait.submission, events[:_NAMED])}"


def _until_settled(wait: RunTracker) -> str:
    criteria = wait.criteria
    if criteria is None or criteria.decidable_at is None:
        return f"`settle` ({wait.policy.settle:g} s) to pass"
    return f"`settle` ({wait.policy.settle:g} s) to pass, until {criteria.decidable_at:%H:%M:%S} UTC at the latest"


class StillBusyError(AgentsError):
    """The agent did not become idle before the deadline. Nothing was started."""


@dataclass(frozen=True, slots=True)
class BusyPause(Sleep):
    """A pause that may end as soon as one of these runs is not active any more."""

    active: tuple[ExecutionEvent, ...] = ()


def wait_until_idle(
    agent_id: str,
    pace: Pace,
    *,
    may_start: Callable[[Sequence[ExecutionEvent]], str | None] = lambda _: None,
) -> Flow[None]:
    """Look until no listing shows an active run of the agent.

    Args:
        agent_id: the agent.
        pace: when to look.
        may_start: called with the active runs after each look; why to wait although there is none, or None.

    Raises:
        StillBusyError: the agent was not idle at a last look at the deadline.
        PermanentError: the API has refused to answer for `patience.REFUSED_SECONDS`.
    """
    told: frozenset[str] | None = None
    reason: object = None
    while True:
        over = pace.is_over()
        try:
            active = yield from bounded(active_runs(agent_id), pace.deadline_at, now=pace.now)
        except (TemporaryError, PermanentError) as error:
            reason, pause = error, pace.failed(error)
        else:
            pause = pace.looked()
            reason = may_start(active)
            if not active and reason is None:
                return
            ids = frozenset(event.id for event in active)
            if active:
                reason = f"event {active[0].id} is {describe_state(active[0])}"
                pause = BusyPause(pause.seconds, tuple(active))
            if ids and ids != told:
                pace.speak(logging.INFO, f"Agent {agent_id} is busy with {', '.join(sorted(ids)[:5])}; waiting.")
            else:
                pace.sign_of_life(logging.INFO, f"Still waiting for agent {agent_id} to become idle.")
            told = ids
        if over:
            raise StillBusyError(
                f"Agent {agent_id} was not seen idle before the deadline ({reason}). Nothing was started. Raise "
                "timeout, or clear the task once the agent is idle."
            )
        yield pause
