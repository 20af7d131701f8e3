"""Whether a budget leaves room for another run. The platform's own listing is the ledger."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_provider_agents.api.errors import BudgetExceededError
from airflow_provider_agents.runs.listing import RunsSince, runs_since
from airflow_provider_agents.runs.status import is_terminal
from airflow_provider_agents.runs.usage import browser_seconds_of, is_failure

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime, tzinfo

    from airflow_provider_agents.api.flow import Flow
    from airflow_provider_agents.api.models import ExecutionEvent
    from airflow_provider_agents.budget import Budget

#: The most pages that a budget reads before a start: 5,000 runs at 200 a page.
MAX_PAGES = 25
#: What a limit counts, by its name, for messages.
_WORDS = {"runs": "runs", "browser_seconds": "browser seconds", "failures": "failed runs in a row"}


@dataclass(frozen=True, slots=True)
class Excess:
    """A budget that leaves no room for another run.

    Attributes:
        reasons: what was used, of which limit.
        room_at: after which moment there is room again, if nothing more is started; None if that is not known.
    """

    reasons: tuple[str, ...]
    room_at: datetime | None


def find_excess(budget: Budget, read: RunsSince, zone: tzinfo) -> Excess | None:
    """What of a budget is used up; None if there is room for a run.

    Args:
        budget: the limits.
        read: the runs of the budget's period.
        zone: the time zone of the calendar.
    """
    reasons: list[str] = []
    blocking: list[ExecutionEvent] = []
    for name, amounts in _amounts_of(read.events).items():
        limit = getattr(budget, name)
        last = _reaches(limit, amounts) if limit is not None else None
        if last is not None:
            at_least = "" if read.is_complete else "at least "
            reasons.append(f"{at_least}{_sum_of(amounts):.10g} of {limit:.10g} {_WORDS[name]}")
            blocking.append(last)
    if not reasons and not read.is_complete:
        return Excess((f"not known, because the period has more than {MAX_PAGES} pages of runs",), None)
    if not reasons:
        return None
    return Excess(tuple(reasons), _room_at(budget, read, blocking, zone))


def used_of(events: Sequence[ExecutionEvent]) -> dict[str, float]:
    """What runs have used of a budget, by the name of the limit.

    Args:
        events: newest first.
    """
    return {name: _sum_of(amounts) for name, amounts in _amounts_of(events).items()}


def _amounts_of(events: Sequence[ExecutionEvent]) -> dict[str, list[tuple[ExecutionEvent, float]]]:
    """What each run counts for, newest first, by the name of the limit."""
    return {
        "runs": [(event, 1) for event in events],
        "browser_seconds": [(event, browser_seconds_of(event)) for event in events],
        "failures": [(event, 1) for event in _failures_in_a_row(events)],
    }


def _sum_of(amounts: Iterable[tuple[ExecutionEvent, float]]) -> float:
    return sum(amount for _, amount in amounts)


def _failures_in_a_row(events: Sequence[ExecutionEvent]) -> list[ExecutionEvent]:
    # What an active run, or a row that cannot be read, will say is not known yet.
    ended = (event for event in events if event.unreadable is None and is_terminal(event))
    return list(itertools.takewhile(is_failure, ended))


def _reaches(limit: float, amounts: Iterable[tuple[ExecutionEvent, float]]) -> ExecutionEvent | None:
    """The run, newest first, with which a limit is reached: there is no room before it has left the period."""
    used = 0.0
    for event, amount in amounts:
        used += amount
        if used >= limit:
            return event
    return None


def _room_at(budget: Budget, read: RunsSince, blocking: Iterable[ExecutionEvent], zone: tzinfo) -> datetime | None:
    end_at = budget.end_at(read.server_time, zone)
    if end_at is not None:
        return end_at
    created = [event.created_by for event in blocking]
    if None in created:
        return None  # an event without a time leaves no period
    return max(moment for moment in created if moment is not None) + (read.server_time - read.since)


def check_budget(budget: Budget, agent_id: str, zone: tzinfo, *, owner: str) -> Flow[None]:
    """Read the runs of a budget's period, and refuse another run if there is no room for it.

    Args:
        budget: the limits.
        agent_id: the agent that is to run.
        zone: the time zone of the calendar.
        owner: whose budget it is, such as `task`, for the message.

    Raises:
        BudgetExceededError: there is no room.
    """
    of_agent = budget.of == "agent"
    read = yield from runs_since(
        agent_id if of_agent else None, lambda at: budget.begin_at(at, zone), max_pages=MAX_PAGES
    )
    excess = find_excess(budget, read, zone)
    if excess is None:
        return
    subject = f"agent {agent_id}" if of_agent else "the account"
    used = f"{', '.join(excess.reasons)} since {_moment(read.since, zone)}"
    if excess.room_at is not None:
        advice = f"There is room again after {_moment(excess.room_at, zone)}, if no more runs are started."
    else:
        advice = "It is not known when there is room again. Use a shorter period, or raise the limit."
    raise BudgetExceededError(
        f"The {owner}'s budget for {subject} leaves no room for another run: {used}. Nothing was started. {advice}",
        room_at=excess.room_at,
    )


def _moment(at: datetime, zone: tzinfo) -> str:
    return f"{at.astimezone(zone):%Y-%m-%d %H:%M:%S %Z}"
