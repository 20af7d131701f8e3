"""Agents and their runs: the truth, whatever the API shows of it."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from airflow_provider_agents.simulator.checks import check, check_seconds, check_status, is_seconds

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

    from airflow_provider_agents.simulator.config import Seconds, SimulatorConfig

_SECONDS_PER_DAY = 86_400
Starter = Literal["execute", "schedule", "row"]


@dataclass(frozen=True)
class Execution:
    """An execute that was accepted: which run belongs to which request."""

    agent_id: str
    request_id: str
    event_id: str
    accepted_at: datetime


@dataclass(kw_only=True)
class Agent:
    """An agent, and how its runs go. None stands for the config's value.

    Raises:
        ValueError: a field has no such value; the message names the field.
    """

    id: str
    number: int
    name: str
    created_at: datetime
    status: str = "ACTIVE"
    queue_seconds: Seconds | None = None
    run_seconds: Seconds | None = None
    end_status: str | Callable[[random.Random], str] | None = None
    error: str = "the agent could not finish its task"
    schedule_every: float | None = None
    next_scheduled: datetime | None = None

    def __post_init__(self) -> None:
        for label, text in (("agent_id", self.id), ("name", self.name), ("status", self.status)):
            check(isinstance(text, str) and text != "", label, "a text that is not empty")
        error: object = self.error
        check(isinstance(error, str), "error", "a text")
        for label, seconds in (("queue_seconds", self.queue_seconds), ("run_seconds", self.run_seconds)):
            if seconds is not None:
                check_seconds(seconds, label)
        if self.end_status is not None:
            check_status(self.end_status, "end_status")
        every = self.schedule_every
        check(every is None or (is_seconds(every) and every > 0), "schedule_every", "a number of seconds, above 0")

    def _schedule(self) -> str | None:
        """The schedule as the API's page shows one; without times where there are several a day."""
        if self.schedule_every is None:
            return None
        runs_per_day = max(1, round(_SECONDS_PER_DAY / self.schedule_every))
        return '{"tasksPerDay": 1, "times": ["09:00"]}' if runs_per_day == 1 else f'{{"tasksPerDay": {runs_per_day}}}'

    def to_json(self) -> dict[str, Any]:
        """The agent as the API shows it."""
        return {
            "id": self.id,
            "name": self.name,
            "baseUrl": "https://example.com",
            "status": self.status,
            "schedule": self._schedule(),
            "createdAt": _iso(self.created_at),
            "updatedAt": _iso(self.created_at),
        }


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run. All its times are decided when it is accepted; they are on the server's clock.

    Attributes:
        number: counts runs in the order in which they were made: of two runs accepted at one time, the higher is newer.
        started_by: `execute` or `schedule`; `row` for a row without a run (`Simulator.add_row`).
    """

    number: int
    event_id: str
    request_id: str
    agent_id: str
    accepted_at: datetime
    visible_at: datetime
    started_at: datetime
    ended_at: datetime
    end_status: str
    error: str
    started_by: Starter
    steps: int

    def status_at(self, now: datetime, config: SimulatorConfig) -> str:
        """The status at a time."""
        if now >= self.ended_at:
            return self.end_status
        if now >= self.started_at:
            return "RUNNING"
        if config.extra_status is not None and now >= self.accepted_at + (self.started_at - self.accepted_at) / 2:
            return config.extra_status
        return "PENDING"

    def time_of(self, name: str, now: datetime, config: SimulatorConfig) -> datetime | None:
        """The event's `createdAt`, `startedAt` or `updatedAt` at a time; None if the event has none yet."""
        if name == "startedAt":
            if config.started_at_while_pending:
                return self.accepted_at
            return self.started_at if now >= self.started_at else None
        created_at = self.accepted_at if config.created_at == "accepted" else self.visible_at
        if name == "createdAt" or now < self.started_at:
            return created_at
        return max(created_at, self.ended_at if now >= self.ended_at else self.started_at)

    def to_json(self, now: datetime, config: SimulatorConfig) -> dict[str, Any]:
        """The event as the API shows it at a time."""
        status = self.status_at(now, config)
        has_started, has_ended = now >= self.started_at, now >= self.ended_at
        seconds = round((min(now, self.ended_at) - self.started_at).total_seconds()) if has_started else 0
        event: dict[str, Any] = {
            "id": self.event_id,
            "agentId": self.agent_id,
            "userId": "user-789",
            "status": status,
            "startedAt": _iso(self.time_of("startedAt", now, config)),
            "completedAt": _iso(self.ended_at) if has_ended else None,
            "error": self.error if has_ended and status != "COMPLETED" else None,
            "finalModel": "claude-3-7-sonnet" if has_ended else None,
            "browserStepCount": self.steps if has_ended else 0,
            "browserSessionSeconds": seconds,
            "createdAt": _iso(self.time_of("createdAt", now, config)),
            "updatedAt": _iso(self.time_of("updatedAt", now, config)),
        }
        if config.request_id == "field" and self.started_by == "execute":
            event["requestId"] = self.request_id
        event.update(config.extra_event_fields)
        return event


class Timeline:
    """Runs in the order of their acceptance.

    No time of an event is before its run's acceptance, or more than `span` after it. So sorting and filtering by any
    of these times needs only the runs nearby, however long the timeline is.
    """

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.span = timedelta()
        self.end_statuses: set[str] = set()

    def add(self, run: Run) -> None:
        """Add a run in its place."""
        bisect.insort(self.runs, run, key=lambda other: (other.accepted_at, other.number))
        self.span = max(self.span, run.visible_at - run.accepted_at, run.ended_at - run.accepted_at)
        self.end_statuses.add(run.end_status)

    def newest_first(self, until: datetime | None) -> Iterator[Run]:
        """Runs that were accepted at or before `until`; all runs if None."""
        last = len(self.runs)
        if until is not None:
            last = bisect.bisect_right(self.runs, until, key=lambda run: run.accepted_at)
        return map(self.runs.__getitem__, range(last - 1, -1, -1))


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
