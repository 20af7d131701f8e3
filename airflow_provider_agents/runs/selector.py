"""Runs that somebody else has started: what a sensor may name, and how it is found."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self

from airflow_provider_agents.api.endpoints import check_agent_id, list_agent_events
from airflow_provider_agents.api.errors import InvalidArgumentError, one_line
from airflow_provider_agents.api.flow import Flow, paginate
from airflow_provider_agents.api.models import ExecutionEvent, Status, is_plausible
from airflow_provider_agents.clock import now
from airflow_provider_agents.runs.matching import Missing, clock_at_least
from airflow_provider_agents.runs.submission import Submission

#: Room around the interval: the API's page does not say whether `startedAfter` and `startedBefore` are inclusive, nor
#: how finely they are compared.
_MARGIN = timedelta(seconds=1)
#: The listing is newest first, and the first run of the interval is wanted. So what began long after the interval's
#: start is left out, unless nothing began within this time.
_SPAN = timedelta(days=1)
#: Where the platform does not tell its clock, ours decides that an interval is over, this much later. Amazon S3 refuses
#: requests of machines whose clock is more than 15 minutes off, so few machines are.
CLOCK_ALLOWANCE = timedelta(minutes=15)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSelector:
    """The run that a sensor waits for.

    Attributes:
        agent_id: whose run it is.
        submission: what an operator has started.
        event_id: its event.
        started_after: the first run that began at this moment or later.
        started_before: the end of the interval that begins with `started_after`, exclusive; None if it has no end.
    """

    agent_id: str
    submission: Submission | None = None
    event_id: str | None = None
    started_after: datetime | None = None
    started_before: datetime | None = None

    @classmethod
    def of(
        cls,
        *,
        agent_id: object,
        submission: object,
        event_id: object,
        started_after: object,
        started_before: object = None,
    ) -> Self:
        """Read a sensor's arguments, of which exactly one names the run; `started_before` only bounds it.

        Raises:
            InvalidArgumentError: saying what to give instead.
        """
        check_names(submission, event_id, started_after, started_before)
        if submission is not None:
            own = Submission.from_json(submission)
            if agent_id is not None and own.agent_id != agent_id:
                raise InvalidArgumentError(
                    f"The submission is one of agent {own.agent_id}, not of {one_line(str(agent_id), 100)}. "
                    "Leave agent_id out."
                )
            return cls(agent_id=own.agent_id, submission=own)
        agent = check_agent_id(agent_id)
        if event_id is not None:
            if not isinstance(event_id, str) or not event_id.strip():
                raise InvalidArgumentError(f"event_id must be the id of an event, got {one_line(repr(event_id), 100)}.")
            return cls(agent_id=agent, event_id=event_id.strip())
        after = read_moment("started_after", started_after)
        if started_before is None:
            return cls(agent_id=agent, started_after=after)
        before = read_moment("started_before", started_before)
        if before <= after:
            raise InvalidArgumentError(
                f"started_before ({before}) must be later than started_after ({after}). A cron schedule of Airflow 3 "
                "has data intervals of no length: use CronDataIntervalTimetable, or add a length to started_after."
            )
        return cls(agent_id=agent, started_after=after, started_before=before)

    @property
    def interval(self) -> str | None:
        """When the run began, in words; None if it is named otherwise."""
        if self.started_after is None:
            return None
        until = "on" if self.started_before is None else f"until before {self.started_before}"
        return f"from {self.started_after} {until}"

    @property
    def name(self) -> str:
        """The run in words, for messages."""
        if self.submission is not None:
            return self.submission.name
        if self.event_id is not None:
            return f"agent {self.agent_id}, event {self.event_id}"
        return f"agent {self.agent_id}, the first that began {self.interval}"

    def known(self, taken_at: datetime) -> Submission | None:
        """What to wait for, if no look is needed to know.

        Args:
            taken_at: since when it is looked for, on our clock.
        """
        if self.event_id is not None:
            return Submission.for_event(
                ExecutionEvent(id=self.event_id, status=Status.RUNNING), self.agent_id, taken_at
            )
        return self.submission


def check_names(submission: object, event_id: object, started_after: object, started_before: object) -> None:
    """Refuse arguments that cannot name a run together, whatever their values turn out to be.

    Raises:
        InvalidArgumentError: saying what to give instead.
    """
    given = {"submission": submission, "event_id": event_id, "started_after": started_after}
    named = [name for name, value in given.items() if value is not None]
    if started_before is not None and started_after is None:
        raise InvalidArgumentError(
            "started_before is the end of an interval that begins with started_after. Give started_after, or leave "
            "started_before out."
        )
    if len(named) != 1:
        raise InvalidArgumentError(
            "Name the run by exactly one of submission, event_id and started_after; "
            f"{'none is given' if not named else 'given are ' + ', '.join(named)}."
        )


def check_bound(started_before: object, *, was_given: bool) -> None:
    """Refuse an end of the interval that was given as a template and rendered to nothing.

    Without its end, the sensor would take a run of a later interval.

    Raises:
        InvalidArgumentError: it was.
    """
    if was_given and started_before is None:
        raise InvalidArgumentError(
            "started_before was rendered to None. A DAG run that a person has started has no data interval: give the "
            "template a default."
        )


def read_moment(name: str, value: object) -> datetime:
    """A moment that a user gave.

    Raises:
        InvalidArgumentError: it is none, or has no time zone.
    """
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).strip())
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None or not is_plausible(moment):
        raise InvalidArgumentError(
            f"{name} must be a moment with a time zone, as a datetime or ISO 8601 text such as "
            f"2026-01-01T09:00:00+00:00, got {one_line(repr(value), 100)}."
        )
    return moment


@dataclass(frozen=True, slots=True)
class StartedRuns:
    """The runs of an agent that began in an interval, as one look showed them.

    Attributes:
        events: oldest first. A row that cannot be read counts if its `startedAt` can be.
        is_complete: no row of the listing hides when its run began.
        began_at: our clock when the look was begun.
        ended_at: our clock when it was answered.
        server_time: the server's clock when the look was begun, None if it did not tell.
        passed: a moment that the clock which stamps events has passed; None if nothing tells.
    """

    events: tuple[ExecutionEvent, ...]
    is_complete: bool
    began_at: datetime
    ended_at: datetime
    server_time: datetime | None
    passed: datetime | None


def list_started(agent_id: str, after: datetime, before: datetime | None) -> Flow[StartedRuns]:
    """The agent's runs that began at `after` or later, and before `before`; of a long interval perhaps only the first.

    Args:
        agent_id: the agent.
        after: compared with `startedAt`, which is on the server's clock.
        before: the same, exclusive; None for no end.
    """
    began_at = now()
    ends = [before + _MARGIN if before is not None else None]
    first_end = after + _SPAN
    if first_end < began_at - _SPAN and (before is None or first_end < before):
        ends.insert(0, first_end)
    for end in ends:
        call = list_agent_events(agent_id, started_after=after - _MARGIN, started_before=end)
        listed = yield from paginate(call)
        begun = _between(after, before, listed.value)
        if begun:
            break
    return StartedRuns(
        events=tuple(begun),
        is_complete=not any(event.unreadable is not None and event.startedAt is None for event in listed.value),
        began_at=began_at,
        ended_at=now(),
        server_time=listed.server_time,
        passed=clock_at_least(listed.server_time, listed.value),
    )


def _between(after: datetime, before: datetime | None, events: list[ExecutionEvent]) -> list[ExecutionEvent]:
    """Those that began in an interval, oldest first."""
    begun = [
        (event.startedAt, event.id, event)
        for event in events
        if event.startedAt is not None and event.startedAt >= after and (before is None or event.startedAt < before)
    ]
    return [event for _, _, event in sorted(begun, key=lambda one: one[:2])]


class FirstRun:
    """The search of one process for an agent's first run in an interval. Pure.

    A run appears within `settle` seconds after it began. So the first run that is shown is the first of all once an
    earlier one would have appeared, and there is no run once the last possible one would have.

    Args:
        before: the end of the interval, exclusive; None for no end.
        settle: seconds.
    """

    def __init__(self, before: datetime | None, settle: float) -> None:
        self._before, self._settle = before, timedelta(seconds=settle)
        # Our clock when some run of the interval was first seen. What began before that run has begun by then.
        self._seen_at: datetime | None = None

    def apply_listing(self, listing: StartedRuns) -> ExecutionEvent | Missing | None:
        """The first run, `Missing` if there is none and none can appear any more, None if neither is known yet."""
        if listing.events:
            first = listing.events[0]
            if first.lacks_id:
                return None  # it cannot be followed, and no later run is the first
            self._seen_at = self._seen_at or listing.ended_at
            has_passed = listing.passed is not None and (
                first.startedAt is not None and listing.passed - first.startedAt >= self._settle
            )
            return first if has_passed or listing.began_at - self._seen_at >= self._settle else None
        if self._before is None or self._seen_at is not None or not listing.is_complete:
            return None
        passed = [listing.passed] if listing.passed is not None else []
        if listing.server_time is None:
            passed.append(listing.began_at - CLOCK_ALLOWANCE)
        return Missing() if max(passed) - self._before >= self._settle else None
