"""How an agent's events are read: PENDING first, then newest first down to a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_provider_agents.api.endpoints import list_agent_events
from airflow_provider_agents.api.flow import Flow, Response, paginate
from airflow_provider_agents.api.models import ExecutionEvent, Page, Status
from airflow_provider_agents.runs.matching import is_before, is_ours

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from airflow_provider_agents.runs.matching import MatchWindow

_PAGE_ROWS = 50


@dataclass(frozen=True, slots=True)
class Listing:
    """What one look at an agent's events showed.

    Attributes:
        events: as they were read.
        server_time: the server's clock when the look was begun.
        absent: ids of followed events that no listing shows any more in which they ought to stand.
    """

    events: tuple[ExecutionEvent, ...]
    server_time: datetime | None
    absent: frozenset[str] = frozenset()


def read_listing(agent_id: str, window: MatchWindow, wanted: Collection[str] = ()) -> Flow[Listing]:
    """Ask for every event that could be the run, and no more.

    Args:
        agent_id: the agent.
        window: what is sought.
        wanted: ids of the events that matter, once they are known; the listing ends when it has them all.
    """
    missing = set(wanted) or ({window.event_id} if window.event_id is not None else set())
    seeking = not missing

    def stop(answer: Response[Page[ExecutionEvent]]) -> bool:
        rows = answer.value.data
        if not seeking:
            missing.difference_update(event.id for event in rows)
            if not missing:
                return True
        elif any(is_ours(window, event) for event in rows):
            return True
        return any(is_before(event, window.not_before) for event in rows)

    queued: list[ExecutionEvent] = []
    server_time = None
    if seeking:
        # A run that has not begun may have no `startedAt`; sorted by that, it can stand behind everything else. Asked
        # first, since a run that begins between the two answers is then in both, and otherwise would be in neither.
        pending = yield from paginate(list_agent_events(agent_id, status=Status.PENDING, limit=_PAGE_ROWS))
        queued, server_time = pending.value, pending.server_time
    listed = yield from paginate(list_agent_events(agent_id, limit=_PAGE_ROWS), stop)
    # The later answer stands: a run may have moved on between the two. Unless its row cannot be read: what has not
    # begun may stand behind rows that are old.
    unreadable = (event for event in listed.value if event.unreadable is not None)
    readable = (event for event in listed.value if event.unreadable is None)
    events = {event.id: event for event in (*unreadable, *queued, *readable)}
    return Listing(tuple(events.values()), server_time if seeking else listed.server_time)
