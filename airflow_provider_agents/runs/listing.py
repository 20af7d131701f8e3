"""How an agent's events are read: PENDING first, then newest first down to a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_provider_agents.api.endpoints import list_agent_events, list_events
from airflow_provider_agents.api.flow import ApiCall, Flow, PageCursor, Response, paginate
from airflow_provider_agents.api.models import ExecutionEvent, Page, Status
from airflow_provider_agents.clock import now
from airflow_provider_agents.runs.matching import is_before, is_ours, is_young, oldest_first

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from datetime import datetime

    from airflow_provider_agents.runs.matching import MatchWindow

#: Rows of a page near the newest: the API's default. More pages follow where needed.
PAGE_ROWS = 50

Stop = Callable[[Response[Page[ExecutionEvent]]], bool]


@dataclass(frozen=True, slots=True)
class Listing:
    """What one listing of an agent's events showed.

    Attributes:
        events: as they were read.
        server_time: the server's clock when the listing was begun.
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
    return Listing(_merge(queued, listed.value), server_time)


def _merge(pending: Iterable[ExecutionEvent], listed: Collection[ExecutionEvent]) -> tuple[ExecutionEvent, ...]:
    """The events of two listings, each once.

    The later answer stands: a run may have moved on between the two. Unless its row cannot be read: what has not begun
    may stand behind rows that are old.
    """
    unreadable = (event for event in listed if event.unreadable is not None)
    readable = (event for event in listed if event.unreadable is None)
    return tuple({event.id: event for event in (*unreadable, *pending, *readable)}.values())


@dataclass(frozen=True, slots=True)
class RunsSince:
    """The runs that were created in a period.

    Attributes:
        events: newest first. An event without a readable time counts as the newest.
        since: when the period began.
        server_time: the server's clock when the read began, or else ours.
        is_complete: whether the listing was read down to the begin of the period.
    """

    events: tuple[ExecutionEvent, ...]
    since: datetime
    server_time: datetime
    is_complete: bool


def runs_since(
    agent_id: str | None, since_of: Callable[[datetime], datetime], *, max_pages: int | None = None
) -> Flow[RunsSince]:
    """Read the runs of an agent, or of the account, that were created since a moment.

    Args:
        agent_id: the agent; None for all agents of the account.
        since_of: the begin of the period, from the time of the read on the server's clock.
        max_pages: the most pages of up to 200 runs to read of a long period; None to read all of it.

    Raises:
        PaginationError: the listing does not end.
    """
    server_time: datetime | None = None
    pages, is_cut = 0, False

    def is_too_long(page: Response[Page[ExecutionEvent]]) -> bool:
        nonlocal pages, is_cut
        pages += 1
        if max_pages is None or pages < max_pages or not page.value.nextToken:
            return False
        is_cut = True
        return True

    def is_queue_too_long(page: Response[Page[ExecutionEvent]]) -> bool:
        nonlocal server_time
        server_time = server_time or page.server_time or now()
        return is_too_long(page)

    def is_enough(page: Response[Page[ExecutionEvent]]) -> bool:
        since = since_of(server_time or now())
        return any(is_before(event, since) for event in page.value.data) or is_too_long(page)

    def call(status: Status | None) -> ApiCall[Page[ExecutionEvent]]:
        if agent_id is None:
            return list_events(status=status)
        return list_agent_events(agent_id, status=status)

    pending, listed = yield from pending_then_newest(call, is_enough, stop_pending=is_queue_too_long)
    read_at = server_time or now()
    since = since_of(read_at)
    events = oldest_first(event for event in _merge(pending.value, listed.value) if is_young(event, since))
    return RunsSince(events[::-1], since, read_at, is_complete=not is_cut)
