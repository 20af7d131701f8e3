"""Runs that another party has started: how to select one, and how the run is found.

Each selector is one class with its arguments, their checks and its words. A new selector is a new class in
`AnySelector`, and an argument of `AgentRunSensor`; triggers and payloads carry it as it is.
"""

from __future__ import annotations

import ast
import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_args

from airflow_provider_agents.api.endpoints import check_agent_id
from airflow_provider_agents.api.errors import AgentRunTimeoutError, InvalidArgumentError, one_line, shown
from airflow_provider_agents.api.models import LONGEST_ID, ExecutionEvent, Identifier, Status, is_plausible
from airflow_provider_agents.runs.first_run import FirstRunSearch, list_started
from airflow_provider_agents.runs.outcome import Outcome, Verdict, format_ids, to_error
from airflow_provider_agents.runs.submission import Submission
from airflow_provider_agents.versioned_json import Moment, UnusableDataError, VersionedJson

if TYPE_CHECKING:
    from airflow_provider_agents.api.errors import AgentsError
    from airflow_provider_agents.api.flow import Flow
    from airflow_provider_agents.runs.first_run import StartedRuns
    from airflow_provider_agents.runs.tracker import WaitPolicy

#: Returns the value to use. Raises `ValueError` with the rest of a sentence that begins with the argument's name.
Check = Callable[[object], Any]


# --- what a user may give ---------------------------------------------------------------------------------------------


def read_event_id(value: object) -> str:
    """The id of an event, without blanks around it."""
    found = value.strip() if isinstance(value, str) else ""
    if not found or not found.isprintable() or len(found) > LONGEST_ID:
        raise ValueError(f"must be the id of an event as text, got {shown(value)}.")
    return found


def read_moment(value: object) -> datetime:
    """A moment with a time zone, as a `datetime` or as ISO 8601 text."""
    found: datetime | None = None
    if isinstance(value, datetime):
        found = value
    elif isinstance(value, str):
        try:
            found = datetime.fromisoformat(value.strip())
        except ValueError:
            found = None
    if found is None or found.tzinfo is None or not is_plausible(found):
        raise ValueError(
            "must be a moment with a time zone, as a datetime or ISO 8601 text such as 2026-01-01T09:00:00+00:00, "
            f"got {shown(value)}."
        )
    return found


def read_mapping(value: object) -> dict[str, Any]:
    """A dict, or its text as JSON (`tojson`) or as Python writes it, which is what a plain template makes of a dict."""
    if isinstance(value, dict):
        return value
    if isinstance(value, str):
        for read in (json.loads, ast.literal_eval):
            try:
                found = read(value.strip())
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                continue
            if isinstance(found, dict):
                return found
    raise ValueError(f"must be a dict, or a dict as JSON text, got {shown(value)}.")


def read_submission(value: object) -> dict[str, Any]:
    """A submission as a dict, or as the text that a template makes of one."""
    found = read_mapping(value)
    _parse_submission(found)
    return found


def _parse_submission(value: object) -> Submission:
    try:
        return Submission.from_json(read_mapping(value))
    except UnusableDataError as error:
        raise ValueError(f"is none. {error}") from None


# --- the selectors -------------------------------------------------------------------------------------------------


class RunSelector(VersionedJson):
    """Which run is waited for.

    Class attributes:
        arguments: what a user gives for this selector, with a check each. The first one chooses the selector.
        names_agent: whether the arguments name the agent too.
        has_appeared: whether the event of the run has appeared already.

    Attributes:
        agent_id: whose run it is.
    """

    _called: ClassVar = "The selector of a run"
    _unseen: ClassVar = "The run was not finished"
    arguments: ClassVar[Mapping[str, Check]]
    names_agent: ClassVar[bool] = False
    has_appeared: ClassVar[bool] = False

    agent_id: str

    @classmethod
    def of(cls, agent_id: object, arguments: Mapping[str, object]) -> Self:
        """Read what a user gave.

        Raises:
            InvalidArgumentError: saying what to give instead.
        """
        return cls(agent_id=check_agent_id(agent_id), **cls._check(arguments))

    @classmethod
    def _check(cls, arguments: Mapping[str, object]) -> dict[str, Any]:
        checked = {}
        for name, value in arguments.items():
            try:
                checked[name] = cls.arguments[name](value)
            except ValueError as error:
                raise InvalidArgumentError(f"{name} {error}") from None
        return checked

    @property
    @abstractmethod
    def words(self) -> str:
        """The run in words, for messages."""

    def known(self, taken_at: datetime) -> Submission | None:  # noqa: ARG002 - a subclass may need it
        """The submission to wait for; None if `list_runs` and `search` have to find the run first.

        Args:
            taken_at: since when the run is waited for, on our clock.
        """
        return None

    def list_runs(self) -> Flow[StartedRuns]:
        """One listing of the runs among which this one is. Only for a selector that does not know its run."""
        raise AssertionError("unreachable: the run is known")

    def search(self, policy: WaitPolicy) -> FirstRunSearch:  # noqa: ARG002 - a subclass needs it
        """Find the run in these listings, in one process. Only for a selector that does not know its run."""
        raise AssertionError("unreachable: the run is known")

    def policy_once_known(self, policy: WaitPolicy) -> WaitPolicy:
        """How to wait for the run. An event that a user has seen is there as soon as all replicas have it."""
        return replace(policy, appear_within=policy.settle) if self.has_appeared else policy

    def to_error(self, verdict: Verdict, submission: Submission) -> AgentsError | None:
        """The error of a wait for this run; None if the run COMPLETED. `AgentRunTimeoutError` if the run is late.

        Args:
            verdict: how the wait ended.
            submission: the run that was found, or what is known of it.
        """
        match verdict.outcome:
            case Outcome.NOT_FOUND:
                return self._not_found(verdict, submission)
            case Outcome.TIMED_OUT if not verdict.events:
                return AgentRunTimeoutError(
                    f"{self._unseen} at the sensor's timeout. Look at the agent's runs, or raise timeout. "
                    f"{format_ids(submission)}",
                    agent_id=submission.agent_id,
                )
        return to_error(verdict, submission, what_now="")

    def _not_found(self, verdict: Verdict, submission: Submission) -> AgentsError | None:
        if submission.event_id is None:
            return to_error(verdict, submission, what_now="")
        return InvalidArgumentError(
            "The agent has no such event. Check both ids, and whose key the connection has. " + format_ids(submission)
        )


class BySubmission(RunSelector):
    """The run that an operator has started."""

    arguments: ClassVar = {"submission": read_submission}
    names_agent: ClassVar = True

    submission: Submission

    @classmethod
    def of(cls, agent_id: object, arguments: Mapping[str, object]) -> Self:
        """Read what a user gave; the agent may be left out.

        Raises:
            InvalidArgumentError: saying what to give instead.
        """
        try:
            submission = _parse_submission(arguments["submission"])
        except ValueError as error:
            raise InvalidArgumentError(f"submission {error}") from None
        if agent_id is not None and submission.agent_id != agent_id:
            raise InvalidArgumentError(
                f"The submission is one of agent {submission.agent_id}, not of {one_line(str(agent_id), 100)}. "
                "Leave agent_id out."
            )
        return cls(agent_id=submission.agent_id, submission=submission)

    @property
    def words(self) -> str:
        """The run in words, for messages."""
        return f"the run of {self.submission.name}"

    def known(self, taken_at: datetime) -> Submission:  # noqa: ARG002 - for other selectors
        """The submission."""
        return self.submission


class ByEvent(RunSelector):
    """The run of an event that a user has seen."""

    arguments: ClassVar = {"event_id": read_event_id}
    has_appeared: ClassVar = True

    event_id: Identifier

    @property
    def words(self) -> str:
        """The run in words, for messages."""
        return f"the run of agent {self.agent_id}, event {self.event_id}"

    def known(self, taken_at: datetime) -> Submission:
        """The record of a run that this task has not started."""
        return Submission.for_event(ExecutionEvent(id=self.event_id, status=Status.RUNNING), self.agent_id, taken_at)


class FirstRunSince(RunSelector):
    """The agent's first run that began in an interval.

    Attributes:
        started_after: the begin of the interval, inclusive.
        started_before: its end, exclusive; None if it has no end.
    """

    arguments: ClassVar = {"started_after": read_moment, "started_before": read_moment}

    started_after: Moment
    started_before: Moment | None = None

    @classmethod
    def of(cls, agent_id: object, arguments: Mapping[str, object]) -> Self:
        """Read what a user gave.

        Raises:
            InvalidArgumentError: saying what to give instead.
        """
        found = super().of(agent_id, arguments)
        if found.started_before is not None and found.started_before <= found.started_after:
            raise InvalidArgumentError(
                f"started_before ({found.started_before}) must be later than started_after ({found.started_after}). A "
                "cron schedule of Airflow 3 has data intervals of no length: use CronDataIntervalTimetable, or add a "
                "length to started_after."
            )
        return found

    @property
    def interval(self) -> str:
        """When the run began, in words."""
        until = "on" if self.started_before is None else f"until before {self.started_before}"
        return f"from {self.started_after} {until}"

    @property
    def words(self) -> str:
        """The run in words, for messages."""
        return f"the first run of agent {self.agent_id} that begins {self.interval}"

    def list_runs(self) -> Flow[StartedRuns]:
        """The agent's runs that began in the interval; of a long interval perhaps only the first."""
        return list_started(self.agent_id, self.started_after, self.started_before)

    def search(self, policy: WaitPolicy) -> FirstRunSearch:
        """Find the first of these runs."""
        return FirstRunSearch(self.started_before, policy.settle, exclusive=policy.exclusive)

    @property
    def _unseen(self) -> str:  # type: ignore[override]
        return f"No run was known that began {self.interval}"

    def _not_found(self, verdict: Verdict, submission: Submission) -> AgentsError:  # noqa: ARG002 - for other selectors
        return AgentRunTimeoutError(
            f"No run began {self.interval}, and none can appear any more. Look at the agent's schedule and at its "
            f"runs. {format_ids(submission)}",
            agent_id=submission.agent_id,
        )


AnySelector = BySubmission | ByEvent | FirstRunSince
_SELECTORS: tuple[type[AnySelector], ...] = get_args(AnySelector)
#: What users may give to any selector, with a check each.
ARGUMENTS: dict[str, Check] = {name: check for kind in _SELECTORS for name, check in kind.arguments.items()}
#: The argument that chooses each selector; and by each argument, the one that chooses its selector.
_CHOOSERS = {next(iter(kind.arguments)): kind for kind in _SELECTORS}
_CHOOSER_OF = {name: chooser for chooser, kind in _CHOOSERS.items() for name in kind.arguments}


def selector_class(given: Mapping[str, object]) -> type[AnySelector]:
    """The selector that arguments ask for, whatever their values turn out to be.

    Args:
        given: the arguments that were given, by their names.

    Raises:
        InvalidArgumentError: they do not ask for one selector. The text says what to give instead.
    """
    chosen = [name for name in _CHOOSERS if name in given]
    for name in given:
        chooser = _CHOOSER_OF[name]
        if chooser not in chosen:
            raise InvalidArgumentError(f"{name} only goes with {chooser}. Give {chooser}, or leave {name} out.")
    if len(chosen) != 1:
        *names, last = _CHOOSERS
        raise InvalidArgumentError(
            f"Name the run by exactly one of {', '.join(names)} and {last}; "
            f"{'none is given' if not chosen else 'given are ' + ', '.join(chosen)}."
        )
    return _CHOOSERS[chosen[0]]


def select(agent_id: object, given: Mapping[str, object]) -> AnySelector:
    """Read a user's arguments.

    Args:
        agent_id: the agent; None if the arguments name it.
        given: the arguments that were given, by their names. None stands for a template that was rendered to nothing:
            without the end of its interval, for example, a sensor would take a run of a later one.

    Raises:
        InvalidArgumentError: saying what to give instead.
    """
    kind = selector_class(given)
    for name, value in given.items():
        if value is None:
            raise InvalidArgumentError(
                f"{name} was rendered to None. Give the template a default: a DAG run that a person has started, for "
                "example, has no data interval."
            )
    return kind.of(agent_id, given)
