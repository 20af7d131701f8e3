"""What the status of one event means. The only place that compares statuses."""

from __future__ import annotations

from typing import Any

from airflow_provider_agents.api.body import to_storable
from airflow_provider_agents.api.endpoints import list_agent_events
from airflow_provider_agents.api.errors import one_line
from airflow_provider_agents.api.flow import Flow, first_rows
from airflow_provider_agents.api.models import ExecutionEvent, Status, UnreadableEvent


def is_terminal(event: ExecutionEvent) -> bool:
    """Whether a run is over.

    PENDING and RUNNING are not, whatever else the record holds. A status that the API's page does not know is over
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


def describe_state(event: ExecutionEvent) -> str:
    """The status of an event in words, or why its row cannot be read."""
    return one_line(event.status, 40) if event.unreadable is None else f"unreadable: {event.unreadable}"


def newer_of(old: ExecutionEvent | None, new: ExecutionEvent) -> ExecutionEvent:
    """The later state of one event. Replicas lag, so an older answer may follow a newer one."""
    if old is None:
        return new
    if is_terminal(old) != is_terminal(new):
        return old if is_terminal(old) else new
    if old.updatedAt is not None and new.updatedAt is not None and new.updatedAt < old.updatedAt:
        return old
    return new.after(old) if isinstance(new, UnreadableEvent) else new


def duration_of(event: ExecutionEvent) -> float | None:
    """Seconds from `startedAt` to `completedAt`, or None if the API does not show both."""
    if event.startedAt is None or event.completedAt is None:
        return None
    return (event.completedAt - event.startedAt).total_seconds()


def usage_of(event: ExecutionEvent, *, try_number: int) -> dict[str, Any]:
    """What a run used, for budgets and dashboards: JSON types, None where the API does not show it.

    `duration_seconds` is `duration_of`.
    """
    return {
        "finalModel": to_storable(event.finalModel),
        "browserStepCount": event.browserStepCount,
        "browserSessionSeconds": event.browserSessionSeconds,
        "duration_seconds": duration_of(event),
        "try_number": try_number,
    }


def active_runs(agent_id: str) -> Flow[list[ExecutionEvent]]:
    """The runs that an agent is busy with, newest first as far as the API orders them; unreadable rows last."""
    seen: dict[str, ExecutionEvent] = {}
    # The active ones last: where a run shows up twice, one that has ended since the first listing stays ended.
    for status in (Status.RUNNING, Status.PENDING, None):
        for event in (yield from first_rows(list_agent_events(agent_id, status=status), 200)):
            if event.id not in seen or is_terminal(event):
                seen[event.id] = event
    return sorted(filter(is_active, seen.values()), key=lambda event: event.unreadable is not None)
