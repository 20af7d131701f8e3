"""Runs that somebody else has started: what a sensor may name, and how it is found."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Self

from airflow_provider_agents.api.calls import Steps, check_agent_id, list_agent_events, walk
from airflow_provider_agents.api.errors import InvalidArgumentError, quote
from airflow_provider_agents.api.models import ExecutionEvent, Status
from airflow_provider_agents.runs.submission import Submission, attached_to

if TYPE_CHECKING:
    from airflow_provider_agents.runs.submission import Clock

#: Room below the moment: the API's page does not say whether `startedAfter` is inclusive, nor how finely it compares.
_MARGIN = timedelta(seconds=1)
#: The listing is newest first, and the first run after the moment is wanted. So what began long after it is left out,
#: unless nothing began within this time.
_SPAN = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sought:
    """The run that a sensor waits for.

    Attributes:
        agent_id: whose run it is.
        submission: what an operator has started.
        event_id: its event.
        started_after: the first run that began at this moment or later.
    """

    agent_id: str
    submission: Submission | None = None
    event_id: str | None = None
    started_after: datetime | None = None

    @classmethod
    def of(cls, *, agent_id: object, submission: object, event_id: object, started_after: object) -> Self:
        """Read a sensor's arguments, of which exactly one names the run.

        Raises:
            InvalidArgumentError: saying what to give instead.
        """
        named = [name for name, value in _named(submission, event_id, started_after) if value is not None]
        if len(named) != 1:
            raise InvalidArgumentError(
                "Name the run by exactly one of submission, event_id and started_after; "
                f"{'none is given' if not named else 'given are ' + ', '.join(named)}."
            )
        if submission is not None:
            own = Submission.from_json(submission)
            if agent_id is not None and own.agent_id != agent_id:
                raise InvalidArgumentError(
                    f"The submission is one of agent {own.agent_id}, not of {quote(str(agent_id), 100)}. "
                    "Leave agent_id out."
                )
            return cls(agent_id=own.agent_id, submission=own)
        agent = check_agent_id(agent_id)
        if event_id is not None:
            if not isinstance(event_id, str) or not event_id.strip():
                raise InvalidArgumentError(f"event_id must be the id of an event, got {quote(repr(event_id), 100)}.")
            return cls(agent_id=agent, event_id=event_id.strip())
        return cls(agent_id=agent, started_after=_moment(started_after))

    @property
    def name(self) -> str:
        """The run in words, for messages."""
        if self.submission is not None:
            return self.submission.name
        if self.event_id is not None:
            return f"agent {self.agent_id}, event {self.event_id}"
        return f"agent {self.agent_id}, the first that began from {self.started_after} on"

    def known(self, taken_at: datetime) -> Submission | None:
        """What to wait for, if no look is needed to know.

        Args:
            taken_at: since when it is looked for, on our clock.
        """
        if self.event_id is not None:
            return attached_to(ExecutionEvent(id=self.event_id, status=Status.RUNNING), self.agent_id, taken_at)
        return self.submission


def _named(submission: object, event_id: object, started_after: object) -> tuple[tuple[str, object], ...]:
    return (("submission", submission), ("event_id", event_id), ("started_after", started_after))


def _moment(value: object) -> datetime:
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).strip())
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise InvalidArgumentError(
            "started_after must be a moment with a time zone, as a datetime or ISO 8601 text such as "
            f"2026-01-01T09:00:00+00:00, got {quote(repr(value), 100)}."
        )
    return moment


def first_begun(agent_id: str, moment: datetime, *, settle: float, now: Clock) -> Steps[ExecutionEvent | None]:
    """The agent's first run that began at `moment` or later; None as long as an earlier one could still appear.

    A row that cannot be read counts if its `startedAt` can be.

    Args:
        agent_id: the agent.
        moment: compared with `startedAt`, which is on the server's clock.
        settle: seconds within which the event of a run that has begun appears.
        now: our clock, where the server does not tell its own.
    """
    end = moment + _SPAN
    narrow = list_agent_events(
        agent_id, started_after=moment - _MARGIN, started_before=end if end < now() - _SPAN else None
    )
    listed = yield from walk(narrow)
    begun = _since(moment, listed.value)
    if not begun and end < now() - _SPAN:
        listed = yield from walk(list_agent_events(agent_id, started_after=moment - _MARGIN))
        begun = _since(moment, listed.value)
    if not begun:
        return None
    began_at, _, first = begun[0]
    if first.lacks_id:
        return None  # it cannot be followed, and no later run is the first
    settled = (listed.server_time or now()) - began_at >= timedelta(seconds=settle)
    return first if settled else None


def _since(moment: datetime, events: list[ExecutionEvent]) -> list[tuple[datetime, str, ExecutionEvent]]:
    """Those that began at a moment or later, oldest first."""
    begun = [
        (event.startedAt, event.id, event)
        for event in events
        if event.startedAt is not None and event.startedAt >= moment
    ]
    return sorted(begun, key=lambda one: one[:2])
