"""What runs have used, added up: for the budget, the hook, the command and pages, so that all of them agree."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from airflow_provider_agents.api.errors import InvalidArgumentError, shown
from airflow_provider_agents.runs.listing import runs_since
from airflow_provider_agents.runs.status import duration_of, is_success, is_terminal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow_provider_agents.api.flow import Flow
    from airflow_provider_agents.api.models import ExecutionEvent

#: What runs can be grouped by.
By = Literal["agent", "day", "model"]


@dataclass(frozen=True, slots=True)
class Usage:
    """What some runs have used. A value that the API leaves out, or a negative one, counts as 0.

    Attributes:
        runs: how many there are: `completed`, `failed`, `active` and `unreadable` together.
        completed: runs that COMPLETED.
        failed: runs that ended otherwise.
        active: runs that have not ended. They count with what they show so far.
        unreadable: runs whose row cannot be read. They count with what can be read.
        browser_seconds: the sum of `browserSessionSeconds`.
        browser_steps: the sum of `browserStepCount`.
        mean_seconds: the mean time from the start of a run to its end; None if no run shows both.
        longest_seconds: the longest such time.
    """

    runs: int = 0
    completed: int = 0
    failed: int = 0
    active: int = 0
    unreadable: int = 0
    browser_seconds: float = 0.0
    browser_steps: float = 0
    mean_seconds: float | None = None
    longest_seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The same under the same names, as JSON types."""
        return asdict(self)


def browser_seconds_of(event: ExecutionEvent) -> float:
    """The browser seconds of one run, 0 or more."""
    return max(0.0, event.browserSessionSeconds or 0.0)


def is_failure(event: ExecutionEvent) -> bool:
    """Whether a run has ended, and not as COMPLETED. Of an unreadable row nothing is known."""
    return event.unreadable is None and is_terminal(event) and not is_success(event)


def add_up(events: Iterable[ExecutionEvent]) -> Usage:
    """What these runs have used together. Their order does not matter."""
    events = list(events)
    readable = [event for event in events if event.unreadable is None]
    lengths = [max(0.0, length) for event in readable if (length := duration_of(event)) is not None]
    steps = [max(0, event.browserStepCount or 0) for event in events]
    return Usage(
        runs=len(events),
        completed=sum(map(is_success, readable)),
        failed=sum(map(is_failure, readable)),
        active=sum(not is_terminal(event) for event in readable),
        unreadable=len(events) - len(readable),
        browser_seconds=math.fsum(map(browser_seconds_of, events)),
        browser_steps=sum(steps) if all(isinstance(count, int) for count in steps) else math.fsum(steps),
        mean_seconds=math.fsum(lengths) / len(lengths) if lengths else None,
        longest_seconds=max(lengths, default=None),
    )


def add_up_by(events: Iterable[ExecutionEvent], by: By) -> dict[str, Usage]:
    """The same, apart for each agent, day (UTC, newest first) or model. What the API leaves out is an empty text.

    Returns:
        By the agent's id or the model's name, in the order of the alphabet; or by the day as `2026-01-31`.
    """
    groups: dict[str, list[ExecutionEvent]] = {}
    for event in events:
        groups.setdefault(_group_of(event, by), []).append(event)
    return {name: add_up(groups[name]) for name in sorted(groups, reverse=by == "day")}


def _group_of(event: ExecutionEvent, by: By) -> str:
    match by:
        case "agent":
            return event.agentId or ""
        case "day":
            return f"{event.created_by.astimezone(UTC):%Y-%m-%d}" if event.created_by is not None else ""
        case "model":
            return event.finalModel or ""


def runs_between(agent_id: str | None, since: datetime, until: datetime | None = None) -> Flow[list[ExecutionEvent]]:
    """Read the runs that were created in a period, newest first. An event without a time is in every period.

    Args:
        agent_id: the agent; None for all agents of the account.
        since: the begin of the period, with a time zone.
        until: its end, which is not in it; None for now.

    Raises:
        InvalidArgumentError: one of the two is not a time with a time zone.
    """
    for name, moment in (("since", since), ("until", until)):
        if moment is not None and (not isinstance(moment, datetime) or moment.tzinfo is None):
            raise InvalidArgumentError(f"{name} must be a datetime with a time zone, got {shown(moment)}.")
    read = yield from runs_since(agent_id, lambda _: since)
    return [event for event in read.events if until is None or event.created_by is None or event.created_by < until]
