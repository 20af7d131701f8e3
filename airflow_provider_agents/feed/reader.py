"""Pages of events, read once: a row that says what it said in the sweep before is not read again. Pure.

Of a run that goes on, counters may grow from look to look (steps, seconds). They matter once it is over; until then a
row is read again only when its status, one of its times or its name has changed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from airflow_provider_agents.api.models import ExecutionEvent, Page
from airflow_provider_agents.runs.verdict import is_terminal

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_agents.api.calls import Call


class Reader:
    """Reads pages of events, and remembers those of this sweep and of the one before."""

    def __init__(self) -> None:
        # What of a row matters while its run goes on, the row as an event, and whether the run is over.
        self._last: dict[str, tuple[tuple[Any, ...], ExecutionEvent, bool]] = {}
        self._now: dict[str, tuple[tuple[Any, ...], ExecutionEvent, bool]] = {}

    def turn(self) -> None:
        """A sweep has ended: what neither it nor the next one shows is forgotten."""
        self._last, self._now = self._now, {}

    def strict(self, call: Call[Page[ExecutionEvent]]) -> Call[Page[ExecutionEvent]]:
        """The same call, for a listing in which every row matters: one that is no event fails it."""
        return replace(call, read=self._page)

    def lenient(
        self, call: Call[Page[ExecutionEvent]], damaged: Callable[[str | None], None]
    ) -> Call[Page[ExecutionEvent]]:
        """The same call, for a listing of many agents: a row that is no event must not blind all the others.

        Args:
            call: what to ask.
            damaged: called for each such row with the agent that it names, or None.
        """
        return replace(call, read=lambda value: self._page(value, damaged))

    def _page(self, value: Any, damaged: Callable[[str | None], None] | None = None) -> Page[ExecutionEvent]:
        rows = value["data"]
        frame = Page[Any].model_validate({**value, "data": ()})
        if not isinstance(rows, list):
            raise TypeError("the rows of a page are a list")
        events = []
        for row in rows:
            try:
                events.append(self._event(row))
            except ValidationError:
                if damaged is None:
                    raise
                owner = row.get("agentId") if isinstance(row, dict) else None
                damaged(owner if isinstance(owner, str) else None)
        return Page[ExecutionEvent].model_construct(data=tuple(events), nextToken=frame.nextToken)

    def _event(self, row: Any) -> ExecutionEvent:
        if isinstance(row, dict) and isinstance(event_id := row.get("id"), str):
            gist = (
                row.get("status"),
                row.get("startedAt"),
                row.get("completedAt"),
                row.get("createdAt"),
                row.get("agentId"),
                row.get("requestId"),
            )
            known = self._now.get(event_id) or self._last.get(event_id)
            if known is not None and known[0] == gist and (not known[2] or known[1].was_sent_as(row)):
                self._now[event_id] = known
                return known[1]
            event = ExecutionEvent.model_validate(row)
            self._now[event.id] = (gist, event, is_terminal(event))
            return event
        return ExecutionEvent.model_validate(row)
