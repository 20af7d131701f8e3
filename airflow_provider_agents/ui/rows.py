"""What the page shows of runs and agents, as JSON. Pure."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_agents.api.errors import one_line
from airflow_provider_agents.api.models import schedule_in_words
from airflow_provider_agents.runs.spending import used_of
from airflow_provider_agents.runs.status import duration_of, is_active, is_success, is_terminal
from airflow_provider_agents.runs.usage import Usage, add_up, add_up_by

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from airflow_provider_agents.api.models import Agent, ExecutionEvent
    from airflow_provider_agents.budget import Budget

#: Days of use that the page shows, today among them.
DAYS = 7
#: Characters of a text of the platform's that the page shows.
_TEXT, _ERROR = 100, 500


def run_rows(events: Iterable[ExecutionEvent], read_at: datetime) -> list[dict[str, Any]]:
    """Runs, each once, the active ones first, and the newest first among each.

    Args:
        events: the same event may be there in several states; one that has ended wins.
        read_at: when they were asked for, on our clock.
    """
    by_id: dict[str, ExecutionEvent] = {}
    for event in events:
        if event.id not in by_id or is_terminal(event):
            by_id[event.id] = event

    def place(event: ExecutionEvent) -> tuple[bool, float]:
        created = event.created_by
        return is_active(event), created.timestamp() if created is not None else 0.0

    return [_run_row(event, read_at) for event in sorted(by_id.values(), key=place, reverse=True)]


def _run_row(event: ExecutionEvent, read_at: datetime) -> dict[str, Any]:
    started = event.startedAt or event.createdAt
    active = is_active(event)
    seconds = (read_at - started).total_seconds() if active and started is not None else duration_of(event)
    return {
        "id": event.id,
        "agent_id": event.agentId or "",
        "status": one_line(event.status, _TEXT) if event.unreadable is None else "unreadable",
        "state": _state_of(event),
        "started_at": started.isoformat() if started is not None else None,
        "seconds": max(0.0, seconds) if seconds is not None else None,
        "steps": event.browserStepCount,
        "browser_seconds": event.browserSessionSeconds,
        "model": one_line(event.finalModel or "", _TEXT),
        "error": one_line(event.unreadable or _error_text(event.error), _ERROR),
    }


def _state_of(event: ExecutionEvent) -> str:
    if is_active(event):
        return "active"
    if event.unreadable is not None:
        return "unreadable"
    return "completed" if is_success(event) else "failed"


def _error_text(error: Any) -> str:
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        error = error["message"]
    return str(error) if error else ""


def agent_rows(agents: Iterable[Agent]) -> list[dict[str, Any]]:
    """Agents by their name."""
    rows = [
        {
            "id": agent.id,
            "name": one_line(agent.name or agent.id, _TEXT),
            "status": one_line(agent.status or "", _TEXT) if agent.unreadable is None else "unreadable",
            "schedule": one_line(schedule_in_words(agent.schedule), _TEXT),
        }
        for agent in agents
    ]
    return sorted(rows, key=lambda row: (row["name"].casefold(), row["id"]))


def first_day(now: datetime) -> datetime:
    """The begin of the oldest day that the page shows. Days are those of UTC, as in `AgentsHook.usage`."""
    return now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=DAYS - 1)


def usage_by_agent(events: Iterable[ExecutionEvent], now: datetime) -> dict[str, dict[str, Any]]:
    """What each agent has used, by its id.

    Args:
        events: those since `first_day`.
        now: the time, on our clock.

    Returns:
        `days`, oldest first, each a `Usage` with its `day`; the last one is today. `week` is all of them together.
    """
    names = [f"{first_day(now) + timedelta(days=number):%Y-%m-%d}" for number in range(DAYS)]
    of_agent: defaultdict[str, list[ExecutionEvent]] = defaultdict(list)
    for event in events:
        of_agent[event.agentId or ""].append(event)
    rows = {}
    for agent_id, own in of_agent.items():
        by_day = add_up_by(own, "day")
        days = [{"day": name, **by_day.get(name, Usage()).to_json()} for name in names]
        rows[agent_id] = {"days": days, "week": add_up(own).to_json()}
    return rows


def budget_use(budget: Budget | None, events: Iterable[ExecutionEvent], now: datetime) -> dict[str, Any] | None:
    """What of a connection's budget is used. A day or an hour is that of UTC.

    Args:
        budget: the limits.
        events: those since `first_day`, newest first.
        now: the time, on our clock.

    Returns:
        The `limits` by their names, None for one that is not set; the period (`per`: `day`, `hour` or a number of
        seconds); whose runs count (`of`); and what is `used` by the agent's id, or under an empty text for the account,
        as `used_of`. None without a budget, and if its period is longer than the days that are known.
    """
    since = budget.begin_at(now, UTC) if budget is not None else None
    if budget is None or since is None or since < first_day(now):
        return None
    counted: defaultdict[str, list[ExecutionEvent]] = defaultdict(list)
    for event in events:
        if event.created_by is None or event.created_by >= since:
            counted[(event.agentId or "") if budget.of == "agent" else ""].append(event)
    return {
        "of": budget.of,
        "per": budget.per if isinstance(budget.per, str) else budget.per.total_seconds(),
        "limits": {name: getattr(budget, name) for name in used_of([])},
        "used": {name: used_of(own) for name, own in counted.items()},
    }
