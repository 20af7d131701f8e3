"""How a wait ended, and the words and the error for each outcome."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from airflow_provider_agents.api.errors import (
    AgentRunError,
    AgentRunFailedError,
    AgentRunNotFoundError,
    AgentRunTimeoutError,
    AmbiguousAgentRunError,
    one_line,
)
from airflow_provider_agents.api.models import ExecutionEvent, Status
from airflow_provider_agents.runs import matching
from airflow_provider_agents.runs.status import describe_state, is_success, is_terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow_provider_agents.runs.submission import Submission


#: What to log of a run that was shared out.
_SHARED = (
    "Several tasks started the agent at the same time, and the platform does not tell their runs apart. Each task gets "
    "one of these runs."
)


class Outcome(StrEnum):
    """How a wait ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    AMBIGUOUS = "ambiguous"
    NOT_FOUND = "not_found"
    TIMED_OUT = "timed_out"


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a wait ended, and the events that show it: first the one that is handed on, then the others, oldest first.

    Attributes:
        late: no event had appeared within `settle`, so those that appeared later may be other runs'.
        failure: why the last poll before the deadline showed nothing, if it failed.
        is_shared: tasks of ours started as many runs at the same time as there are events, and nothing tells
            their runs apart. Each task was given one of the events.
    """

    outcome: Outcome
    events: tuple[ExecutionEvent, ...] = ()
    late: bool = False
    failure: str | None = None
    is_shared: bool = False

    @property
    def is_end(self) -> bool:
        """Whether the run has ended, and it is known how."""
        return self.outcome in {Outcome.COMPLETED, Outcome.FAILED}

    @property
    def event(self) -> ExecutionEvent | None:
        """The run's event: the only one, or the one of several that is handed on."""
        return self.events[0] if self.events else None

    @property
    def known_event(self) -> ExecutionEvent | None:
        """The run's event, where exactly one event can be the run's and appeared in time."""
        return self.events[0] if len(self.events) == 1 and not self.late else None


def own_event(verdict: Verdict, submission: Submission) -> ExecutionEvent | None:
    """The event of a finished run, or None if it may be another run's.

    Only what belongs to this event alone may be reported as the task's: its id, its link, its usage.
    """
    return verdict.known_event if verdict.is_end and not submission.in_doubt else None


def candidate_event_ids(verdict: Verdict, submission: Submission) -> list[str] | None:
    """The events that could be the run's, where it stays open which one is; None if one is known, or none appeared."""
    if own_event(verdict, submission) is not None:
        return None
    return [event.id for event in verdict.events] or None


def to_error(verdict: Verdict, submission: Submission, *, what_now: str) -> AgentRunError | None:
    """The error that a verdict is, or None for a run that COMPLETED.

    Args:
        verdict: how the wait ended.
        submission: whose run it was.
        what_now: a sentence about what a retry will do.
    """
    # What happened comes first and the ids last: Airflow's page cuts long lines.
    events = verdict.events
    ids = format_ids(submission, events)
    about: dict[str, Any] = {
        "agent_id": submission.agent_id,
        "request_id": submission.request_id,
        "event_ids": [event.id for event in events],
    }
    match verdict.outcome:
        case Outcome.COMPLETED:
            return None
        case Outcome.FAILED:
            return AgentRunFailedError(_joined(_describe_failed(verdict, submission), what_now, ids), **about)
        case Outcome.AMBIGUOUS if len(events) == 1 and submission.in_doubt:
            return AmbiguousAgentRunError(
                "It is unknown whether this task's run was started: the answer to its POST was lost, and the run that "
                f"has appeared since may be another party's ({_states(events)}). Look at this event to see whose it "
                "is, and clear the task if a new run is wanted. With on_ambiguous='share' the task would take this "
                f"run. {ids}",
                **about,
            )
        case Outcome.AMBIGUOUS if verdict.late:
            return AmbiguousAgentRunError(
                "The run was accepted, but no event of it appeared within `settle`. What appeared later may be another "
                f"run's ({_states(events)}). Look at the agent's runs, and clear the task if a new run is wanted; if "
                f"the platform is slow, raise settle, or take a late run with on_ambiguous='share'. {ids}",
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


def format_ids(submission: Submission, events: Sequence[ExecutionEvent] = ()) -> str:
    """The ids of a run, for the end of a message: those of its submission, and of its event or of all candidates."""
    pairs = {
        "agent": submission.agent_id,
        "request_id": submission.request_id,
        "event": ",".join(event.id for event in events) or submission.event_id,
    }
    return " ".join(f"{key}={value}" for key, value in pairs.items() if value)


def is_certain(submission: Submission, events: Sequence[ExecutionEvent]) -> bool:
    """Whether an id shows that this event is the run's. All else is inferred."""
    return len(events) == 1 and matching.is_ours(submission.window, events[0])


def describe_completed(verdict: Verdict, submission: Submission) -> str:
    """What to log of a run that COMPLETED. What is inferred is not logged as known."""
    events = verdict.events
    if verdict.late or submission.in_doubt:
        words = "A run COMPLETED that is taken as this task's. It may be another run."
    elif verdict.is_shared:
        words = f"A run COMPLETED. {_SHARED}"
    elif any(map(is_terminal, events)) and not all(map(is_success, events)):
        words = (
            f"One of {len(events)} runs that could be this task's COMPLETED, and more of them COMPLETED than other "
            "tasks can claim. The returned event may be another run's."
        )
    elif len(events) > 1:
        words = (
            f"All {len(events)} runs that could be this task's COMPLETED, so this task's run did. The API does not "
            "tell which one it is: the returned event may be another run's."
        )
    elif is_certain(submission, events):
        words = "The run COMPLETED."
    else:
        words = "A run COMPLETED, the only one that fits this task's request."
    return f"{words} {format_ids(submission, events)}"


def _describe_failed(verdict: Verdict, submission: Submission) -> str:
    if len(verdict.events) > 1:
        return f"All {len(verdict.events)} runs that could be this task's have failed ({_states(verdict.events)})."
    (event,) = verdict.events
    how = "FAILED" if event.status == Status.FAILED else f"ended as {one_line(event.status, 40)}"
    why = f": {one_line(str(event.error)).rstrip('.')}" if event.error else ""
    if is_certain(submission, verdict.events):
        inferred = ""
    elif verdict.late:
        inferred = " It appeared late, and may be another run."
    elif verdict.is_shared:
        inferred = f" {_SHARED}"
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
        describe_state(event) + (f": {one_line(str(event.error))}" if event.error else "") for event in events
    )


def _joined(*sentences: str) -> str:
    return " ".join(filter(None, sentences))
