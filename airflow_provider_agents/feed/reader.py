"""Pages of events, read once: a row that says what it said in the sweep before is not read again. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from airflow_provider_agents.api.models import ExecutionEvent, Page

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_agents.api.calls import Call


class Reader:
    """Reads pages of events, and remembers those of this sweep and of the one before."""

    def __init__(self) -> None:
        self._last: dict[str, ExecutionEvent] = {}
        self._now: dict[str, ExecutionEvent] = {}

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
        event_id = row.get("id") if isinstance(row, dict) else None
        if isinstance(event_id, str):
            known = self._now.get(event_id) or self._last.get(event_id)
            if known is not None and known.was_sent_as(row):
                self._now[event_id] = known
                return known
        event = ExecutionEvent.model_validate(row)
        self._now[event.id] = event
        return event
