"""How an agent's events are read: PENDING first, then newest first down to a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_provider_agents.api.endpoints import list_agent_events
from airflow_provider_agents.api.flow import ApiCall, Flow, PageCursor, Response, paginate
from airflow_provider_agents.api.models import ExecutionEvent, Page, Status
from airflow_provider_agents.runs.matching import is_before, is_ours

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from airflow_provider_agents.runs.matching import MatchWindow

#: Rows of a page near the newest: the API's default. More pages follow where needed.
PAGE_ROWS = 50

Stop = Callable[[Response[Page[ExecutionEvent]]], bool]


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


def pending_then_newest(
    call: Callable[[Status | None], ApiCall[Page[ExecutionEvent]]],
    stop: Stop,
    *,
    stop_pending: Stop = lambda _: False,
    cursors: tuple[PageCursor, PageCursor] | None = None,
) -> Flow[tuple[Response[list[ExecutionEvent]], Response[list[ExecutionEvent]]]]:
    """The runs that have not begun, and then the newest ones down to where the caller stops.

    A run that has not begun may have no `startedAt`. In a listing by that time, the run may stand behind all others. It
    is asked for first: a run that begins between the two responses is in both, and otherwise would be in neither.

    Args:
        call: makes the call for a status, or for all runs (None).
        stop: as for `paginate`, for all runs.
        stop_pending: the same for the runs that have not begun.
        cursors: of the two listings, as for `paginate`.
    """
    of_pending, of_all = cursors or (PageCursor(), PageCursor())
    pending = Response(list[ExecutionEvent](), of_pending.server_time)
    if not of_pending.is_done:
        pending = yield from paginate(call(Status.PENDING), stop_pending, cursor=of_pending)
    return pending, (yield from paginate(call(None), stop, cursor=of_all))


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

    def call(status: Status | None) -> ApiCall[Page[ExecutionEvent]]:
        return list_agent_events(agent_id, status=status, limit=PAGE_ROWS)

    if seeking:
        pending, listed = yield from pending_then_newest(call, stop)
        queued, server_time = pending.value, pending.server_time
    else:
        listed = yield from paginate(call(None), stop)
        queued, server_time = [], listed.server_time
    # The later answer stands: a run may have moved on between the two. Unless its row cannot be read: what has not
    # begun may stand behind rows that are old.
    unreadable = (event for event in listed.value if event.unreadable is not None)
    readable = (event for event in listed.value if event.unreadable is None)
    events = {event.id: event for event in (*unreadable, *queued, *readable)}
    return Listing(tuple(events.values()), server_time)
