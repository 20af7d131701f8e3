"""What the candidates mean for the task, and its deadlines. The one place that compares statuses.

`Wait` is the whole life of a waiting run as a pure object: what to ask next, what an answer means. The loop on a
worker and the trigger both drive it, so that they cannot drift apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from airflow_provider_agents.api.body import to_storable
from airflow_provider_agents.api.endpoints import list_agent_events
from airflow_provider_agents.api.errors import (
    AgentRunError,
    AgentRunFailedError,
    AgentRunNotFoundError,
    AgentRunTimeoutError,
    AmbiguousAgentRunError,
    one_line,
)
from airflow_provider_agents.api.flow import Flow, first_rows
from airflow_provider_agents.api.models import ExecutionEvent, Status, UnreadableEvent
from airflow_provider_agents.runs import matching
from airflow_provider_agents.runs.submission import lost_within

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from airflow_provider_agents.runs.submission import Submission

ON_AMBIGUOUS = ("all", "fail")


def is_terminal(event: ExecutionEvent) -> bool:
    """Whether a run is over.

    PENDING and RUNNING are not, whatever else the record says. A status that the API's page does not know is over
    once `completedAt` is set.
    """
    if event.status in (Status.PENDING, Status.RUNNING):
        return False
    return event.status in (Status.COMPLETED, Status.FAILED) or event.completedAt is not None


def is_success(event: ExecutionEvent) -> bool:
    """Whether a run did what it was asked to."""
    return event.status == Status.COMPLETED


def is_active(event: ExecutionEvent) -> bool:
    """Whether a run counts as one that its agent is busy with.

    An unreadable row counts, unless it has a readable `completedAt`.
    """
    return not is_terminal(event) and (event.unreadable is None or event.completedAt is None)


def state_of_event(event: ExecutionEvent) -> str:
    """The status of an event in words, or why its row cannot be read."""
    return one_line(event.status, 40) if event.unreadable is None else f"unreadable: {event.unreadable}"


def active_runs(agent_id: str) -> Flow[list[ExecutionEvent]]:
    """The runs that an agent is busy with, newest first as far as the API orders them; unreadable rows last."""
    seen: dict[str, ExecutionEvent] = {}
    # The active ones last: where a run shows up twice, one that has ended since the first look stays ended.
    for status in (Status.RUNNING, Status.PENDING, None):
        for event in (yield from first_rows(list_agent_events(agent_id, status=status), 200)):
            if event.id not in seen or is_terminal(event):
                seen[event.id] = event
    return sorted(filter(is_active, seen.values()), key=lambda event: event.unreadable is not None)


class Outcome(StrEnum):
    """How a wait ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    AMBIGUOUS = "ambiguous"
    NOT_FOUND = "not_found"
    TIMED_OUT = "timed_out"


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a wait ended, and the events that say so, oldest first.

    Attributes:
        late: no event had appeared within `settle`, so those that appeared later may be other runs'.
        failure: why the last poll before the deadline showed nothing, if it failed.
    """

    outcome: Outcome
    events: tuple[ExecutionEvent, ...] = ()
    late: bool = False
    failure: str | None = None

    @property
    def event(self) -> ExecutionEvent | None:
        """The run's event: the only one, or the oldest of several that ended alike."""
        return self.events[0] if self.events else None

    @property
    def known_event(self) -> ExecutionEvent | None:
        """The run's event, where exactly one event can be the run's and appeared in time."""
        return self.events[0] if len(self.events) == 1 and not self.late else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How a task wants to wait.

    Attributes:
        settle: seconds after acceptance within which the event appears.
        appear_within: seconds after acceptance after which a run without an event counts as lost.
        on_ambiguous: `all` (several candidates that all end alike are a verdict) or `fail` (nothing that may be
            another's is one: neither one of several, nor a run that appeared late).
    """

    settle: float = 30.0
    appear_within: float = 300.0
    on_ambiguous: str = "all"


def fresher(old: ExecutionEvent | None, new: ExecutionEvent) -> ExecutionEvent:
    """The later state of one event. Replicas lag, so an older answer may follow a newer one."""
    if old is None:
        return new
    if is_terminal(old) != is_terminal(new):
        return old if is_terminal(old) else new
    if old.updatedAt is not None and new.updatedAt is not None and new.updatedAt < old.updatedAt:
        return old
    return new.after(old) if isinstance(new, UnreadableEvent) else new


class Wait:
    """One run that is waited for.

    Args:
        submission: what ties the task to its run.
        rules: how the task wants to wait.
        began_at: when this process began to wait, on its own clock; by default, when the first look was begun. What
            the clock of another machine said of the acceptance is never compared with it.

    Attributes:
        is_late: no event had appeared within `settle`, so what appeared later may be another run's.
    """

    __slots__ = (
        "_began_at",
        "_bounds",
        "_chosen",
        "_completed",
        "_failed",
        "_going_on",
        "_seek",
        "_seen",
        "_was_empty",
        "is_late",
        "rules",
        "submission",
    )

    def __init__(self, submission: Submission, rules: Rules, began_at: datetime | None = None) -> None:
        if submission.unanswered:
            # Its event was looked for that long, so every event of that time can be the run.
            within = lost_within(rules.settle)
            rules = replace(rules, settle=within, appear_within=max(rules.appear_within, within))
        self.submission, self.rules = submission, rules
        self._began_at = began_at
        self._bounds = submission.bounds
        self._seek: matching.Seek | None = self._bounds.seek(rules.settle, began_at)
        self._seen: dict[str, ExecutionEvent] = {}
        self._chosen: tuple[str, ...] = ()
        # A tuple, which the one event of most waits shares with `_chosen`: thousands are waited for.
        self._going_on: tuple[str, ...] = ()
        self._completed = self._failed = self._was_empty = self.is_late = False

    @property
    def agent_id(self) -> str:
        """Whose run it is."""
        return self.submission.agent_id

    @property
    def seek(self) -> matching.Seek | None:
        """What is sought, until the run, or the set that it is one of, is known."""
        return self._seek

    @property
    def going_on(self) -> tuple[ExecutionEvent, ...]:
        """Those of the chosen events that are not over: what to follow once nothing is sought any more."""
        return tuple(self._seen[event_id] for event_id in self._chosen if event_id in self._going_on)

    @property
    def events(self) -> tuple[ExecutionEvent, ...]:
        """The events that are the run, or could be, in their latest state."""
        if self._chosen:
            return tuple(self._seen[event_id] for event_id in self._chosen)
        return matching.possible(
            self._bounds,
            self._seen.values(),
            settle=self.rules.settle,
            appear_within=self.rules.appear_within,
            was_empty=self._was_empty,
        ).events

    @property
    def name(self) -> str:
        """The run in words, with its event as far as that is known."""
        if self.submission.event_id is not None or not self.events:
            return self.submission.name
        ids = ", ".join(event.id for event in self.events[:5])
        return f"{self.submission.name}, {'event' if self.is_known else 'probably event'} {ids}"

    @property
    def is_known(self) -> bool:
        """Whether exactly one event can be the run's, appeared in time, and the POST was seen to be answered."""
        return len(self._chosen) == 1 and not self.is_late and not self.submission.unanswered

    def look(self) -> Flow[matching.Look]:
        """What to ask now."""
        return matching.look(self.submission.agent_id, self._bounds, self._chosen)

    def take(self, look: matching.Look, began_at: datetime) -> Verdict | None:
        """Take in what a look showed; a verdict ends the wait.

        Args:
            look: the answer to `look()`.
            began_at: our clock when that look was begun.
        """
        if not self._chosen:
            # A row that could not be read for a moment must not hold the wait for longer than that.
            self._seen = {event_id: event for event_id, event in self._seen.items() if event.unreadable is None}
        for event in look.events:
            if not self._chosen or event.id in self._going_on:
                self._seen[event.id] = fresher(self._seen.get(event.id), event)
        if self._began_at is None:
            self._began_at = began_at
        if not self._chosen:
            found = matching.match(
                self._bounds,
                self._seen.values(),
                self._bounds.passed(began_at - self._began_at, look.server_time),
                settle=self.rules.settle,
                appear_within=self.rules.appear_within,
                was_empty=self._was_empty,
            )
            if isinstance(found, matching.Missing):
                return Verdict(Outcome.NOT_FOUND)
            if isinstance(found, matching.NotYet):
                self._was_empty |= found.settled
                return None
            self._chosen, self.is_late = tuple(event.id for event in found.events), found.late
            # The rest is of no more use, and a wait may last for a day.
            self._seek = None
            self._seen = {event_id: self._seen[event_id] for event_id in self._chosen}
            self._going_on = self._chosen
        for event_id in self._going_on:
            self._note(self._seen[event_id])
        return self._judge()

    def update(self, event: ExecutionEvent) -> Verdict | None:
        """Take in the latest state of one event, as a look that shows only what has changed; a verdict ends the wait.

        Its cost does not grow with the number of candidates. An event that is not followed changes nothing.
        """
        if event.id not in self._going_on:
            return None
        self._seen[event.id] = latest = fresher(self._seen[event.id], event)
        self._note(latest)
        return self._judge()

    def _note(self, event: ExecutionEvent) -> None:
        if is_terminal(event):
            self._going_on = tuple(event_id for event_id in self._going_on if event_id != event.id)
            if is_success(event):
                self._completed = True
            else:
                self._failed = True

    def _judge(self) -> Verdict | None:
        may_be_anothers = len(self._chosen) > 1 or self.submission.unanswered or self.is_late
        if self.rules.on_ambiguous == "fail" and may_be_anothers:
            return self._verdict(Outcome.AMBIGUOUS)
        if self._completed and self._failed:
            return self._verdict(Outcome.AMBIGUOUS)
        if self._going_on:
            return None
        return self._verdict(Outcome.COMPLETED if self._completed else Outcome.FAILED)

    def expire(self) -> Verdict:
        """The verdict when the deadline has passed and the last look brought none."""
        return self._verdict(Outcome.TIMED_OUT)

    def _verdict(self, outcome: Outcome) -> Verdict:
        return Verdict(outcome, self.events, self.is_late)


def own_event(verdict: Verdict, submission: Submission) -> ExecutionEvent | None:
    """The event of a finished run, or None if it may be another run's.

    Only what belongs to this event alone may be reported as the task's: its id, its link, its usage.
    """
    is_over = verdict.outcome in {Outcome.COMPLETED, Outcome.FAILED}
    return verdict.known_event if is_over and not submission.unanswered else None


def error_of(verdict: Verdict, submission: Submission, *, what_now: str) -> AgentRunError | None:
    """The error that a verdict is, or None for a run that COMPLETED.

    Args:
        verdict: how the wait ended.
        submission: whose run it was.
        what_now: a sentence that says what a retry will do.
    """
    # What happened comes first and the ids last: Airflow's page cuts long lines.
    events = verdict.events
    ids = named(submission, events)
    about: dict[str, Any] = {
        "agent_id": submission.agent_id,
        "request_id": submission.request_id,
        "event_ids": [event.id for event in events],
    }
    match verdict.outcome:
        case Outcome.COMPLETED:
            return None
        case Outcome.FAILED:
            return AgentRunFailedError(_joined(_how_it_failed(verdict, submission), what_now, ids), **about)
        case Outcome.AMBIGUOUS if len(events) == 1 and submission.unanswered:
            return AmbiguousAgentRunError(
                "It is unknown whether this task's run was started: the answer to its POST was lost, and the run that "
                f"has appeared since may be another party's ({_states(events)}). Look at this event to see whose it "
                "is, and clear the task if a new run is wanted. With on_ambiguous='all' the task would take this run. "
                f"{ids}",
                **about,
            )
        case Outcome.AMBIGUOUS if verdict.late:
            return AmbiguousAgentRunError(
                "The run was accepted, but no event of it appeared within `settle`. What appeared later may be another "
                f"run's ({_states(events)}). Look at the agent's runs, and clear the task if a new run is wanted; if "
                f"the platform is slow, raise settle, or take a late run with on_ambiguous='all'. {ids}",
                **about,
            )
        case Outcome.AMBIGUOUS:
            return AmbiguousAgentRunError(
                "This task's run cannot be told apart from other runs of the agent that started at about the same time "
                f"({_states(events)}). Look at these events to see how the run ended. To avoid this, let one run of "
                f"the agent start at a time: use a pool with one slot, or if_running='wait'. {ids}",
                **about,
            )
        case Outcome.NOT_FOUND:
            return AgentRunNotFoundError(
                _joined(
                    "The run was accepted, but no event of it has appeared. It may have started all the same: look at "
                    "the agent's runs before you start another.",
                    what_now,
                    ids,
                ),
                **about,
            )
        case Outcome.TIMED_OUT:
            failure = f"The last poll failed: {one_line(verdict.failure)}" if verdict.failure else ""
            return AgentRunTimeoutError(_joined(_why_late(verdict), failure, what_now, ids), **about)


def named(submission: Submission, events: Sequence[ExecutionEvent] = ()) -> str:
    """The ids of a run, for the end of a message: those of its submission, and of its event or of all candidates."""
    pairs = {
        "agent": submission.agent_id,
        "request_id": submission.request_id,
        "event": ",".join(event.id for event in events) or submission.event_id,
    }
    return " ".join(f"{key}={value}" for key, value in pairs.items() if value)


def is_certain(submission: Submission, events: Sequence[ExecutionEvent]) -> bool:
    """Whether an id says that this event is the run's. All else is inferred."""
    return len(events) == 1 and matching.is_ours(submission.bounds, events[0])


def how_it_completed(verdict: Verdict, submission: Submission) -> str:
    """What to log of a run that COMPLETED. What is inferred is not said to be known."""
    events = verdict.events
    if verdict.late or submission.unanswered:
        words = "A run COMPLETED that is taken as this task's. It may be another run."
    elif len(events) > 1:
        words = (
            f"All {len(events)} runs that could be this task's COMPLETED, so this task's run did. The API does not "
            "tell which one it is: the returned event may be another run's."
        )
    elif is_certain(submission, events):
        words = "The run COMPLETED."
    else:
        words = "A run COMPLETED, the only one that fits this task's request."
    return f"{words} {named(submission, events)}"


def _how_it_failed(verdict: Verdict, submission: Submission) -> str:
    if len(verdict.events) > 1:
        return f"All {len(verdict.events)} runs that could be this task's have failed ({_states(verdict.events)})."
    (event,) = verdict.events
    how = "FAILED" if event.status == Status.FAILED else f"ended as {one_line(event.status, 40)}"
    why = f": {one_line(str(event.error)).rstrip('.')}" if event.error else ""
    if is_certain(submission, verdict.events):
        inferred = ""
    elif verdict.late:
        inferred = " It appeared late, and may be another run."
    else:
        inferred = " It is the only run that fits this task's request."
    return f"The run {how}{why}.{inferred}"


def _why_late(verdict: Verdict) -> str:
    if not verdict.events:
        return (
            "The run was not finished at the deadline: no event of it had appeared. It cannot be cancelled and may "
            "still be running."
        )
    states = _states(verdict.events)
    if all(is_terminal(event) for event in verdict.events):
        return (
            f"The deadline passed before it was certain which run is this task's ({states}): until `settle` has "
            "passed, another run could still appear."
        )
    is_running = "may still be running" if any(event.unreadable for event in verdict.events) else "is still running"
    return f"The run was not finished at the deadline ({states}). It cannot be cancelled and {is_running}."


def _states(events: Sequence[ExecutionEvent]) -> str:
    return "; ".join(
        state_of_event(event) + (f": {one_line(str(event.error))}" if event.error else "") for event in events
    )


def _joined(*sentences: str) -> str:
    return " ".join(filter(None, sentences))


def duration_of(event: ExecutionEvent) -> float | None:
    """Seconds from `startedAt` to `completedAt`, or None if the API does not say both."""
    if event.startedAt is None or event.completedAt is None:
        return None
    return (event.completedAt - event.startedAt).total_seconds()


def usage_of(event: ExecutionEvent, *, try_number: int) -> dict[str, Any]:
    """What a run used, for budgets and dashboards: JSON types, None where the API does not say.

    `duration_seconds` is `duration_of`.
    """
    return {
        "finalModel": to_storable(event.finalModel),
        "browserStepCount": event.browserStepCount,
        "browserSessionSeconds": event.browserSessionSeconds,
        "duration_seconds": duration_of(event),
        "try_number": try_number,
    }
